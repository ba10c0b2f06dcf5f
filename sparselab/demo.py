"""The main job on the embedded default: prune a small model by several methods, and show what is left of it."""
import datetime
import math
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn

from . import viz
from .engine import prune
from .errors import SparselabError
from .evaluate import Perplexity, perplexity, write
from .files import INSTALLED
from .methods import Method, find_method
from .models import linears_of, load, locate, model_name
from .patterns import Pattern
from .texts import calibration, tokens

PROMPT = {"opt-mini": "The old man opened the door and", "smollm2-135m": "The three most important things in life are"}
TABLE_FILE, FIGURE_FILE = "demo.md", "demo.png"
BEGIN, END = "<!-- made by `make {}`: begin -->", "<!-- end -->"


@dataclass(frozen=True)
class Setting:
    """Model, data and sizes that belong to every number of a comparison."""

    model: str = "opt-mini"
    corpus: str = "demo"
    samples: int = 64           # calibration windows
    seqlen: int = 256
    windows: int = 64           # evaluation windows


def compare(setting: Setting, methods: Iterable[str | Method], sparsities: Iterable[float | str], *, prompt: str = "",
            progress: bool = True) -> tuple[pd.DataFrame, dict]:
    """Prune a model anew by every method at every sparsity. A table with one row each, dense first, and the masks of
    one matrix by (method, sparsity), bool [r, c]."""
    model, tokenizer = load(setting.model)
    windows = calibration(tokenizer, setting.corpus, samples=setting.samples, seqlen=setting.seqlen)
    text = tokens(tokenizer, setting.corpus)[:setting.windows * setting.seqlen]
    weights = dense_weights(model)
    measure = _Measure(model, tokenizer, text, setting, prompt, progress)
    rows, masks = [measure.row("dense", 0.0, 0.0, 0.0)], {}
    for sparsity in sparsities:
        for method in map(find_method, methods):
            restore(model, weights)
            report = prune(model, windows, method=method, sparsity=sparsity, progress=progress)
            rows.append(measure.row(method.name, report.sparsity, report.error, report.seconds["total"],
                                    str(Pattern.parse(sparsity))))
            masks[method.name, sparsity] = shown_matrix(model).weight.detach() != 0
    return pd.DataFrame(rows), masks


def dense_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of what `restore` will give back."""
    return {name: linear.weight.detach().clone() for name, linear in linears_of(model).items()}


def restore(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give the linears their dense weights back."""
    for name, linear in linears_of(model).items():
        linear.weight.data.copy_(weights[name])


def shown_matrix(model: nn.Module) -> nn.Linear:
    """The matrix whose masks are drawn: the first of the feed-forward network in the middle block."""
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

    def row(self, method: str, sparsity: float, error: float, seconds: float, pattern: str = "") -> dict:
        """One row of the table, measured on the model as it is now."""
        ppl = perplexity(self.model, self.text, seqlen=self.setting.seqlen, progress=self.progress)
        self.dense = self.dense or ppl
        loss, loss_stderr = ppl.ratio(self.dense)
        return {"model": model_name(self.model), "text": f"{self.setting.corpus}, {ppl.windows} x {ppl.seqlen}",
                "method": method, "pattern": pattern, "sparsity": sparsity, "perplexity": float(ppl),
                "stderr": ppl.stderr, "log_ratio": loss, "log_ratio_stderr": loss_stderr, "error": error,
                "seconds": seconds, "losses": ppl.losses,
                "writes": write(self.model, self.tokenizer, self.prompt) if self.prompt else ""}


def machine() -> str:
    """What the digits of a result depend on: the processor's family and the instruction set that torch uses."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def rounded(value: float, error: float, sign: str = "") -> str:
    """A number with its error, in the digits that the error leaves it: 78.04 ± 2.83 is '78 ± 3'."""
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:{sign}.3g} ± {error:.1g}"
    places = max(0, -math.floor(math.log10(error)))
    return f"{value:{sign}.{places}f} ± {error:.{places}f}"


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown: every number with model, text, window length and sparsity, and where all were made."""
    lines = ["| model | evaluation text | method | zeros | perplexity | against dense (log, paired) | output error "
             "| seconds |", "|---|---|---|---|---|---|---|---|"]
    for row in table.itertuples():
        paired = "" if row.method == "dense" else rounded(row.log_ratio, row.log_ratio_stderr, "+")
        error = "" if row.method == "dense" else f"{row.error:.2f}"
        seconds = "" if row.method == "dense" else f"{row.seconds:.0f}"
        lines.append(f"| {row.model} | {row.text} | {viz.LABELS[row.method]} | {row.sparsity:.1%} | "
                     f"{rounded(row.perplexity, row.stderr)} | {paired} | {error} | {seconds} |")
    threads = torch.get_num_threads()
    lines.append(f"\nMade on {machine()}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}, "
                 f"{datetime.date.today().isoformat()}. On other processors a few masks flip: numbers differ by about their "
                 "errors, and the order stays.")
    return "\n".join(lines)


def figure(table: pd.DataFrame, masks: dict, sparsity: float, corner: int = 32) -> plt.Figure:
    """Perplexity against sparsity, and the masks of one matrix side by side."""
    shown = {method: mask for (method, s), mask in masks.items() if s == sparsity}
    with viz.style():
        canvas = plt.figure(figsize=(11, 3.4))
        left, right = canvas.subfigures(1, 2, width_ratios=[1, 1.5])
        curve = left.subplots()
        viz.sparsity_curve(curve, table)
        curve.set_title(f"{table.model[0]}, text: {table.text[0]} tokens", fontsize=10)
        right.suptitle(f"sparsity {sparsity}: a corner of fc1 or up_proj in the middle block, bright = kept", fontsize=10)
        for axis, (method, mask) in zip(right.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
            viz.draw_mask(axis, mask, viz.LABELS[method], corner)
    return canvas


def insert(readme: Path, text: str, command: str = "readme") -> None:
    """Put a text between the markers that name its command, `make readme`."""
    begin = BEGIN.format(command)
    head, found, rest = (readme.read_text(encoding="utf8") if readme.is_file() else "").partition(begin)
    if not found or END not in rest:
        raise SparselabError(f"{readme} holds no lines {begin} and {END} to put the text between. Write them where it goes.")
    tail = rest.split(END, 1)[1]
    readme.write_text(f"{head}{begin}\n{text}\n{END}{tail}", encoding="utf8")


def demo(out: Path, readme: Path | None = None, quick: bool = False) -> None:
    """Dense and three methods at 50 % and 70 % on opt-mini, SparseGPT on smollm2-135m; table, figure and sentences.

    out: the folder of table and figure. readme: a file to put the table into. quick: opt-mini only, with 8 windows for
    calibration and 8 for evaluation in place of 64. Raises a SparselabError where model or texts are missing.
    """
    if not quick:
        locate("smollm2-135m")                               # what is missing is said before a minute has passed
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
    table, _ = compare(Setting("smollm2-135m", samples=16, windows=16), ("sparsegpt",), (0.5,),
                       prompt=PROMPT["smollm2-135m"])
    return table
