"""DSnoT: move the mask, not the weights, until what the pruned weights used to add on average is
cancelled."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..numerics.statistics import DAMP, GRAM, MOMENTS, NORMS, Statistics
from ..patterns import Pattern, prune_rows
from .base import Method, Solution, Start, keep_weights
from .wanda import wanda_scores


@dataclass(frozen=True)
class DSnoT(Method):
    """Dynamic sparse no training: move the mask until the expected error of every row is near 0.

    Per cycle and output row, one pruned weight is regrown and one kept weight pruned so that e =
    sum over pruned j of W_ij E[X_j] moves towards 0. Inputs without variance are never regrown.
    n:m, as published: the weight pruned is the lowest Wanda score of the same group, whether that
    lowers e or not, and the sign rule always holds. Source: Zhang et al., arXiv 2310.08915,
    equations 3 to 5.

    Parameters
    ----------
    initial : {'wanda', 'magnitude', 'sparsegpt'}
        The mask it starts from, chosen per row: |W| ||X||, |W|, or W^2 / R_jj^2 with the
        calibration's own Hessian.
    max_cycles : int
        Swaps per row at most.
    threshold : float
        A row rests when |e| is no larger. Its unit is that of the published code, an output summed
        over the tokens of one sequence, so it scales with the sequence length and not with the
        batch.
    same_sign : bool
        A row rests before a swap that would flip the sign of e, so that |e| never grows.
    variance_power : float
        Pruned weights are regrown in the order of W_ij E[X_j] / Var[X_j]^power.
    grow : {'expected', 'wanda', 'magnitude'}
        Which of the pruned weights that lower e comes back first: the one of the order above, of
        the highest Wanda score, or of the largest |W|.
    drop : {'wanda', 'magnitude', 'expected'}
        Which of the kept weights whose loss lowers e is pruned first: the one of the lowest Wanda
        score, of the smallest |W|, or the one that lowers e most. In n:m patterns any of the same
        group.
    skip_ffn : bool
        The matrices of the feed-forward network keep the mask of `initial`.
    **switches
        Those of `Method`.
    """

    initial: Start = "wanda"
    max_cycles: Annotated[int, ">= 0"] = 50
    threshold: Annotated[float, ">= 0"] = 0.1
    same_sign: bool = True
    variance_power: Annotated[float, ">= 0"] = 1.0
    grow: Literal["expected", "wanda", "magnitude"] = "expected"
    drop: Literal["wanda", "magnitude", "expected"] = "wanda"
    skip_ffn: bool = False
    name = "dsnot"
    presets = ("published",)

    @classmethod
    def published(cls, family: str = "OPT", initial: str = "wanda") -> "DSnoT":
        """As the published command line runs it by default, for either family: attention alone
        (`--skip_layer mlp`), and without the sign rule (`--without_same_sign`, whose default is
        True)."""
        return cls(initial, same_sign=False, skip_ffn=True)

    def on(self, ffn: bool) -> "DSnoT":
        """Without a swap in the feed-forward network, where `skip_ffn`."""
        return replace(self, max_cycles=0) if ffn and self.skip_ffn else self

    @property
    def needs(self) -> tuple[str, ...]:
        """Means and variances of the inputs, and what `initial` needs."""
        start = (GRAM,) if self.initial == "sparsegpt" else ()
        return (NORMS, MOMENTS, *start)

    def solve(self, weight: Tensor, stats: Statistics, pattern: Pattern) -> Solution:
        """The mask after the swaps; the kept weights [r, c] are left as they are."""
        pruned = prune_rows(start_scores(self.initial, weight, stats), pattern, per_row=True)
        move = _move_in_groups if pattern.m else _move
        return keep_weights(weight, move(self, weight, pruned, stats, pattern))


def start_scores(initial: str, weight: Tensor, stats: Statistics) -> Tensor:
    """Importance of every weight by magnitude, Wanda or Optimal Brain Surgeon, [r, c]."""
    if initial == "magnitude":
        return weight.abs()
    if initial == "wanda":
        return wanda_scores(weight, stats.norms)
    factor, *_ = stats.inverse_factor(DAMP)
    return weight.abs() / factor.diagonal() * ~stats.dead  # dead inputs go first


def expected_error(weight: Tensor, pruned: Tensor, stats: Statistics) -> Tensor:
    """e = sum over pruned j of W_ij E[X_j], summed over the tokens of a sequence, [r]."""
    return (weight * stats.mean * pruned).sum(1)


def _growing_key(rule: DSnoT, weight: Tensor, effect: Tensor, stats: Statistics) -> Tensor:
    """By which pruned weights come back, the highest first, [r, c]; inputs without variance never
    do."""
    if rule.grow == "expected":
        smallest = torch.finfo(effect.dtype).tiny
        key = effect / stats.variance.clamp(min=smallest) ** rule.variance_power
    else:
        key = start_scores(rule.grow, weight, stats)
    return key.masked_fill(stats.variance <= 0, -torch.inf)


def _dropping_score(rule: DSnoT, weight: Tensor, effect: Tensor, stats: Statistics) -> Tensor:
    """By which kept weights are pruned, the lowest first, [r, c]."""
    return effect if rule.drop == "expected" else start_scores(rule.drop, weight, stats)


def _move(
    rule: DSnoT, weight: Tensor, pruned: Tensor, stats: Statistics, pattern: Pattern
) -> Tensor:
    """Unstructured swaps; pruned bool [r, c] -> a new one with as many zeros in every row.

    Everything is mirrored so that a row's error starts positive; side 0 lowers it, side 1 (not
    needed under the sign rule) raises it. Both lists of a side are consumed from their fronts, so
    that a count says which swaps were done.
    """
    error = expected_error(weight, pruned, stats)  # [r]
    mirror = torch.where(error < 0, -1.0, 1.0)
    effect = weight * stats.mean * mirror[:, None]  # [r, c], what pruning a weight adds to e
    error = error * mirror
    sides = [_Side(rule, weight, pruned, effect, stats)]
    if not rule.same_sign:
        sides.append(_Side(rule, weight, pruned, -effect, stats))
    active = torch.ones_like(error, dtype=torch.bool)
    for _ in range(min(rule.max_cycles, sides[0].length)):
        side = torch.where(error > 0, 0, len(sides) - 1)  # [r], which list serves this row now
        change = torch.stack([one.next_change() for one in sides]).gather(0, side[None])[0]
        new = error - change * torch.where(side == 0, 1, -1)
        active = active & torch.isfinite(change) & (error.abs() > rule.threshold)
        if rule.same_sign:
            active = active & (new > 0)
        error = torch.where(active, new, error)
        for k, one in enumerate(sides):
            one.done += active & (side == k)
    for one in sides:
        pruned = one.apply(pruned)
    return pruned


class _Side:
    """Swaps that lower e: regrow what adds most to it (grow [r, k]), prune what takes from it
    (prune [r, k])."""

    def __init__(
        self, rule: DSnoT, weight: Tensor, pruned: Tensor, effect: Tensor, stats: Statistics
    ):
        candidate = pruned & (effect > 0)
        key = _growing_key(rule, weight, effect, stats)
        self.length = min(rule.max_cycles, effect.shape[1])
        grow_key, self.grow = key.masked_fill(~candidate, -torch.inf).topk(self.length, dim=1)
        scores = _dropping_score(rule, weight, effect, stats)
        scores = scores.masked_fill(pruned | (effect >= 0), torch.inf)
        score, self.prune = scores.topk(self.length, dim=1, largest=False)
        exists = torch.isfinite(grow_key) & torch.isfinite(score)
        change = effect.gather(1, self.grow) - effect.gather(1, self.prune)  # of e, [r, k] >= 0
        self.change = change.masked_fill(~exists, torch.nan)
        self.done = torch.zeros(len(weight), dtype=torch.long, device=weight.device)

    def next_change(self) -> Tensor:
        """What the next swap of every row lowers e by, [r]; NaN where a list is exhausted."""
        at = self.done.clamp(max=self.length - 1)[:, None]
        return self.change.gather(1, at)[:, 0].masked_fill(self.done >= self.length, torch.nan)

    def apply(self, pruned: Tensor) -> Tensor:
        """Do the first `done` swaps of every row."""
        made = torch.arange(self.length, device=pruned.device) < self.done[:, None]  # [r, k]
        for index, value in ((self.grow, False), (self.prune, True)):
            pruned = pruned.scatter(1, index, torch.where(made, value, pruned.gather(1, index)))
        return pruned


def _move_in_groups(
    rule: DSnoT, weight: Tensor, pruned: Tensor, stats: Statistics, pattern: Pattern
) -> Tensor:
    """n:m swaps: regrow in the order of the key, prune the lowest score of the same group of m
    inputs. Nothing in the group may lower e: as published, such a swap is done all the same."""
    (r, c), m, rows = weight.shape, pattern.m, torch.arange(len(weight), device=weight.device)
    error = expected_error(weight, pruned, stats)
    mirror = torch.where(error < 0, -1.0, 1.0)
    effect, error = weight * stats.mean * mirror[:, None], error * mirror
    key = _growing_key(rule, weight, effect, stats)
    key = key.masked_fill(~(pruned & (effect > 0)), -torch.inf)
    length = min(rule.max_cycles, c)
    keys, grow = key.topk(length, dim=1)  # [r, k]
    scores = _dropping_score(rule, weight, effect, stats)
    scores = scores.masked_fill(pruned, torch.inf).view(r, c // m, m)
    pruned, active = pruned.clone(), torch.ones(r, dtype=torch.bool, device=weight.device)
    for k in range(length):
        g = grow[:, k]
        score, offset = scores[rows, g // m].min(1)  # [r], lowest kept score of the group
        p = g // m * m + offset
        new = error + effect[rows, p] - effect[rows, g]
        exists = torch.isfinite(keys[:, k]) & torch.isfinite(score)
        active = active & exists & (error > rule.threshold) & (new > 0)
        error = torch.where(active, new, error)
        pruned[rows, g] &= ~active
        pruned[rows, p] |= active
        scores.view(r, c)[rows, p] = scores.view(r, c)[rows, p].masked_fill(active, torch.inf)
    return pruned
