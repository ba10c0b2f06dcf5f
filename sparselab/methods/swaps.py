"""Exact swaps: the Gram matrix knows what every exchange of a kept for a pruned weight does to the
output error."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SparselabError
from ..numerics.statistics import GRAM, Statistics
from ..patterns import Pattern, prune_rows
from .base import Method, Solution, check_start, keep_weights
from .dsnot import STARTS, start_scores


@dataclass(frozen=True)
class Swaps(Method):
    """Swap one pruned for one kept weight per output row, as long as ||W X - W' X||^2 falls: it
    never rises.

    With G = X X^T and u = G (w - w') of a row, pruning p and regrowing g changes the squared error
    by 2 w_p u_p + w_p^2 G_pp - 2 w_g u_g + w_g^2 G_gg - 2 w_p w_g G_pg. Source: SparseSwaps, arXiv
    2512.10922; DSnoT sees the same with G replaced by its mean part. `initial`: as for DSnoT.
    `max_cycles`: swaps per row at most. `candidates`: of each side, the so many best by their own
    terms are tried in pairs (n:m: all pairs of a group). Cost of a cycle: r (c + candidates^2)
    operations, against r c^2 for all pairs; one Gram matrix, as SparseGPT.
    """

    initial: str = "wanda"
    max_cycles: int = 100
    candidates: int = 16
    name = "swaps"
    products = 4
    needs = (GRAM,)

    def __post_init__(self):
        super().__post_init__()
        check_start(self, STARTS)
        if self.max_cycles < 0 or self.candidates < 1:
            raise SparselabError(
                f"Swaps(max_cycles={self.max_cycles}, candidates={self.candidates}): at least 0"
                " and 1."
            )

    def solve(self, weight: Tensor, stats: Statistics, pattern: Pattern) -> Solution:
        pruned = prune_rows(start_scores(self.initial, weight, stats), pattern, per_row=True)
        parts = [
            swap(w, p, stats.gram / stats.tokens, pattern, self.max_cycles, self.candidates)
            for w, p in zip(weight.split(1024), pruned.split(1024), strict=True)
        ]
        return keep_weights(weight, torch.cat(parts))


def swap(
    weight: Tensor, pruned: Tensor, gram: Tensor, pattern: Pattern, cycles: int, candidates: int
) -> Tensor:
    """weight [r, c], pruned bool [r, c], gram [c, c] -> pruned, after the best swap of every row,
    `cycles` times."""
    pruned = pruned.clone()
    gradient = (weight * pruned) @ gram  # u, [r, c]
    for _ in range(cycles):
        gain, p, g = _best_pair(weight, pruned, gradient, gram, pattern.m, candidates)
        better = gain < -1e-6 * (weight * pruned * gradient).sum(1).abs()  # [r]; less is rounding
        if not better.any():
            break
        index, p, g = better.nonzero()[:, 0], p[better], g[better]
        gradient[index] += weight[index, p, None] * gram[p] - weight[index, g, None] * gram[g]
        pruned[index, p], pruned[index, g] = True, False
    return pruned


def _best_pair(
    weight: Tensor, pruned: Tensor, gradient: Tensor, gram: Tensor, m: int, candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of every row: the change of its squared error by the best swap found, [r], and its two inputs
    p, g [r]."""
    own = weight.square() * gram.diagonal()
    cost = (2 * weight * gradient + own).masked_fill(pruned, torch.inf)  # of pruning, [r, c]
    gain = (own - 2 * weight * gradient).masked_fill(~pruned, torch.inf)  # of regrowing
    if m:
        return _best_pair_in_groups(weight, cost, gain, gram, m)
    k = min(candidates, weight.shape[1])
    (cost, p), (gain, g) = cost.topk(k, dim=1, largest=False), gain.topk(k, dim=1, largest=False)
    pairs = (
        weight.gather(1, p)[:, :, None]
        * weight.gather(1, g)[:, None]
        * gram[p[:, :, None], g[:, None]]
    )
    best, at = (cost[:, :, None] + gain[:, None] - 2 * pairs).flatten(1).min(1)  # over [r, k * k]
    return best, p.gather(1, at[:, None] // k)[:, 0], g.gather(1, at[:, None] % k)[:, 0]


def _best_pair_in_groups(
    weight: Tensor, cost: Tensor, gain: Tensor, gram: Tensor, m: int
) -> tuple[Tensor, ...]:
    """The same over all pairs within a group of m inputs."""
    r, c = weight.shape
    inside = torch.arange(c, device=weight.device).view(-1, m)
    blocks = gram[inside[:, :, None], inside[:, None]]  # [c / m, m, m]
    w = weight.view(r, -1, m)
    total = (
        cost.view(r, -1, m, 1)
        + gain.view(r, -1, 1, m)
        - 2 * w[..., :, None] * w[..., None, :] * blocks
    )
    best, at = total.flatten(1).min(1)  # over [r, c / m * m * m]
    group = at // (m * m) * m
    return best, group + at % (m * m) // m, group + at % m
