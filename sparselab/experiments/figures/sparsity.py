"""Perplexity against sparsity and n:m, all methods."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ... import viz
from ...patterns import Pattern
from ..profiles import Profile, title_of


def sparsity_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """All methods at all patterns, the first seed."""
    return profile.sweep().table(
        file, profile.methods, profile.patterns, profile.seeds[:1], progress
    )


def draw_sparsity(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """A row of panels for each text: curves over the fractions, points for n:m; the dense model
    dotted."""
    texts = table.text.unique()
    with viz.style():
        canvas, axes = plt.subplots(
            len(texts),
            2,
            figsize=(10, 3.6 * len(texts)),
            squeeze=False,
            sharey="row",
            width_ratios=[1.6, 1],
        )
        for (curves, points), text in zip(axes, texts, strict=True):
            rows = table[table.text == text]
            grouped = rows.pattern.str.contains(":")
            for axis, xlabel in ((curves, "zeros (%)"), (points, "zeros in n:m")):
                axis.axhline(rows.dense.iloc[0], color="black", linestyle=":", label="dense")
                axis.set(xlabel=xlabel, yscale="log")
            _curves(curves, rows[~grouped])
            _points(points, rows[grouped])
            curves.set(ylabel=f"perplexity on {text}")
        shown = axes[0, 0] if not table.pattern.str.contains(":").all() else axes[0, 1]
        canvas.legend(*shown.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        canvas.suptitle(title_of(table), fontsize=10)
    best = table.loc[table.groupby(["text", "pattern"], sort=False).perplexity.idxmin()]
    lowest = ", ".join(
        f"{row.pattern} on {row.text}: {viz.label_of(row.method)} {row.perplexity:.1f} (dense "
        f"{row.dense:.1f})"
        for row in best.itertuples()
    )
    return canvas, f"perplexity against sparsity, {title_of(table)}; lowest at {lowest}."


def _curves(axis: plt.Axes, rows: pd.DataFrame) -> None:
    for name, part in rows.sort_values("asked").groupby("method", sort=False):
        colour, marker, line = viz.style_of(name)
        axis.errorbar(
            100 * part.sparsity,
            part.perplexity,
            part.stderr,
            color=colour,
            marker=marker,
            linestyle=line,
            fillstyle=viz.fill_of(name),
            capsize=2,
            label=viz.label_of(name),
        )


def _points(axis: plt.Axes, rows: pd.DataFrame) -> None:
    """A column for each pattern, its methods side by side."""
    patterns = sorted(rows.pattern.unique(), key=lambda pattern: Pattern.parse(pattern).sparsity)
    methods = rows.method.unique()
    for place, name in enumerate(methods):
        part, (colour, marker, _) = rows[rows.method == name], viz.style_of(name)
        shift = 0.7 * ((place + 0.5) / len(methods) - 0.5)
        axis.errorbar(
            [patterns.index(pattern) + shift for pattern in part.pattern],
            part.perplexity,
            part.stderr,
            color=colour,
            marker=marker,
            fillstyle=viz.fill_of(name),
            linestyle="none",
            capsize=2,
            label=viz.label_of(name),
        )
    axis.set_xticks(range(len(patterns)), patterns)
