"""One hyper-parameter at a time, three seeds."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ... import viz
from ..profiles import LOOP, Profile, title_of

DAMPS = (0.0001, 0.001, 0.01, 0.1, 1.0)
BLOCK_SIZES = (16, 64, 128, 256, 1024)


@dataclass(frozen=True)
class Run:
    """A point of an ablation: the line it belongs to, its place on the axis, and the sweep's
    method."""

    series: str
    x: object
    method: str
    samples: int | None = None


@dataclass(frozen=True)
class Ablation:
    """A hyper-parameter by name, and the runs that vary it."""

    name: str
    runs: Callable[[Profile], list[Run]]

    def table(self, profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
        """A row a run, seed and text, with its series and x."""
        parts = []
        for samples, group in groupby(self.runs(profile), key=lambda run: run.samples):
            runs = list(group)
            table = profile.sweep(samples).table(
                file,
                dict.fromkeys(run.method for run in runs),
                [profile.sparsity],
                profile.seeds,
                progress,
            )
            parts += [
                table[table.method == run.method].assign(series=run.series, x=str(run.x))
                for run in runs
            ]
        return pd.concat(parts, ignore_index=True)

    def draw(self, table: pd.DataFrame) -> tuple[plt.Figure, str]:
        """Loss above the dense model's, the mean of the seeds with their standard deviation; a
        panel for each text."""
        texts = table.text.unique()
        with viz.style():
            canvas, axes = plt.subplots(
                1, len(texts), figsize=(5.2 * len(texts) + 0.8, 3.8), squeeze=False
            )
            for axis, text in zip(axes[0], texts, strict=True):
                for place, (series, rows) in enumerate(
                    table[table.text == text].groupby("series", sort=False)
                ):
                    points = rows.groupby("x", sort=False).excess.agg(["mean", "std"])
                    colour, marker, line = _series_style(series, place)
                    axis.errorbar(
                        points.index,
                        points["mean"],
                        points["std"].fillna(0),
                        color=colour,
                        marker=marker,
                        linestyle=line,
                        fillstyle=viz.fill_of(series),
                        capsize=3,
                        label=viz.label_of(series),
                    )
                axis.set(xlabel=self.name, ylabel=f"loss above dense on {text} (nats)")
                axis.legend(fontsize=8)
            title = f"{title_of(table)}, sparsity {table.pattern.iloc[0]}"
            canvas.suptitle(textwrap.fill(title, 75 * len(texts)), fontsize=9)
        return canvas, self._sentence(table)

    def _sentence(self, table: pd.DataFrame) -> str:
        means = (
            table.groupby(["text", "series", "x"], sort=False)
            .excess.agg(["mean", "std"])
            .reset_index()
        )
        best = means.loc[means.groupby(["text", "series"], sort=False)["mean"].idxmin()]
        lowest = ", ".join(
            f"{viz.label_of(row.series)} on {row.text} at {row.x}"
            f" ({row.mean:.3f}{_scatter(row.std)})"
            for row in best.itertuples(index=False)
        )
        return (
            f"loss above dense in nats against {self.name}, sparsity {table.pattern.iloc[0]},"
            f" {title_of(table)}; lowest: {lowest}."
        )


def _scatter(std: float) -> str:
    return "" if pd.isna(std) else f" ± {std:.3f}"  # one seed has no scatter


def _series_style(series: str, place: int) -> tuple[str, str, str]:
    if series.partition(":")[0] in viz.STYLES:
        return viz.style_of(series)
    return f"{0.1 + 0.13 * place:.2f}", "o^sDvP"[place % 6], "-"


def _order_runs(profile: Profile) -> list[Run]:
    switches = {
        "all at once": "",
        "in order": "in_order=True",
        "in order, dense targets": "targets=dense-model",
    }
    return [
        Run(method, name, f"{method}:{switch}".rstrip(":"))
        for method, (name, switch) in product(("wanda", "sparsegpt", "admm"), switches.items())
    ]


def _epoch_runs(profile: Profile) -> list[Run]:
    return [
        Run("sparsellm:published", epochs, f"sparsellm:published;epochs={epochs}")
        for epochs in profile.counts
    ] + [Run("sparsellm", epochs, LOOP.format(epochs)) for epochs in profile.counts]


ABLATIONS = {
    "samples": Ablation(
        "calibration windows",
        lambda p: [
            Run(method, size, method, size)
            for size in p.sizes
            for method in ("wanda", "sparsegpt", "sparsellm")
        ],
    ),
    "damp": Ablation(
        "damping, as a share of the mean diagonal",
        lambda p: [
            Run(method, damp, f"{method}:{key}={damp}")
            for method, key in (("sparsegpt", "damp"), ("sparsellm", "ridge"))
            for damp in DAMPS
        ],
    ),
    "block-size": Ablation(
        "columns in a block",
        lambda p: [Run("sparsegpt", size, f"sparsegpt:block={size}") for size in BLOCK_SIZES],
    ),
    "alpha-beta": Ablation(
        "alpha (gamma = 1)",
        lambda p: [
            Run(f"beta = {beta:g}", f"{alpha:g}", f"sparsellm:published;alpha={alpha};beta={beta}")
            for beta, alpha in product(p.grid, p.grid)
        ],
    ),
    "epochs": Ablation("epochs of the loop", _epoch_runs),
    "order": Ablation("order of the matrices", _order_runs),
}
