"""One hyper-parameter at a time, three seeds."""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ... import viz
from ..profiles import LOOP, Profile
from .drawing import caption, draw_means, from_zero, look_of, text_of, title_of, zeros_of

DAMPS = (0.0001, 0.001, 0.01, 0.1, 1.0)
BLOCK_SIZES = (16, 64, 128, 256, 1024)
# DSnoT's: its defaults are 0.1 and 50.
THRESHOLDS = (0.0, 0.01, 0.1, 1.0, 10.0)
CYCLES = (1, 5, 10, 20, 50, 100)
GROWING = ("expected", "wanda", "magnitude")
DROPPING = ("wanda", "magnitude", "expected")
STARTS = ("magnitude", "wanda", "sparsegpt")
RULES = {"expected": "expected error", "wanda": "Wanda's score", "magnitude": "magnitude"}


@dataclass(frozen=True)
class Run:
    """A point of an ablation: the line it belongs to, its place on the axis, the sweep's method,
    and the number of calibration windows, if not the profile's."""

    series: str
    x: object
    method: str
    samples: int | None = None


@dataclass(frozen=True)
class Ablation:
    """A hyper-parameter by name, the runs that vary it, whether its values have an order, and
    series that need another label."""

    name: str
    runs: Callable[[Profile], list[Run]]
    ordered: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)

    def table(self, profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
        """A row a run, seed and text, with its series and x."""
        runs, parts = self.runs(profile), []
        for samples in dict.fromkeys(run.samples for run in runs):
            group = [run for run in runs if run.samples == samples]
            methods = dict.fromkeys(run.method for run in group)
            sweep = replace(profile, samples=samples or profile.samples)
            table = sweep.table(file, methods, [profile.sparsity], profile.seeds, progress)
            for run in group:
                rows = table[table.method == run.method]
                parts.append(rows.assign(series=run.series, x=str(run.x)))
        return pd.concat(parts, ignore_index=True)

    def draw(self, table: pd.DataFrame) -> tuple[plt.Figure, str]:
        """Loss above the dense model's, the mean of the seeds with their standard deviation; a
        panel for each text. Values without an order get dots and no line."""
        texts, sparsity = table.text.unique(), table.pattern.iloc[0]
        size = (4.6 * len(texts) + 0.8, 3.2)
        canvas, axes = plt.subplots(1, len(texts), figsize=size, squeeze=False)
        for axis, text in zip(axes[0], texts, strict=True):
            self._draw_series(axis, table[table.text == text])
            axis.set(xlabel=self.name, ylabel=f"loss above dense, {text_of(text)} (nats)")
            axis.legend(fontsize=8)
            from_zero(axis)
        title = f"{title_of(table)}, {zeros_of(sparsity)}"
        caption(canvas, textwrap.fill(title, 72 * len(texts)))
        return canvas, (
            f"loss above dense in nats against {self.name}, {zeros_of(sparsity)},"
            f" {title_of(table)}; lowest: {_lowest(table)}."
        )

    def _draw_series(self, axis: plt.Axes, table: pd.DataFrame) -> None:
        lines = table.groupby("series", sort=False)
        for place, (series, rows) in enumerate(lines):
            points = rows.groupby("x", sort=False).excess.agg(["mean", "std"])
            look = _series_look(series, place) | {"capsize": 3}
            look["label"] = self.labels.get(series, look["label"])
            if self.ordered:
                draw_means(axis, points, **look)
            elif points["mean"].nunique() == 1 < len(points):  # the same at every x
                axis.axhline(points["mean"].iloc[0], color="black", linestyle=":", label=series)
            else:
                side = 0.4 * ((place + 0.5) / len(lines) - 0.5)
                beside = points.set_axis([x + side for x in range(len(points))])
                draw_means(axis, beside, **{**look, "linestyle": "none"})
                axis.set_xticks(range(len(points)), points.index)


def _lowest(table: pd.DataFrame) -> str:
    groups = table.groupby(["text", "series", "x"], sort=False)
    means = groups.excess.agg(["mean", "std"]).reset_index()
    best = means.loc[means.groupby(["text", "series"], sort=False)["mean"].idxmin()]
    words = []
    for row in best.itertuples(index=False):
        scatter = "" if pd.isna(row.std) else f" ± {row.std:.3f}"  # one seed has no scatter
        where = f"{viz.label_of(row.series)} on {text_of(row.text)} at {row.x}"
        words.append(f"{where} ({row.mean:.3f}{scatter})")
    return ", ".join(words)


def _series_look(series: str, place: int) -> dict[str, str]:
    look = look_of(series)
    if series.partition(":")[0] in viz.STYLES:
        return look
    grey = f"{0.1 + 0.13 * place:.2f}"
    return {**look, "color": grey, "marker": "o^sDvP"[place % 6], "linestyle": "-"}


def _sample_runs(profile: Profile) -> list[Run]:
    pairs = product(profile.sizes, ("wanda", "sparsegpt", "sparsellm"))
    return [Run(method, size, method, size) for size, method in pairs]


def _damp_runs(profile: Profile) -> list[Run]:
    pairs = product((("sparsegpt", "damp"), ("sparsellm", "ridge")), DAMPS)
    return [Run(method, damp, f"{method}:{key}={damp}") for (method, key), damp in pairs]


def _block_runs(profile: Profile) -> list[Run]:
    return [Run("sparsegpt", size, f"sparsegpt:block={size}") for size in BLOCK_SIZES]


def _penalty_runs(profile: Profile) -> list[Run]:
    runs = []
    for beta, alpha in product(profile.grid, profile.grid):
        method = f"sparsellm:published;alpha={alpha};beta={beta}"
        runs.append(Run(f"beta = {beta:g}", f"{alpha:g}", method))
    return runs


def _epoch_runs(profile: Profile) -> list[Run]:
    loops = {"sparsellm:published": "sparsellm:published;epochs={}", "sparsellm": LOOP}
    pairs = product(loops.items(), profile.counts)
    return [Run(series, epochs, loop.format(epochs)) for (series, loop), epochs in pairs]


def _order_runs(profile: Profile) -> list[Run]:
    switches = {
        "all at once": "",
        "in order": ":in_order=True",
        "in order, dense targets": ":targets=dense-model",
    }
    pairs = product(("wanda", "sparsegpt", "admm"), switches.items())
    return [Run(method, name, f"{method}{switch}") for method, (name, switch) in pairs]


def _threshold_runs(profile: Profile) -> list[Run]:
    return [Run("dsnot", f"{rest:g}", f"dsnot:threshold={rest}") for rest in THRESHOLDS]


def _cycle_runs(profile: Profile) -> list[Run]:
    return [Run("dsnot", count, f"dsnot:max_cycles={count}") for count in CYCLES]


def _criteria_runs(profile: Profile) -> list[Run]:
    runs = [Run("the start, Wanda's masks", RULES[drop], "wanda") for drop in DROPPING]
    for grow, drop in product(GROWING, DROPPING):
        method = f"dsnot:grow={grow};drop={drop}"
        runs.append(Run(f"regrown by {RULES[grow]}", RULES[drop], method))
    return runs


def _start_runs(profile: Profile) -> list[Run]:
    forms = {
        "the start": "dsnot:initial={};max_cycles=0",
        "dsnot": "dsnot:{}",
        "dsnot:published": "dsnot:published;initial={}",
    }
    pairs = product(STARTS, forms.items())
    return [Run(series, start, form.format(start)) for start, (series, form) in pairs]


ABLATIONS = {
    "samples": Ablation("calibration windows", _sample_runs),
    "damp": Ablation(
        "damping, as a share of the mean diagonal",
        _damp_runs,
        labels={"sparsellm": "SparseLLM, ridge of its regressions"},
    ),
    "block-size": Ablation("columns in a block", _block_runs),
    "alpha-beta": Ablation("alpha (gamma = 1)", _penalty_runs),
    "epochs": Ablation("epochs of the loop", _epoch_runs),
    "order": Ablation("order of the matrices", _order_runs, ordered=False),
    "threshold": Ablation("error at which a row rests", _threshold_runs),
    "cycles": Ablation("swaps a row at most", _cycle_runs),
    "criteria": Ablation("pruned by", _criteria_runs, ordered=False),
    "starts": Ablation("the mask it starts from", _start_runs, ordered=False),
}
