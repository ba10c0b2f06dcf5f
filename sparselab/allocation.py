"""Non-uniform allocation: how many zeros each block gets when the total is given.

`sl.prune(..., sparsity={block: fraction})` takes what the two functions here return, or a mapping of your own: block
numbers or the full names of linears to fractions or 'n:m'. `owl` asks where the outliers are, `by_sensitivity` what a
block costs when it alone is pruned.
"""
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import LongTensor, Tensor, nn

from .checks import check_ready, check_rows
from .errors import SparselabError, nearest
from .evaluate import window_losses
from .models import blocks_of, linears_of
from .patterns import Pattern, prune_rows

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)


# --- what sl.prune does with a mapping --------------------------------------------------------------------------------

@dataclass(frozen=True)
class Allocation:
    """A pattern for each block (by number) or linear (by its full name, which goes before its block)."""

    parts: dict[int | str, Pattern]

    @classmethod
    def parse(cls, spec: "Mapping | Allocation") -> "Allocation":
        """From the mapping that a user gave; a SparselabError says which entry is wrong."""
        if isinstance(spec, Allocation):
            return spec
        if not spec:
            raise SparselabError("sparsity={}: give each block (by number) or linear (by its full name) its sparsity.")
        return cls({key: _part(key, value) for key, value in spec.items()})

    def shares(self, names: Iterable[str], blocks: str) -> dict[str, Pattern]:
        """The pattern of each linear by its name, such as 'model.layers.3.mlp.up_proj'; blocks: 'model.layers'."""
        place = {name: int(name.removeprefix(blocks + ".").split(".")[0]) for name in names}
        for key in self.parts:
            if key not in place and key not in place.values():
                raise SparselabError(f"sparsity={{{key!r}: ...}}: no block or linear that is to be pruned is called that."
                                     + (nearest(key, place) if isinstance(key, str) else
                                        f" The blocks are {sorted({*place.values()})}."))
        for name, block in place.items():
            if name not in self.parts and block not in self.parts:
                raise SparselabError(f"sparsity={{...}} says nothing of block {block} ({name}): name all blocks that are "
                                     "to be pruned, or choose them with layers= and modules=.")
        return {name: self.parts.get(name, self.parts.get(block)) for name, block in place.items()}

    def __str__(self) -> str:
        return "allocated"


def _part(key: int | str, value: float | str) -> Pattern:
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        raise SparselabError(f"sparsity={{{key!r}: ...}}: a key is a block's number or a linear's full name.")
    try:
        return Pattern.parse(value)
    except SparselabError as error:
        raise SparselabError(f"sparsity of {key!r}: {error}") from error


def asked(shares: dict[str, Pattern], sizes: dict[str, int]) -> str:
    """What an allocation asks for, in words: the share of zeros in all matrices together, and the extremes."""
    total = sum(shares[name].sparsity * size for name, size in sizes.items()) / sum(sizes.values())
    low, high = (choose(share.sparsity for share in shares.values()) for choose in (min, max))
    return f"{total:.4g} allocated, {low:.4g} to {high:.4g}"


# --- OWL --------------------------------------------------------------------------------------------------------------

def owl(model: nn.Module, windows: LongTensor, sparsity: float, *, threshold: float = 5.0, spread: float = 0.08
        ) -> dict[int, float]:
    """Sparsity of each block by OWL: blocks with more outliers among their Wanda scores keep more weights.

    windows: token ids [n, seqlen], as sl.calibration gives. threshold: an outlier is a score above so many times the
    block's mean score (M). spread: how far a block may be from the target (lambda). The mean over the blocks, which are
    of one size, is exact. Source: Yin et al., arXiv 2310.05175, defaults M = 5 and lambda = 0.08. Their code stretches the
    outlier shares to a range of 2 lambda and centres the result on their mean, so that a block may end up nearly 2 lambda
    off; here the farthest block is lambda off.
    """
    target = _fraction(sparsity)
    if not 0 < spread <= min(target, 1 - target) or threshold <= 0:
        raise SparselabError(f"owl(sparsity={sparsity}, threshold={threshold}, spread={spread}): the threshold must be "
                             "positive, and sparsity - spread and sparsity + spread must lie in 0 to 1.")
    norms = input_norms(model, windows)
    shares = [outlier_share(_scores(model, block, norms).values(), threshold) for block in range(len(blocks_of(model)))]
    return dict(enumerate(owl_shares(shares, target, spread)))


def outlier_share(scores: Iterable[Tensor], threshold: float) -> float:
    """Share of the entries of a block's score matrices, taken together, that exceed threshold times their mean."""
    scores = torch.cat([matrix.flatten() for matrix in scores])
    return (scores > threshold * scores.mean(dtype=torch.float64)).double().mean().item()


def owl_shares(outliers: Sequence[float], target: float, spread: float) -> list[float]:
    """s_l = s - t (D_l - mean D), with t such that the farthest block is `spread` away; the target where all D are equal."""
    mean = sum(outliers) / len(outliers)
    farthest = max(abs(share - mean) for share in outliers)
    return [target - spread * (share - mean) / farthest if farthest > 1e-12 else target for share in outliers]


# --- a budget from measured sensitivity -------------------------------------------------------------------------------

def by_sensitivity(model: nn.Module, windows: LongTensor, sparsity: float, *, levels: Sequence[float] = LEVELS,
                   losses: dict[int, list[float]] | None = None) -> dict[int, float]:
    """Sparsity of each block, so that the sum of the losses of pruning each block alone is least and the total is exact.

    windows: token ids [n, seqlen]; levels: the sparsities that are tried, so the lowest and highest that a block can get;
    losses: what `sensitivity` measured with the same levels, if it has been called. The curves are made convex and spent
    by `spend`. That losses of several blocks add up is an assumption.
    """
    target, levels = _fraction(sparsity), _levels(levels)
    if not levels[0] <= target <= levels[-1]:
        raise SparselabError(f"sparsity {target:g} is outside the levels {levels[0]:g} to {levels[-1]:g} between which the "
                             "blocks are tried: choose levels= on both sides of it.")
    losses = sensitivity(model, windows, levels) if losses is None else losses
    sizes = {block: sum(w.weight.numel() for w in linears_of(model, [block]).values()) for block in losses}
    curves = {block: [(level * sizes[block], loss) for level, loss in zip(levels, losses[block], strict=True)]
              for block in losses}
    zeros = spend(curves, target * sum(sizes.values()))
    return {block: zeros[block] / sizes[block] for block in zeros}


@torch.no_grad()
def sensitivity(model: nn.Module, windows: LongTensor, levels: Sequence[float] = LEVELS) -> dict[int, list[float]]:
    """Mean loss of the windows [n, seqlen], nats a token, with one block pruned to each level by Wanda's mask and all
    others dense; by block. The model is left as it was."""
    norms, losses = input_norms(model, windows), {}
    for block in range(len(blocks_of(model))):
        linears, scores = linears_of(model, [block]), _scores(model, block, norms)
        dense, losses[block] = {name: linear.weight.clone() for name, linear in linears.items()}, []
        try:
            for pattern in map(Pattern.parse, _levels(levels)):
                for name, linear in linears.items():
                    linear.weight.copy_(dense[name].masked_fill(prune_rows(scores[name], pattern, per_row=True), 0))
                losses[block].append(_mean_loss(model, windows))
        finally:
            for name, linear in linears.items():
                linear.weight.copy_(dense[name])
    return losses


def spend(curves: dict[int, list[tuple[float, float]]], budget: float) -> dict[int, float]:
    """Zeros of each block, `budget` in all, of least total loss; curves: (zeros, loss) by block, zeros increasing.

    Each curve is replaced by its lower convex hull. On hulls the best choice takes segments in the order of their slopes,
    the price of one more zero, whatever block they belong to; the last one in part. That price is the Lagrange multiplier.
    """
    zeros = {block: points[0][0] for block, points in curves.items()}
    left = budget - sum(zeros.values())
    segments = [(_slope(low, high), low[0], high[0] - low[0], block)
                for block, points in curves.items() for low, high in pairwise(lower_hull(points))]
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


# --- shared -----------------------------------------------------------------------------------------------------------

@torch.no_grad()
def input_norms(model: nn.Module, windows: LongTensor) -> dict[str, Tensor]:
    """||X_j||_2 of the inputs of every linear in the dense model, float32 [c], by its name; windows [n, seqlen]."""
    check_ready(model)
    check_rows(model, windows, "the calibration")
    linears = linears_of(model)
    squares = {name: torch.zeros(linear.in_features, device=linear.weight.device) for name, linear in linears.items()}

    def add(_, args, name):
        squares[name] += args[0].flatten(0, -2).float().square().sum(0)      # [tokens, c] -> [c]

    handles = [linear.register_forward_pre_hook(partial(add, name=name)) for name, linear in linears.items()]
    try:
        _mean_loss(model, windows)
    finally:
        for handle in handles:
            handle.remove()
    return {name: square.sqrt() for name, square in squares.items()}


def _scores(model: nn.Module, block: int, norms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Wanda's |W_ij| ||X_j|| of the linears of a block, [r, c] each."""
    return {name: linear.weight.detach().float().abs() * norms[name] for name, linear in linears_of(model, [block]).items()}


def _mean_loss(model: nn.Module, windows: LongTensor) -> float:
    return torch.cat([window_losses(model, part) for part in windows.split(8)]).double().mean().item()


def _fraction(sparsity: float | str) -> float:
    pattern = Pattern.parse(sparsity)
    if pattern.m:
        raise SparselabError(f"sparsity {sparsity!r}: what is divided among the blocks is a fraction such as "
                             f"{pattern.sparsity:g}. n:m leaves nothing to divide: every block has the same.")
    return pattern.sparsity


def _levels(levels: Sequence[float]) -> list[float]:
    found = [*map(_fraction, levels)]
    if len(found) < 2 or found != sorted({*found}):
        raise SparselabError(f"levels={levels}: two or more different fractions, from the lowest to the highest.")
    return found
