"""Perplexity against sparsity and n:m, all methods."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ...patterns import Pattern
from ...viz import label_of
from ..profiles import Profile
from .drawing import caption, look_of, plain_log, text_of, title_of, words_of

SAME = {"swaps:wanda": "swaps"}  # one method under two names of sweeps
STARTS = {"dsnot:magnitude": "m", "dsnot:wanda": "W", "dsnot:sparsegpt": "S"}


def sparsity_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """All methods at all patterns, the first seed."""
    first = profile.seeds[:1]
    return profile.table(file, profile.methods, profile.patterns, first, progress)


def draw_sparsity(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """A row of panels for each text: curves over the fractions, points for n:m, those of the two
    that there are; the dense model dotted."""
    table = table.assign(method=table.method.replace(SAME))
    texts, grouped = table.text.unique(), table.pattern.str.contains(":")
    kinds = [  # rows, how they are drawn, label of the axis, width
        (table[~grouped], _draw_curves, "zeros (%)", 1.6),
        (table[grouped], _draw_points, "zeros in n:m", 1.0),
    ]
    kinds = [kind for kind in kinds if len(kind[0])]
    widths = [width for *_, width in kinds]
    grid = {"squeeze": False, "sharey": "row", "width_ratios": widths}
    size = (3.2 * sum(widths) + 1.7, 3.6 * len(texts))
    canvas, axes = plt.subplots(len(texts), len(kinds), figsize=size, **grid)
    for line, text in zip(axes, texts, strict=True):
        for axis, (rows, draw, xlabel, _) in zip(line, kinds, strict=True):
            rows = rows[rows.text == text]
            axis.axhline(rows.dense.iloc[0], color="black", linestyle=":", label="dense")
            axis.set(xlabel=xlabel)
            draw(axis, rows)
            plain_log(axis)
        line[0].set(ylabel=f"perplexity on {text_of(text)}")
    shown = axes[0, 0]
    canvas.legend(*shown.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    starts = table.method[grouped].isin(STARTS).any()
    caption(canvas, title_of(table), "m, W, S: DSnoT's starts" if starts else "")
    return canvas, f"perplexity against sparsity, {title_of(table)}; lowest at {_lowest(table)}."


def _lowest(table: pd.DataFrame) -> str:
    best = table.loc[table.groupby(["text", "pattern"], sort=False).perplexity.idxmin()]
    words = []
    for row in best.itertuples():
        values = f"{row.perplexity:.1f} (dense {row.dense:.1f})"
        words.append(
            f"{words_of(row.pattern)} on {text_of(row.text)}: {label_of(row.method)} {values}"
        )
    return ", ".join(words)


def _draw_curves(axis: plt.Axes, rows: pd.DataFrame) -> None:
    for name, part in rows.sort_values("asked").groupby("method", sort=False):
        x = 100 * part.sparsity
        axis.errorbar(x, part.perplexity, part.stderr, **look_of(name), capsize=2)
    asked = sorted(100 * rows.asked.unique())
    axis.set_xticks(asked, [f"{share:g}" for share in asked])


def _draw_points(axis: plt.Axes, rows: pd.DataFrame) -> None:
    """A column for each pattern, its methods side by side."""
    patterns = sorted(rows.pattern.unique(), key=lambda pattern: Pattern.parse(pattern).sparsity)
    methods = rows.method.unique()
    for place, name in enumerate(methods):
        part, look = rows[rows.method == name], {**look_of(name), "linestyle": "none"}
        shift = 0.7 * ((place + 0.5) / len(methods) - 0.5)
        x = part.pattern.map(patterns.index) + shift
        axis.errorbar(x, part.perplexity, part.stderr, **look, capsize=2)
        for place in zip(x, part.perplexity, strict=True):
            above = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
            axis.annotate(STARTS.get(name, ""), place, fontsize=7, **above)
    axis.set_xticks(range(len(patterns)), patterns)
    axis.set_xlim(-0.5, len(patterns) - 0.5)
