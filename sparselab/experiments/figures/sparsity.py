"""Perplexity against sparsity and n:m, all methods."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ...patterns import Pattern
from ...viz import label_of
from ..profiles import Profile
from .drawing import look_of, title_of


def sparsity_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """All methods at all patterns, the first seed."""
    first = profile.seeds[:1]
    return profile.table(file, profile.methods, profile.patterns, first, progress)


def draw_sparsity(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """A row of panels for each text: curves over the fractions, points for n:m; the dense model
    dotted."""
    texts = table.text.unique()
    grid = {"squeeze": False, "sharey": "row", "width_ratios": [1.6, 1]}
    canvas, axes = plt.subplots(len(texts), 2, figsize=(10, 3.6 * len(texts)), **grid)
    for (curves, points), text in zip(axes, texts, strict=True):
        rows = table[table.text == text]
        grouped = rows.pattern.str.contains(":")
        for axis, xlabel in ((curves, "zeros (%)"), (points, "zeros in n:m")):
            axis.axhline(rows.dense.iloc[0], color="black", linestyle=":", label="dense")
            axis.set(xlabel=xlabel, yscale="log")
        _draw_curves(curves, rows[~grouped])
        _draw_points(points, rows[grouped])
        curves.set(ylabel=f"perplexity on {text}")
    shown = axes[0, 1 if table.pattern.str.contains(":").all() else 0]
    canvas.legend(*shown.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    canvas.suptitle(title_of(table), fontsize=10)
    return canvas, f"perplexity against sparsity, {title_of(table)}; lowest at {_lowest(table)}."


def _lowest(table: pd.DataFrame) -> str:
    best = table.loc[table.groupby(["text", "pattern"], sort=False).perplexity.idxmin()]
    words = []
    for row in best.itertuples():
        values = f"{row.perplexity:.1f} (dense {row.dense:.1f})"
        words.append(f"{row.pattern} on {row.text}: {label_of(row.method)} {values}")
    return ", ".join(words)


def _draw_curves(axis: plt.Axes, rows: pd.DataFrame) -> None:
    for name, part in rows.sort_values("asked").groupby("method", sort=False):
        x = 100 * part.sparsity
        axis.errorbar(x, part.perplexity, part.stderr, **look_of(name), capsize=2)


def _draw_points(axis: plt.Axes, rows: pd.DataFrame) -> None:
    """A column for each pattern, its methods side by side."""
    patterns = sorted(rows.pattern.unique(), key=lambda pattern: Pattern.parse(pattern).sparsity)
    methods = rows.method.unique()
    for place, name in enumerate(methods):
        part, look = rows[rows.method == name], {**look_of(name), "linestyle": "none"}
        shift = 0.7 * ((place + 0.5) / len(methods) - 0.5)
        x = part.pattern.map(patterns.index) + shift
        axis.errorbar(x, part.perplexity, part.stderr, **look, capsize=2)
    axis.set_xticks(range(len(patterns)), patterns)
