"""By sensitivity: what a block costs when it alone is pruned, and the cheapest division of the
zeros."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import LongTensor, nn

from ..errors import SparselabError
from ..models.architecture import blocks_of, linears_of
from ..patterns import Pattern, prune_rows
from .scores import as_fraction, block_scores, input_norms, mean_loss

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)


def by_sensitivity(
    model: nn.Module,
    windows: LongTensor,
    sparsity: float,
    *,
    levels: Sequence[float] = LEVELS,
    losses: dict[int, list[float]] | None = None,
) -> dict[int, float]:
    """Sparsity of each block, so that the sum of the losses of pruning each block alone is least
    and the total is exact.

    The curves are made convex and spent by `allocate_budget`. That losses of several blocks add up
    is an assumption.

    Parameters
    ----------
    model : nn.Module
        The dense model; it is changed and restored meanwhile.
    windows : LongTensor of shape (n, seqlen)
        Token ids, as `sl.calibration` gives.
    sparsity : float
        Of all blocks together.
    levels : sequence of float
        The sparsities that are tried, so the lowest and the highest that a block can get.
    losses : dict of int to list of float, optional
        What `sensitivity` measured with the same levels (nats a token), if it has been called.

    Returns
    -------
    dict of int to float
        What `sl.prune` takes as ``sparsity``.
    """
    target, levels = as_fraction(sparsity), _levels(levels)
    if not levels[0] <= target <= levels[-1]:
        raise SparselabError(
            f"sparsity {target:g} is outside the levels {levels[0]:g} to {levels[-1]:g} between"
            " which the blocks are tried: choose levels= on both sides of it."
        )
    losses = sensitivity(model, windows, levels) if losses is None else losses
    sizes = {
        block: sum(w.weight.numel() for w in linears_of(model, [block]).values())
        for block in losses
    }
    curves = {
        block: [
            (level * sizes[block], loss) for level, loss in zip(levels, losses[block], strict=True)
        ]
        for block in losses
    }
    zeros = allocate_budget(curves, target * sum(sizes.values()))
    return {block: zeros[block] / sizes[block] for block in zeros}


@torch.no_grad()
def sensitivity(
    model: nn.Module, windows: LongTensor, levels: Sequence[float] = LEVELS
) -> dict[int, list[float]]:
    """Mean loss of the windows [n, seqlen], nats a token, with one block pruned to each level by
    Wanda's mask and all others dense; by block. The model is left as it was."""
    norms, losses = input_norms(model, windows), {}
    for block in range(len(blocks_of(model))):
        linears, scores = linears_of(model, [block]), block_scores(model, block, norms)
        dense, losses[block] = {name: linear.weight.clone() for name, linear in linears.items()}, []
        try:
            for pattern in map(Pattern.parse, _levels(levels)):
                for name, linear in linears.items():
                    linear.weight.copy_(
                        dense[name].masked_fill(prune_rows(scores[name], pattern, per_row=True), 0)
                    )
                losses[block].append(mean_loss(model, windows))
        finally:
            for name, linear in linears.items():
                linear.weight.copy_(dense[name])
    return losses


def allocate_budget(
    curves: dict[int, list[tuple[float, float]]], budget: float
) -> dict[int, float]:
    """Zeros of each block, `budget` in all, of least total loss; curves: (zeros, loss) by block,
    zeros increasing.

    Each curve is replaced by its lower convex hull. On hulls the best choice takes segments in the
    order of their slopes, the price of one more zero, whatever block they belong to; the last one
    in part. That price is the Lagrange multiplier.
    """
    zeros = {block: points[0][0] for block, points in curves.items()}
    left = budget - sum(zeros.values())
    segments = [
        (_slope(low, high), low[0], high[0] - low[0], block)
        for block, points in curves.items()
        for low, high in pairwise(lower_hull(points))
    ]
    for _, _, width, block in sorted(segments):
        zeros[block] += (part := min(width, left))
        left -= part
    return zeros


def lower_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (x, y), x increasing, that no line between two others passes below or through."""
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(low: tuple[float, float], high: tuple[float, float]) -> float:
    return (high[1] - low[1]) / (high[0] - low[0])


def _levels(levels: Sequence[float]) -> list[float]:
    found = [*map(as_fraction, levels)]
    if len(found) < 2 or found != sorted({*found}):
        raise SparselabError(
            f"levels={levels}: two or more different fractions, from the lowest to the highest."
        )
    return found
