"""Weights before and after: how they are distributed, and which of the large ones stay."""

from collections.abc import Iterable, Mapping
from functools import cache, partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor

from ...viz import label_of
from ..profiles import Profile
from ..subject import subject_of
from ..sweep import jobs_of
from .drawing import caption, look_of, title_of, zeros_of

BINS = torch.linspace(-5, 5, 102)  # in standard deviations of the dense matrix
GROUPS = 20  # by |dense weight|, from the smallest to the largest


def weights_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """By method: share of all weights in each bin (zeros left out; x in standard deviations of the
    dense matrix), and the share kept of each twentieth of the dense weights by size; all pruned
    matrices together, each in its own scale.
    """

    subject = cache(partial(subject_of, profile, file))  # not for a table that is complete

    def make(job: dict) -> list[dict]:
        model, dense = subject().model, subject().weights
        with subject().pruned(profile, job) as found:
            report, scored = found.report, found.scored
            protocol = profile.row(**job, report=report, model=model, scored=scored)
            names = [row.name for row in report.rows]
            rows = distribution(dense, found.weights, names)
        return [{**protocol, **row} for row in rows]

    moved = ("dsnot", "swaps")  # the masks of others
    methods = [name for name in profile.methods if name.partition(":")[0] not in moved]
    jobs = jobs_of(profile.seeds[:1], [profile.sparsity], methods)
    return profile.resume(file, jobs, make, progress)


def distribution(
    dense: Mapping[str, Tensor], pruned: Mapping[str, Tensor], names: Iterable[str] | None = None
) -> list[dict]:
    """Rows of quantity ('dense', 'pruned': share of weights in a bin; 'kept': share kept), x and y,
    from the weights [r, c] of all matrices, or of those named."""
    names = list(dense if names is None else names)
    bins = (BINS[1:] + BINS[:-1]) / 2
    places = (torch.arange(GROUPS, dtype=torch.float64) + 0.5) / GROUPS
    x_of = {"dense": bins, "pruned": bins, "kept": places}
    y_of = {quantity: torch.zeros(len(x)) for quantity, x in x_of.items()}
    for name in names:
        before, after = dense[name].detach().float().cpu(), pruned[name].detach().float().cpu()
        scale = before.std().item()
        for quantity, weight in (("dense", before), ("pruned", after)):
            inside = (weight[weight != 0] / scale).clamp(BINS[0], BINS[-1])
            y_of[quantity] += torch.histogram(inside, BINS).hist / before.numel() / len(names)
        kept = (after != 0).flatten()[before.abs().flatten().argsort()].float()
        shares = [part.mean() for part in kept.tensor_split(GROUPS)]
        y_of["kept"] += torch.stack(shares) / len(names)
    rows = []
    for quantity, centres in x_of.items():
        for x, y in zip(centres.tolist(), y_of[quantity].tolist(), strict=True):
            rows.append({"quantity": quantity, "x": round(x, 4), "y": round(y, 8)})
    return rows


def draw_weights(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """Outlines of the distributions on one scale without the zeros, and the share kept against the
    size in the dense model."""
    canvas, (left, right) = plt.subplots(1, 2, figsize=(9, 3.3))
    dense = table[(table.quantity == "dense") & (table.method == table.method.iloc[0])]
    left.fill_between(dense.x, dense.y, step="mid", color="#cccccc", label="dense")
    largest = []
    for name, rows in table.groupby("method", sort=False):
        look = {**look_of(name), "fillstyle": "full", "markersize": 4}
        part, kept = rows[rows.quantity == "pruned"], rows[rows.quantity == "kept"]
        left.step(part.x, part.y, where="mid", **{**look, "marker": ""})
        right.plot(100 * kept.x, 100 * kept.y, **look)
        largest.append(f"{label_of(name)} {kept.y.iloc[kept.x.argmax()]:.1%}")
    left.set(
        title="before (grey) and after",
        xlabel="weight, in standard deviations of its dense matrix",
        ylabel="share of the weights",
        yscale="log",
    )
    right.set(
        title="which keep their place",
        xlabel="place by |weight| in the dense model (%)",
        ylabel="kept (%)",
    )
    right.legend(fontsize=8)
    sparsity = zeros_of(table.pattern.iloc[0])
    beyond = "left: the zeros are left out, and all beyond ±5 standard deviations is at ±5"
    caption(canvas, f"{title_of(table)}, {sparsity}", beyond.capitalize())
    return canvas, (
        f"weights before and after pruning to {sparsity}, the zeros left out, {title_of(table)}; of"
        f" the twentieth with the largest dense weights is kept: {', '.join(largest)}."
    )
