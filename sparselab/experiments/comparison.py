"""The main job on the embedded default: prune a small model by several methods, and show what is
left of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn

from .. import viz
from ..data.calibration import calibration, tokens
from ..engine.pruning import prune
from ..evaluation.generation import write
from ..evaluation.perplexity import Perplexity, perplexity
from ..methods.base import Method
from ..methods.registry import find_method
from ..models.architecture import dense_weights, linears_of, model_name, restore
from ..models.loading import load, locate
from ..patterns import Pattern
from ..runtime.files import INSTALLED
from .tables import insert, markdown

PROMPT = {
    "opt-mini": "The old man opened the door and",
    "smollm2-135m": "The three most important things in life are",
}
TABLE_FILE, FIGURE_FILE = "demo.md", "demo.png"


@dataclass(frozen=True)
class Setting:
    """Model, data and sizes that belong to every number of a comparison."""

    model: str = "opt-mini"
    corpus: str = "demo"
    samples: int = 64  # calibration windows
    seqlen: int = 256
    windows: int = 64  # evaluation windows


def compare(
    setting: Setting,
    methods: Iterable[str | Method],
    sparsities: Iterable[float | str],
    *,
    prompt: str = "",
    progress: bool = True,
) -> tuple[pd.DataFrame, dict]:
    """Prune a model anew by every method at every sparsity. A table with one row each, dense first,
    and the masks of one matrix by (method, sparsity), bool [r, c]."""
    model, tokenizer = load(setting.model)
    windows = calibration(tokenizer, setting.corpus, samples=setting.samples, seqlen=setting.seqlen)
    text = tokens(tokenizer, setting.corpus)[: setting.windows * setting.seqlen]
    weights = dense_weights(model)
    measure = _Measure(model, tokenizer, text, setting, prompt, progress)
    rows, masks = [measure.row("dense", 0.0, 0.0, 0.0)], {}
    for sparsity in sparsities:
        for method in map(find_method, methods):
            restore(model, weights)
            report = prune(model, windows, method=method, sparsity=sparsity, progress=progress)
            rows.append(
                measure.row(
                    method.name,
                    report.sparsity,
                    report.error,
                    report.seconds["total"],
                    str(Pattern.parse(sparsity)),
                )
            )
            masks[method.name, sparsity] = shown_matrix(model).weight.detach() != 0
    return pd.DataFrame(rows), masks


def shown_matrix(model: nn.Module) -> nn.Linear:
    """The matrix whose masks are drawn: the feed-forward network's first, in the middle block."""
    names = [name for name in linears_of(model) if name.endswith(("fc1", "up_proj"))]
    return linears_of(model)[names[len(names) // 2]]


@dataclass
class _Measure:
    model: nn.Module
    tokenizer: object
    text: torch.Tensor
    setting: Setting
    prompt: str
    progress: bool
    dense: Perplexity | None = None

    def row(
        self, method: str, sparsity: float, error: float, seconds: float, pattern: str = ""
    ) -> dict:
        """One row of the table, measured on the model as it is now."""
        ppl = perplexity(self.model, self.text, seqlen=self.setting.seqlen, progress=self.progress)
        self.dense = self.dense or ppl
        loss, loss_stderr = ppl.ratio(self.dense)
        return {
            "model": model_name(self.model),
            "text": f"{self.setting.corpus}, {ppl.windows} x {ppl.seqlen}",
            "method": method,
            "pattern": pattern,
            "sparsity": sparsity,
            "perplexity": float(ppl),
            "stderr": ppl.stderr,
            "log_ratio": loss,
            "log_ratio_stderr": loss_stderr,
            "error": error,
            "seconds": seconds,
            "losses": ppl.losses,
            "writes": write(self.model, self.tokenizer, self.prompt) if self.prompt else "",
        }


def figure(table: pd.DataFrame, masks: dict, sparsity: float, corner: int = 32) -> plt.Figure:
    """Perplexity against sparsity, and the masks of one matrix side by side."""
    shown = {method: mask for (method, s), mask in masks.items() if s == sparsity}
    with viz.style():
        canvas = plt.figure(figsize=(11, 3.4))
        left, right = canvas.subfigures(1, 2, width_ratios=[1, 1.5])
        curve = left.subplots()
        viz.sparsity_curve(curve, table)
        curve.set_title(f"{table.model[0]}, text: {table.text[0]} tokens", fontsize=10)
        right.suptitle(
            f"sparsity {sparsity}: a corner of fc1 or up_proj in the middle block, bright = kept",
            fontsize=10,
        )
        for axis, (method, mask) in zip(
            right.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
        ):
            viz.draw_mask(axis, mask, viz.LABELS[method], corner)
    return canvas


def demo(out: Path, readme: Path | None = None, quick: bool = False) -> None:
    """Dense and three methods at 50 % and 70 % on opt-mini, SparseGPT on smollm2-135m; table,
    figure and sentences.

    out: the folder of table and figure. readme: a file to put the table into. quick: opt-mini only,
    with 8 windows for calibration and 8 for evaluation in place of 64. Raises a SparselabError
    where model or texts are missing.
    """
    if not quick:
        locate("smollm2-135m")  # what is missing is said before a minute has passed
    methods = ("magnitude", "wanda", "sparsegpt")
    setting = Setting(samples=8, windows=8) if quick else Setting()
    table, masks = compare(setting, methods, (0.5, 0.7), prompt=PROMPT["opt-mini"])
    everything = table if quick else pd.concat([table, _large()])
    text = markdown(everything)
    out.mkdir(parents=True, exist_ok=True)
    (out / TABLE_FILE).write_text(text + "\n", encoding="utf8")
    figure(table, masks, 0.7).savefig(out / FIGURE_FILE, dpi=150)
    if readme:
        insert(readme, text)
    print(f"\n{text}\n\nWhat they write:")
    for row in everything.itertuples():
        print(f"  {row.model}, {row.method} {row.sparsity:.0%}: {row.writes!r}")
    following = "" if INSTALLED else " Next: `make lab` and notebooks/00_start_here.ipynb"
    print(f"\nTable: {out / TABLE_FILE}. Figure: {out / FIGURE_FILE}.{following}")


def _large() -> pd.DataFrame:
    """smollm2-135m, which takes six times as long: one method at one sparsity."""
    table, _ = compare(
        Setting("smollm2-135m", samples=16, windows=16),
        ("sparsegpt",),
        (0.5,),
        prompt=PROMPT["smollm2-135m"],
    )
    return table
