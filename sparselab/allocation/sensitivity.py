"""By sensitivity: what a block costs when it alone is pruned, and the cheapest division of the
zeros."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import torch
from torch import LongTensor, nn

from ..errors import SparselabError
from ..methods.parameters import checked
from ..models.architecture import blocks_of, linears_of
from ..numerics.budget import allocate_budget
from ..patterns import Pattern, number, plain, prune_rows
from .scores import as_fraction, block_scores, input_norms, mean_loss

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
Levels = Sequence[Annotated[float, ">= 0", "< 1"]]


@checked
def by_sensitivity(
    model: nn.Module,
    windows: LongTensor,
    sparsity: float,
    *,
    levels: Levels = LEVELS,
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

    Raises
    ------
    SparselabError
        Where an argument is of another kind or out of its bounds, or `sparsity` outside the levels.
    """
    target, levels = as_fraction(sparsity), _levels(levels)
    if not levels[0] <= target <= levels[-1]:
        raise SparselabError(
            f"sparsity {target:g} is outside the levels {levels[0]:g} to {levels[-1]:g} between"
            " which the blocks are tried: choose levels= on both sides of it."
        )
    if losses is None:
        losses = sensitivity(model, windows, levels)
    _check_losses(losses, levels, len(blocks_of(model)))
    sizes, curves = {}, {}
    for block, values in losses.items():
        linears = linears_of(model, [block]).values()
        sizes[block] = sum(linear.weight.numel() for linear in linears)
        curves[block] = []
        for level, loss in zip(levels, values, strict=True):
            curves[block].append((level * sizes[block], loss))
    zeros = allocate_budget(curves, target * sum(sizes.values()))
    return {block: zeros[block] / sizes[block] for block in zeros}


@checked
@torch.no_grad()
def sensitivity(
    model: nn.Module, windows: LongTensor, levels: Levels = LEVELS
) -> dict[int, list[float]]:
    """What the model loses when one block is pruned by Wanda's mask, and all others are dense.

    Parameters
    ----------
    model : nn.Module
        The dense model; it is changed and restored meanwhile.
    windows : LongTensor of shape (n, seqlen)
        Token ids, as `sl.calibration` gives.
    levels : sequence of float
        The sparsities that are tried, from the lowest to the highest.

    Returns
    -------
    dict of int to list of float
        The mean loss at each level, nats a token, by block.
    """
    patterns = [*map(Pattern.parse, _levels(levels))]
    norms, losses = input_norms(model, windows), {}
    for block in range(len(blocks_of(model))):
        linears, scores = linears_of(model, [block]), block_scores(model, block, norms)
        dense, losses[block] = {name: linear.weight.clone() for name, linear in linears.items()}, []
        try:
            for pattern in patterns:
                for name, linear in linears.items():
                    pruned = prune_rows(scores[name], pattern, per_row=True)
                    linear.weight.copy_(dense[name].masked_fill(pruned, 0))
                losses[block].append(mean_loss(model, windows))
        finally:
            for name, linear in linears.items():
                linear.weight.copy_(dense[name])
    return losses


def _levels(levels: Sequence[float]) -> list[float]:
    """The levels as a list; that each is a fraction is said by the annotation of the callers."""
    found = [*levels]
    if len(found) < 2 or found != sorted({*found}):
        raise SparselabError(
            f"levels={levels}: two or more different fractions, from the lowest to the highest."
        )
    return found


def _check_losses(losses: dict[int, list[float]], levels: Sequence[float], blocks: int) -> None:
    """A finite loss for each level of each block that is named."""
    fits = isinstance(losses, Mapping) and 0 < len(losses) and {*losses} <= {*range(blocks)}
    for values in losses.values() if fits else ():
        found = [*map(number, values)] if isinstance(plain(values), Iterable) else []
        fits = fits and len(found) == len(levels) and all(map(math.isfinite, found))
    if not fits:
        raise SparselabError(
            f"losses={losses!r}: a finite loss for each of the {len(levels)} levels, by the block's"
            f" number, 0 to {blocks - 1}, as sensitivity(model, windows, levels) gives."
        )
