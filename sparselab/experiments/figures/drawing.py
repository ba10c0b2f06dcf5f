"""What the figures' drawings share."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ... import viz


def look_of(method: str) -> dict[str, str]:
    """A sweep's method as matplotlib's keywords: colour, marker, line and label."""
    look = viz.line_style(*viz.style_of(method))
    return {**look, "fillstyle": viz.fill_of(method), "label": viz.label_of(method)}


def draw_means(axis: plt.Axes, points: pd.DataFrame, **look) -> None:
    """The means of the seeds with their standard deviations; one seed has none."""
    axis.errorbar(points.index, points["mean"], points["std"].fillna(0), **look)


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
        f" {first.calibration}{windows}{layers}{seeds}"
    )
