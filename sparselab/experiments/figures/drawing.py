"""What the figures' drawings share."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import LogLocator, NullLocator

from ... import viz
from ...patterns import Pattern

TEXTS = {
    "demo": "demo text",
    "wikitext2": "WikiText-2",
    "ptb": "Penn Treebank",
    "c4": "C4",
    "books-heldout.txt.xz": "held-out books",
    "books-train.txt.xz": "books",
}


def look_of(method: str) -> dict[str, str]:
    """A sweep's method as matplotlib's keywords: colour, marker, line and label."""
    look = viz.line_style(*viz.style_of(method))
    return {**look, "fillstyle": viz.fill_of(method), "label": viz.label_of(method)}


def draw_means(axis: plt.Axes, points: pd.DataFrame, **look) -> None:
    """The means of the seeds with their standard deviations; one seed has none."""
    axis.errorbar(points.index, points["mean"], points["std"].fillna(0), **look)


def text_of(name: str) -> str:
    """A text as figures call it."""
    return TEXTS.get(name, name)


def words_of(pattern: str) -> str:
    """A sweep's pattern as figures call it: '0.7' is '70 %'."""
    parsed = Pattern.parse(pattern)
    return parsed.words if parsed.sparsity else "dense"


def zeros_of(pattern: str) -> str:
    """'70 % zeros', '2:4 zeros'."""
    return f"{words_of(pattern)} zeros"


def caption(canvas: plt.Figure, *parts: str) -> None:
    """The protocol, small, below the drawing."""
    words = ". ".join(part for part in parts if part)
    canvas.supxlabel(words, x=0.01, ha="left", fontsize=8, color="#555555")


def title_of(table: pd.DataFrame) -> str:
    """Model and protocol in one line."""
    first = table.iloc[0]
    windows = f", evaluated on {table.windows.max()} windows" if "windows" in table else ""
    seeds = f", {table.seed.nunique()} seeds" if table.seed.nunique() > 1 else ""
    names = {"all": "", "first half": ", first half of the layers"}
    layers = names.get(first.layers_pruned, f", {first.layers_pruned}")
    samples = "/".join(map(str, sorted(table.samples.unique())))
    return (
        f"{Path(first.model).name}, calibration {samples} x {first.seqlen} tokens of"
        f" {text_of(first.calibration)}{windows}{layers}{seeds}"
    )


def from_zero(axis: plt.Axes) -> None:
    """Losses above dense are read from 0, unless some are below it."""
    axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))


def plain_log(axis: plt.Axes, which: str = "y") -> None:
    """A logarithmic axis whose ticks are numbers without exponents, as many as there is room for.
    Called when all is drawn."""
    chosen = axis.yaxis if which == "y" else axis.xaxis
    axis.set(**{f"{which}scale": "log"})
    low, high = axis.get_ylim() if which == "y" else axis.get_xlim()
    ticks = (1,) if high > 300 * low else (1, 2, 5) if high > 30 * low else (1, 2, 3, 5, 7)
    chosen.set_major_locator(LogLocator(subs=ticks))
    chosen.set_major_formatter("{x:,g}")
    chosen.set_minor_locator(NullLocator())
