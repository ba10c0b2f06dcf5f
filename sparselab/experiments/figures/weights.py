"""Weights before and after: how they are distributed, and which of the large ones stay."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor

from ... import viz
from ...data.calibration import calibration
from ...engine.pruning import prune
from ...methods.registry import named_method
from ...models.architecture import dense_weights, family_of, linears_of, restore
from ...models.loading import load
from ..profiles import Profile, base, provenance, title_of
from ..results import load_or_compute

BINS = torch.linspace(-5, 5, 102)  # in standard deviations of the dense matrix
GROUPS = 20  # by |dense weight|, from the smallest to the largest


def weights_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """By method: share of all weights in each bin (zeros left out; x in standard deviations of the
    dense matrix), and the share kept of each twentieth of the dense weights by size; all pruned
    matrices together, each in its own scale.
    """
    model, tokenizer = load(profile.model)
    weights, seed = dense_weights(model), profile.seeds[0]
    windows = calibration(
        tokenizer, profile.corpus, samples=profile.samples, seqlen=profile.seqlen, seed=seed
    )

    def make(key: dict) -> list[dict]:
        restore(model, weights)
        method = named_method(key["method"], family_of(model).name)
        report = prune(
            model,
            windows,
            method=method,
            sparsity=profile.sparsity,
            layers=profile.layers,
            progress=False,
        )
        protocol = provenance(profile, report, model)
        pruned = [row.name for row in report.rows]
        return [
            {**row, **protocol}
            for row in distribution(
                {name: weights[name] for name in pruned},
                {name: linears_of(model)[name].weight for name in pruned},
            )
        ]

    keys = [
        {
            **base(profile),
            "layers_pruned": profile.layers or "all",
            "pattern": profile.sparsity,
            "method": method,
            "seed": seed,
        }
        for method in profile.methods
        if method.partition(":")[0] not in ("dsnot", "swaps")
    ]
    return load_or_compute(file, keys, make, progress)


def distribution(dense: dict[str, Tensor], pruned: dict[str, Tensor]) -> list[dict]:
    """Rows of quantity ('dense', 'pruned': share of weights in a bin; 'kept': share kept), x and y,
    from weights [r, c]."""
    sums = {
        "dense": torch.zeros(len(BINS) - 1),
        "pruned": torch.zeros(len(BINS) - 1),
        "kept": torch.zeros(GROUPS),
    }
    for name, before in dense.items():
        before, after = before.detach().float().cpu(), pruned[name].detach().float().cpu()
        scale = before.std().item()
        for quantity, weight in (("dense", before), ("pruned", after)):
            inside = (weight[weight != 0] / scale).clamp(BINS[0], BINS[-1])
            sums[quantity] += torch.histogram(inside, BINS).hist / before.numel() / len(dense)
        kept = (after != 0).flatten()[before.abs().flatten().argsort()]
        sums["kept"] += torch.stack(
            [part.float().mean() for part in kept.tensor_split(GROUPS)]
        ) / len(dense)
    centres = {"kept": [(place + 0.5) / GROUPS for place in range(GROUPS)]}
    bins = ((BINS[1:] + BINS[:-1]) / 2).tolist()
    return [
        {"quantity": quantity, "x": round(x, 4), "y": round(y, 8)}
        for quantity, values in sums.items()
        for x, y in zip(centres.get(quantity, bins), values.tolist(), strict=True)
    ]


def draw_weights(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """Outlines of the distributions on one scale, and the share kept against the size in the dense
    model."""
    with viz.style():
        canvas, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
        dense = table[(table.quantity == "dense") & (table.method == table.method.iloc[0])]
        left.fill_between(dense.x, dense.y, step="mid", color="#cccccc", label="dense")
        for name, rows in table.groupby("method", sort=False):
            colour, marker, line = viz.style_of(name)
            part, kept = rows[rows.quantity == "pruned"], rows[rows.quantity == "kept"]
            left.step(
                part.x, part.y, where="mid", color=colour, linestyle=line, label=viz.label_of(name)
            )
            right.plot(
                100 * kept.x,
                100 * kept.y,
                color=colour,
                marker=marker,
                linestyle=line,
                markersize=4,
                label=viz.label_of(name),
            )
        left.set(
            xlabel="weight, in standard deviations of the dense matrix (at ±5 all beyond)",
            yscale="log",
            ylabel="share of the weights",
            title="before (grey) and after",
        )
        right.set(
            xlabel="place by |weight| in the dense model (%)",
            ylabel="kept (%)",
            title="which keep their place",
        )
        right.legend(fontsize=8)
        canvas.suptitle(f"{title_of(table)}, sparsity {table.pattern.iloc[0]}", fontsize=10)
    largest = table[
        (table.quantity == "kept") & (table.x == table[table.quantity == "kept"].x.max())
    ]
    kept = ", ".join(f"{viz.label_of(row.method)} {row.y:.1%}" for row in largest.itertuples())
    return (
        canvas,
        (
            f"weights before and after pruning to {table.pattern.iloc[0]}, {title_of(table)}; of"
            f" the twentieth with the largest dense weights is kept: {kept}."
        ),
    )
