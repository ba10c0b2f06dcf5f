"""Magnitude pruning: the smallest weights go, whatever their inputs are (the baseline)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import SparselabError
from ..numerics.statistics import Statistics
from ..patterns import Pattern, prune_rows
from .base import Method, Solution, keep_weights


@dataclass(frozen=True)
class Magnitude(Method):
    """Zero the smallest |W|.

    Source: Han et al., arXiv 1506.02626.

    Parameters
    ----------
    scope : {'matrix', 'global'}
        What the weights compete within: their matrix, or the whole model. Then the total is exact,
        and the sparsity of each matrix is what comes out. n:m patterns choose within each group, so
        the scope does not matter to them.
    **switches
        Those of `Method`.
    """

    scope: Literal["matrix", "global"] = "matrix"
    name = "magnitude"

    @property
    def allocates(self) -> bool:
        """Over the whole model the thresholds divide the zeros."""
        return self.scope == "global"

    def shares(self, weights: dict[str, Tensor], pattern: Pattern) -> dict[str, Pattern]:
        """The pattern of each matrix by name, as the threshold divides the zeros among them."""
        if self.scope == "matrix" or pattern.m:
            return super().shares(weights, pattern)
        if any(weight.is_meta for weight in weights.values()):
            raise SparselabError(
                "Magnitude(scope='global') compares the weights of all matrices, and so needs the"
                " model in memory: load it with sl.load, or use scope='matrix'."
            )
        return dict(zip(weights, global_shares(weights.values(), pattern), strict=True))

    def solve(self, weight: Tensor, stats: Statistics, pattern: Pattern) -> Solution:
        """The mask of the smallest |W| [r, c]; the statistics are not looked at."""
        return keep_weights(weight, prune_rows(weight.abs(), pattern, per_row=False))


def global_shares(weights: Iterable[Tensor], pattern: Pattern) -> list[Pattern]:
    """The sparsity each matrix gets when the smallest weights of all matrices together are pruned.

    The threshold is found by bisection on the bit pattern of |W| as float32, which orders like the
    number: exact, and without a copy of the model. Weights that tie at the threshold go in the
    order of the matrices.
    """
    weights = list(weights)
    room = pattern.zeros(sum(w.numel() for w in weights))
    low, high = -1, 0x7F800000  # bits of +infinity
    while high - low > 1:  # smallest bits with count(<= bits) >= room
        middle = (low + high) // 2
        counts = [_count(weight, middle).to(weights[0].device) for weight in weights]
        enough = int(sum(counts)) >= room  # asked once: each time stops a GPU
        low, high = (low, middle) if enough else (middle, high)
    below = [int(_count(w, high - 1)) for w in weights]
    room -= sum(below)
    shares = []
    for weight, count in zip(weights, below, strict=True):
        tied = min(room, int(_count(weight, high)) - count)
        room -= tied
        shares.append(Pattern((count + tied) / weight.numel()))
    return shares


def _count(weight: Tensor, bits: int) -> Tensor:
    return (weight.detach().float().abs().view(torch.int32) <= bits).sum()
