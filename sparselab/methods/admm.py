"""ADMM: mask and weights of a matrix together, from its Gram matrix alone."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from ..numerics.refit import refit
from ..numerics.statistics import GRAM, NORMS, Statistics
from ..patterns import Pattern, prune_rows
from .base import Method, Solution, Start
from .magnitude import Magnitude
from .sparsegpt import SparseGPT
from .wanda import Wanda

STARTS = {method.name: method for method in (Magnitude, Wanda, SparseGPT)}


@dataclass(frozen=True)
class ADMM(Method):
    """Two copies of the weights, one that fits the outputs and one that is sparse, are drawn
    together ever harder.

    Inputs are scaled to unit norm, so that weights of all columns compete on equal terms over the
    whole matrix (n:m: within their groups). The kept weights are refitted at the end. The error on
    the calibration inputs, with `Statistics.damping`, is never worse than that of `initial`, whose
    solution is returned where it is the better one. Sources: Boza, arXiv 2401.02938 (the
    iteration); Meng et al., ALPS, arXiv 2406.07831 (rising penalties).

    Parameters
    ----------
    initial : {'sparsegpt', 'wanda', 'magnitude'}
        The method whose solution it starts from.
    levels : tuple of float
        Penalties rho, weak to strong, in units of the scaled Hessian's diagonal.
    steps : int
        Iterations at each level.
    **switches
        Those of `Method`.
    """

    initial: Start = "sparsegpt"
    levels: tuple[Annotated[float, "> 0"], ...] = (0.1, 0.2, 0.4, 0.8, 1.6)
    steps: Annotated[int, ">= 1"] = 3
    name = "admm"
    products = 2 * (15 + 10)  # 15 steps, and a refit of about 10
    needs = (GRAM, NORMS)

    def solve(self, weight: Tensor, stats: Statistics, pattern: Pattern) -> Solution:
        """The better of the start and of where the iteration ends, refitted; weight [r, c]."""
        start = STARTS[self.initial]().solve(weight, stats, pattern)
        hessian, schedule = stats.hessian(), []
        for level in self.levels:
            inverse = stats.cached(("admm", level), partial(scaled_inverse, hessian, level))
            schedule.append((level, inverse))
        sparse, mask = iterate(weight, start.weight, hessian, schedule, self.steps, pattern)
        kept = refit(weight, sparse, mask, hessian)
        found = replace(start, weight=kept, mask=mask, refitted=True)
        return min(start, found, key=lambda one: squared_error(weight, one.weight, hessian))


def squared_error(weight: Tensor, new: Tensor, hessian: Tensor) -> float:
    """tr((W - W') H (W - W')^T)."""
    change = weight - new
    return ((change @ hessian) * change).sum(dtype=torch.float64).item()


def scaled_inverse(hessian: Tensor, level: float) -> Tensor:
    """(S H S + level I)^-1 with S = diag(H)^-1/2, [c, c]."""
    scale = hessian.diagonal().rsqrt()
    scaled = hessian * scale * scale[:, None]
    scaled.diagonal().add_(level)
    return torch.cholesky_inverse(torch.linalg.cholesky(scaled))


def iterate(
    weight: Tensor,
    start: Tensor,
    hessian: Tensor,
    schedule: list[tuple[float, Tensor]],
    steps: int,
    pattern: Pattern,
) -> tuple[Tensor, Tensor]:
    """The sparse copy that ADMM arrives at, [r, c], and its mask, bool; weight, start [r, c],
    schedule (rho, inverse)."""
    norms = hessian.diagonal().sqrt()
    aim = (weight @ hessian) / norms  # W S^-1 S H S, [r, c]
    sparse, dual, last = start * norms, torch.zeros_like(weight), schedule[0][0]
    for level, inverse in schedule:
        dual *= last / level
        last = level
        for _ in range(steps):
            near = (sparse - dual).mul_(level).add_(aim)
            free = near @ inverse + dual  # fits the outputs, near the sparse copy
            pruned = prune_rows(free.abs(), pattern, per_row=False)
            sparse = free.masked_fill(pruned, 0)  # nearest sparse weights
            dual = free - sparse
    return sparse / norms, ~pruned
