"""By depth: sparsity rises or falls along a line from the first block to the last, and a few
prunings find how steeply."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Annotated

import torch
from torch import LongTensor, nn
from tqdm.auto import tqdm

from ..engine.pruning import prune
from ..methods.base import Method
from ..methods.parameters import checked
from ..methods.registry import find_method
from ..models.architecture import blocks_of, dense_weights, family_of, linears_of, restore
from .scores import HIGHEST, DenseReference, HeldOut, as_fraction, split_windows

FINEST = 1 / 20  # of the widest slope: nearer to the best one no other is tried


@checked
@torch.no_grad()
def by_depth(
    model: nn.Module,
    windows: LongTensor,
    sparsity: float,
    *,
    method: str | Method = "sparsegpt",
    trials: Annotated[int, ">= 1"] = 7,
    held_out: HeldOut = 0.25,
    widest: Annotated[float, "> 0", "< 1"] = 0.2,
    progress: bool = True,
) -> dict[int, float]:
    """Sparsity of each block on a line from the first to the last, whose slope is the best of a few
    that are tried: errors of early blocks pass through all later ones, so that it often rises.

    Each trial prunes the model with the first of the windows, as `sl.prune` does, and takes the
    mean KL(dense || pruned) of the predictions on the others. Uniform sparsity is the first trial,
    so that the result is no worse there.

    Parameters
    ----------
    model : nn.Module
        The dense model; it is changed and restored meanwhile.
    windows : LongTensor of shape (n, seqlen)
        Token ids, as `sl.calibration` gives; two or more.
    sparsity : float
        Of all blocks together, weighed by their sizes; exact up to what a method rounds down in
        each row.
    method : str or Method
        What prunes in the trials, as `sl.prune` takes it; without its `divide`, which is what is
        sought here.
    trials : int
        Prunings at most; see `next_slope` for which, and when it is enough.
    held_out : float
        The share of the windows, the last ones, that judges.
    widest : float
        How far a block may be from `sparsity`. Blocks stay within 0 to 0.99 as well.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict of int to float
        What `sl.prune` takes as ``sparsity``, with this method or another.

    Raises
    ------
    SparselabError
        Where an argument is of another kind or out of its bounds, there is one window only, or
        `sl.prune` refuses the model or the method; before anything changes.

    Notes
    -----
    Source: Huang et al., arXiv 2502.14770, who derive that sparsity should rise with depth in an
    arithmetic progression, and try about nine common differences above 0 by the perplexity. Here it
    may fall as well, and trials follow from those before them.
    """
    method = replace(find_method(method, family_of(model).name), divide=False)
    target = as_fraction(sparsity)
    calibration, judged = split_windows(model, windows, held_out)
    depths = centred_depths(model)
    limit = widest_slope(depths, target, widest)
    reference, dense = DenseReference(model, judged), dense_weights(model)

    with tqdm(total=trials, desc="by depth", unit="pruning", disable=not progress) as bar:

        def cost(slope: float) -> float:
            shares = line(depths, target, slope)
            try:
                prune(model, calibration, method=method, sparsity=shares, progress=False)
                divergence = reference.divergence()
            finally:
                restore(model, dense)
            bar.update()
            bar.set_postfix(slope=f"{slope:+.3f}", kl=f"{divergence:.4f}")
            return divergence

        costs = try_slopes(cost, limit, trials)
    return line(depths, target, min(costs, key=costs.get))


def centred_depths(model: nn.Module) -> dict[int, float]:
    """Where each block stands between the first and the last, which are 2 apart; 0 is the mean over
    all weights, so that a line through it keeps the total."""
    count = len(blocks_of(model))
    sizes = []
    for block in range(count):
        linears = linears_of(model, [block]).values()
        sizes.append(sum(linear.weight.numel() for linear in linears))
    depths = [2 * block / max(count - 1, 1) for block in range(count)]
    weighed = sum(depth * size for depth, size in zip(depths, sizes, strict=True))
    return {block: depth - weighed / sum(sizes) for block, depth in enumerate(depths)}


def widest_slope(depths: dict[int, float], target: float, widest: float) -> float:
    """The steepest line, up or down, on which every block is at most `widest` away and within 0 to
    HIGHEST."""
    room = min(widest, target, max(HIGHEST - target, 0.0))
    return room / (max(map(abs, depths.values())) or math.inf)


def line(depths: dict[int, float], target: float, slope: float) -> dict[int, float]:
    """The sparsity of each block, target + slope * depth: `slope` is half the range from the first
    to the last."""
    shares = {block: round(target + slope * depth, 12) for block, depth in depths.items()}
    return {block: max(0.0, share) for block, share in shares.items()}


def try_slopes(cost: Callable[[float], float], limit: float, trials: int) -> dict[float, float]:
    """What the slopes cost that were tried, 0 first, at most so many."""
    costs = {0.0: cost(0.0)}
    while len(costs) < trials and (slope := next_slope(costs, limit)) is not None:
        costs[slope] = cost(slope)
    return costs


def next_slope(costs: dict[float, float], limit: float) -> float | None:
    """The slope to try after those with known costs, None where it is enough.

    First a bracket: from 0 in steps of half the limit, up, or where that is no better down, until
    it gets worse or the limit is reached. Then the least point of the parabola through the best
    slope and its neighbours; it is enough when that is the best slope itself, up to FINEST. Where a
    neighbour's cost is infinite, half way to the other one.
    """
    if not limit:
        return None
    tried, best = sorted(costs), min(costs, key=costs.get)
    if math.isinf(costs[best]):
        return None
    step = limit / 2
    if best == tried[-1] and best < limit:
        return min(best + step, limit)
    if best == tried[0] and best > -limit:
        return max(best - step, -limit)
    place = min(max(tried.index(best), 1), len(tried) - 2)
    around = tried[place - 1 : place + 2]
    slope = parabola_minimum([(x, costs[x]) for x in around])
    if slope is None:
        return None
    slope = min(max(slope, -limit), limit)
    return slope if abs(slope - best) >= FINEST * limit else None


def parabola_minimum(points: list[tuple[float, float]]) -> float | None:
    """Where the parabola through three points (x, y), x increasing, is least; None where it has no
    minimum. Half way between the two finite points where one is infinite."""
    finite = [x for x, y in points if math.isfinite(y)]
    if len(finite) < 3:
        return sum(finite) / 2 if len(finite) == 2 else None
    (left, _), (middle, height), (right, _) = points
    rises = [(high[1] - low[1]) / (high[0] - low[0]) for low, high in pairwise(points)]
    curvature = (rises[1] - rises[0]) / (right - left)
    if curvature <= 0:
        return None
    # the derivative at the middle is the mean of the rises, weighed by the other one's width
    slope = rises[0] + curvature * (middle - left)
    return middle - slope / (2 * curvature)
