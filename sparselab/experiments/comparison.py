"""The main job on the embedded default: prune a small model by several methods, and show what is
left of it."""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from torch import nn

from .. import viz
from ..engine.report import Report
from ..evaluation.generation import write
from ..methods.base import Method
from ..methods.registry import named_method
from ..models.architecture import dense_weights, family_of, linears_of, restore
from ..models.loading import load, locate
from ..patterns import Pattern
from ..runtime.files import INSTALLED
from .experiment import UNPRUNED, Experiment
from .tables import insert, markdown

PROMPT = {
    "opt-mini": "The old man opened the door and",
    "smollm2-135m": "The three most important things in life are",
}
METHODS = ("magnitude", "wanda", "dsnot", "sparsegpt", "sparsellm", "admm:guided")
COLUMNS = 4  # of masks side by side, before they take two rows
TABLE_FILE, FIGURE_FILE = "demo.md", "demo.png"
Setting = Experiment  # its name in notebook 00


def compare(
    experiment: Experiment,
    methods: Iterable[str | Method],
    sparsities: Iterable[float | str],
    *,
    prompt: str = "",
    progress: bool = True,
) -> tuple[pd.DataFrame, dict]:
    """Prune a model anew by every method at every sparsity.

    Parameters
    ----------
    experiment : Experiment
        The model, the texts, and how much of them.
    methods : iterable of str or Method
        Names as sweeps write them, such as 'wanda' or 'admm:guided', or instances.
    sparsities : iterable of float or str
        As `sl.prune` takes them.
    prompt : str
        What the models go on with, if anything.
    progress : bool
        Show progress bars.

    Returns
    -------
    table : DataFrame
        A row for each pruning and evaluation text, the dense model's first.
    masks : dict
        The mask of `shown_matrix` by (method, sparsity), bool [r, c].
    """
    model, tokenizer = load(experiment.model)
    family = family_of(model).name
    named = {}
    for method in methods:
        text = isinstance(method, str)
        named[method if text else method.name] = named_method(method, family) if text else method
    weights = dense_weights(model)
    rows, masks, dense = [], {}, {}

    def measure(pattern: str, method: str, report: Report) -> None:
        """Add rows of the model as it is now."""
        writes = write(model, tokenizer, prompt) if prompt else ""
        for text, ppl in experiment.perplexities(model, progress=progress).items():
            base = dense.setdefault(text, ppl)
            row = experiment.row(0, pattern, method, report, text, base, ppl)
            row["text"] = f"{text}, {ppl.windows} x {ppl.seqlen}"
            row["error"] = row.pop("output_error")
            rows.append({**row, "losses": ppl.losses, "writes": writes})

    measure("", "dense", UNPRUNED)
    for sparsity, (name, method) in product(sparsities, named.items()):
        restore(model, weights)
        report = experiment.prune(model, 0, sparsity, method, progress)
        measure(str(Pattern.parse(sparsity)), name, report)
        masks[name, sparsity] = shown_matrix(model).weight.detach() != 0
    return pd.DataFrame(rows), masks


def shown_matrix(model: nn.Module) -> nn.Linear:
    """The matrix whose masks are drawn: the feed-forward network's first, in the middle block."""
    names = [name for name in linears_of(model) if name.endswith(("fc1", "up_proj"))]
    return linears_of(model)[names[len(names) // 2]]


def figure(table: pd.DataFrame, masks: dict, sparsity: float, corner: int = 32) -> plt.Figure:
    """Perplexity against sparsity, and the masks of one matrix side by side."""
    shown = {method: mask for (method, s), mask in masks.items() if s == sparsity}
    with viz.style():
        canvas = plt.figure(figsize=(11, 3.4 if len(shown) <= COLUMNS else 4.6))
        left, right = canvas.subfigures(1, 2, width_ratios=[1, 1.5])
        curve, rows = left.subplots(), -(-len(shown) // COLUMNS)
        axes = right.subplots(rows, -(-len(shown) // rows), squeeze=False).flat
        viz.sparsity_curve(curve, table)
        curve.set_title(f"{table.model[0]}, text: {table.text[0]} tokens", fontsize=10)
        part = "a corner of fc1 or up_proj in the middle block, bright = kept"
        right.suptitle(f"sparsity {sparsity}: {part}", fontsize=10)
        for axis, (method, mask) in zip(axes, shown.items(), strict=False):
            viz.draw_mask(axis, mask, viz.label_of(method), corner)
    return canvas


def demo(out: Path, readme: Path | None = None, quick: bool = False) -> None:
    """SparseGPT on smollm2-135m, then dense and six methods at 50 % and 70 % on opt-mini, the last
    one the recommended call; table, figure and sentences.

    out: the folder of table and figure. readme: a file to put the table into. quick: opt-mini only,
    with 8 windows for calibration and 8 for evaluation in place of 64. Raises a SparselabError
    where model or texts are missing.
    """
    if not quick:
        locate("smollm2-135m")  # what is missing is said before a minute has passed
    size = {"samples": 8, "windows": 8} if quick else {}
    small = Experiment(spread=True, **size)
    table, masks = compare(small, METHODS, (0.5, 0.7), prompt=PROMPT["opt-mini"])
    everything = table if quick else pd.concat([_large(), table])
    text = markdown(everything)
    out.mkdir(parents=True, exist_ok=True)
    (out / TABLE_FILE).write_text(text + "\n", encoding="utf8")
    figure(table, masks, 0.7).savefig(out / FIGURE_FILE, dpi=150)
    if readme:
        insert(readme, text)
    print(f"\n{text}\n\nWhat they write:")
    for row in everything.itertuples():
        print(f"  {row.model}, {row.method} {row.sparsity:.0%}: {row.writes!r}")
    following = "" if INSTALLED else " Next: `make lab` opens the course."
    print(f"\nTable: {out / TABLE_FILE}. Figure: {out / FIGURE_FILE}.{following}")


def _large() -> pd.DataFrame:
    """smollm2-135m, which takes six times as long: one method at one sparsity."""
    experiment = Experiment("smollm2-135m", samples=16, windows=16, spread=True)
    return compare(experiment, ("sparsegpt",), (0.5,), prompt=PROMPT[experiment.model])[0]
