"""Which matrix gets how many zeros: what each is expected to cost, in nats, and the cheapest
division."""

import math
from functools import partial

import numpy as np
import torch
from torch import LongTensor, Tensor, nn
from tqdm.auto import tqdm

from ..errors import SparselabError
from ..methods.base import Method
from ..methods.sparsegpt import SparseGPT
from ..models.architecture import family_of
from ..numerics.budget import Point, allocate_budget
from ..numerics.statistics import GRAM, NORMS, Statistics
from ..patterns import Allocation, Pattern
from ..runtime import distributed
from .activations import CalibrationActivations, statistics_of
from .fisher import Fisher
from .sources import InMemoryBlocks, StreamedBlocks

# Where a matrix is tried: so far below the wanted sparsity, and so far from it to 1. No matrix gets
# more zeros than at the last: what one costs that is nearly gone, the second order does not know.
BELOW, ABOVE = (0.3, 0.2, 0.1, 0.0), (1 / 3, 2 / 3)
STEP = 0.01  # between two levels the loss is taken to grow by equal factors in such steps


def divides(method: Method, pattern: Pattern | Allocation) -> bool:
    """Whether the zeros are to be divided; a SparselabError where they cannot be."""
    if not method.divide or isinstance(pattern, Allocation) or pattern.m or not pattern.sparsity:
        return False
    if method.allocates:
        raise SparselabError(
            f"{method} divides the zeros among the matrices itself: take scope='matrix', or leave"
            " divide=True out."
        )
    return True


def divide_zeros(
    source: InMemoryBlocks | StreamedBlocks,
    windows: LongTensor,
    linears: dict[str, nn.Linear],
    sparsity: float,
    fisher: Fisher,
    *,
    batch: int | None = None,
    offload: str = "device",
    progress: bool = False,
) -> dict[str, Pattern]:
    """A share of zeros for each linear, `sparsity` of all their weights together, of least expected
    loss.

    A matrix that is pruned alone, dW, adds about tr(F dW H dW^T) / 2 nats a token, with F the mean
    squared gradients at its outputs and H the second moments of its inputs, where tokens count as
    `Fisher` has it: the second-order term of the loss, where Hessian and Fisher information are the
    same. SparseGPT prunes each matrix of the dense model at a few sparsities, which share one
    factorisation; that the losses of several matrices add up is an assumption.

    Parameters
    ----------
    source : InMemoryBlocks or StreamedBlocks
        The dense model, before any block is pruned.
    windows : LongTensor of shape (windows, seqlen)
        This process's calibration windows.
    linears : dict of str to nn.Linear
        Those that are to be pruned, by name.
    sparsity : float
        Of all of them.
    fisher : Fisher
        How much their errors cost.
    batch, offload, progress
        As for `fisher_weights`.

    Returns
    -------
    dict of str to Pattern
    """
    family, curves = family_of(source.model), {}
    activations = CalibrationActivations(source.model, windows, batch, offload=offload)
    last = max(int(name.removeprefix(family.blocks + ".").split(".")[0]) for name in linears)
    for layer in tqdm(range(last + 1), desc="division", unit="block", disable=not progress):
        block, prefix = source.load(layer), f"{family.blocks}.{layer}."
        groups = [[name for name in group if prefix + name in linears] for group in family.groups]
        groups = [group for group in groups if group]
        if groups:
            firsts = {group[0]: block.get_submodule(group[0]) for group in groups}
            make = partial(statistics_of, firsts, (GRAM, NORMS))
            collected = activations.collect(block, make, None, prefix, fisher.of_block(prefix))
            work = {}
            for group in groups:
                stats = collected.pop(group[0])
                for name in (prefix + each for each in group):
                    weight, cost = linears[name].weight, (fisher.rows[name], fisher.scale[name])
                    work[name] = partial(_curve, weight, stats, levels_for(sparsity), *cost)
            distributed.run_divided(work, curves.__setitem__)
        if layer < last:
            activations.replay(block)
        source.release(layer)
    source.forget()
    sizes = {name: linear.weight.numel() for name, linear in linears.items()}
    zeros = allocate_budget(curves, sparsity * sum(sizes.values()))
    return {name: Pattern(zeros[name] / sizes[name]) for name in linears}


def levels_for(sparsity: float) -> list[float]:
    """The sparsities at which each matrix is tried, rising."""
    low = [sparsity - step for step in BELOW]
    return [level for level in low if level > 0] + [sparsity + (1 - sparsity) * up for up in ABOVE]


def _curve(
    weight: Tensor, stats: Statistics, levels: list[float], rows: Tensor, scale: float
) -> list[Point]:
    """Zeros of a matrix [r, c] and the loss that they are expected to cost, nats a token."""
    weight = weight.detach().float()
    losses, method = [], SparseGPT()
    for level in levels:
        _, solution = method.prune_matrix(weight, stats, Pattern(level), rows)
        change = weight - solution.weight
        squares = ((change @ stats.gram) * change).sum(1, dtype=torch.float64) / stats.tokens
        losses.append(0.5 * scale * (squares * rows.to(squares.device)).sum().clamp(min=0))
    losses = torch.stack(losses).tolist()  # asked once: each time stops a GPU
    least = max(max(losses) * 1e-12, 1e-300)  # of dead neurons none is left
    logs = [math.log(max(loss, least)) for loss in losses]
    fine = np.linspace(levels[0], levels[-1], 1 + round((levels[-1] - levels[0]) / STEP))
    points = zip(fine * weight.numel(), np.exp(np.interp(fine, levels, logs)), strict=True)
    return [(0.0, 0.0), *((float(zeros), float(loss)) for zeros, loss in points)]
