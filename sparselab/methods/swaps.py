"""Exact swaps: the Gram matrix knows what every exchange of a kept for a pruned weight does to the
output error."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..numerics.statistics import GRAM, Statistics
from ..patterns import Pattern, prune_rows
from ..runtime.transfer import Later
from .base import Method, Solution, Start, keep_weights
from .dsnot import start_scores

ROWS = 1024  # of a matrix whose swaps are found at a time


@dataclass(frozen=True)
class Swaps(Method):
    """Swap one pruned for one kept weight per output row, as long as ||W X - W' X||^2 falls: it
    never rises.

    With G = X X^T and u = G (w - w') of a row, pruning p and regrowing g changes the squared error
    by 2 w_p u_p + w_p^2 G_pp - 2 w_g u_g + w_g^2 G_gg - 2 w_p w_g G_pg. Cost of a cycle: r (c +
    candidates^2) operations, against r c^2 for all pairs; one Gram matrix, as SparseGPT. Source:
    SparseSwaps, arXiv 2512.10922; DSnoT sees the same with G replaced by its mean part.

    Parameters
    ----------
    initial : {'wanda', 'magnitude', 'sparsegpt'}
        The mask it starts from, as for `DSnoT`.
    max_cycles : int
        Swaps per row at most.
    candidates : int
        Of each side, the so many best by their own terms are tried in pairs (n:m: all pairs of a
        group).
    **switches
        Those of `Method`.
    """

    initial: Start = "wanda"
    max_cycles: Annotated[int, ">= 0"] = 100
    candidates: Annotated[int, ">= 1"] = 16
    name = "swaps"
    products = 4
    needs = (GRAM,)

    def solve(self, weight: Tensor, stats: Statistics, pattern: Pattern) -> Solution:
        """The mask after the swaps, some rows at a time; the kept weights [r, c] are left as they
        are."""
        start = prune_rows(start_scores(self.initial, weight, stats), pattern, per_row=True)
        pruned, gram = [], stats.gram / stats.tokens
        for rows, zeros in zip(weight.split(ROWS), start.split(ROWS), strict=True):
            pruned.append(swap(rows, zeros, gram, pattern, self.max_cycles, self.candidates))
        return keep_weights(weight, torch.cat(pruned))


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
        swaps, better, p, g = Later(better.any()), better[:, None], p[:, None], g[:, None]
        # The other rows change by 0: to pick these out would stop a GPU.
        lost, regrown = weight.gather(1, p) * better, weight.gather(1, g) * better  # [r, 1]
        gradient += lost * gram[p[:, 0]] - regrown * gram[g[:, 0]]
        pruned.scatter_(1, p, pruned.gather(1, p) | better)
        pruned.scatter_(1, g, pruned.gather(1, g) & ~better)
        if not swaps.read():
            break
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
    products = weight.gather(1, p)[:, :, None] * weight.gather(1, g)[:, None]  # w_p w_g, [r, k, k]
    pairs = products * gram[p[:, :, None], g[:, None]]
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
    pairs = 2 * w[..., :, None] * w[..., None, :] * blocks
    total = cost.view(r, -1, m, 1) + gain.view(r, -1, 1, m) - pairs
    best, at = total.flatten(1).min(1)  # over [r, c / m * m * m]
    group = at // (m * m) * m
    return best, group + at % (m * m) // m, group + at % m
