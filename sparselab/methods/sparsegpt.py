"""SparseGPT: prune column by column, and let the columns still to come make up for the error."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Annotated

import torch
from torch import Tensor

from ..numerics.statistics import GRAM, Statistics
from ..patterns import Pattern, lowest
from .base import Method, Solution

STRIP = 16  # columns between two products with all errors made so far in the block


@dataclass(frozen=True)
class SparseGPT(Method):
    """Optimal Brain Surgeon, one column at a time, with one inverse Hessian for all rows.

    Score W_ij^2 / R_jj^2 with H^-1 = R^T R. Source: Frantar and Alistarh, arXiv 2301.00774,
    algorithm 1.

    Parameters
    ----------
    block : int
        Columns that share one mask selection and one lazy update (for n:m rounded down to a
        multiple of m).
    damp : float
        Damping, as a fraction of the Hessian's mean diagonal.
    **switches
        Those of `Method`.
    """

    block: Annotated[int, ">= 1"] = 128
    damp: Annotated[float, ">= 0"] = 0.01
    name = "sparsegpt"
    products = 2
    needs = (GRAM,)

    @property
    def shares_column_loop(self) -> bool:
        """A subclass with its own way to prune one matrix is asked for one at a time."""
        kind = type(self)
        return kind.solve is SparseGPT.solve and kind.prune_matrix is Method.prune_matrix

    def solve(self, weight: Tensor, stats: Statistics, pattern: Pattern) -> Solution:
        """The mask, and kept weights [r, c] that make up for the pruned ones before them."""
        return self._solve([weight], stats, [pattern])[0]

    def solve_together(
        self, weights: list[Tensor], stats: Statistics, patterns: list[Pattern]
    ) -> list[Solution]:
        """In one column loop; one by one where n:m is not the same for all."""
        same = len({(pattern.n, pattern.m) for pattern in patterns}) == 1
        return (self._solve if same else super().solve_together)(weights, stats, patterns)

    def _solve(
        self, weights: list[Tensor], stats: Statistics, patterns: list[Pattern]
    ) -> list[Solution]:
        factor, damp, tries = stats.inverse_factor(self.damp)
        pruned = prune_columns(weights, factor, stats.dead, patterns, self.block)
        return [Solution(weight, mask, damp, tries) for weight, mask in pruned]


def prune_columns(
    weights: list[Tensor], factor: Tensor, dead: Tensor, patterns: list[Pattern], block: int
) -> list[tuple[Tensor, Tensor]]:
    """The column loop: weights [r_k, c] with the same inputs, factor R [c, c] upper -> new weights
    [r_k, c], masks of what is kept, bool [r_k, c]. The patterns' n:m is the same, their shares may
    differ.

    Rows need each other only where a block's mask is selected, so that the matrices go through the
    loop stacked, and each selects its own. Works on the transposed weights, so that a column lies
    contiguous in memory.
    """
    pattern, c = patterns[0], len(factor)
    w = torch.cat([weight.T for weight in weights], dim=1)  # [c, sum r]: column j of all is row j
    pruned = torch.zeros_like(w, dtype=torch.bool)
    block = max(block - block % pattern.m, pattern.m) if pattern.m else block
    loop, rows = block_loop(w.device, min(block, c)), [len(weight) for weight in weights]
    for a in range(0, c, block):
        b = min(a + block, c)
        scale = _scale(factor.diagonal()[a:b], dead[a:b])
        if not pattern.m:
            scores = (w[a:b] * scale).square_().split(rows, 1)  # [b - a, r_k] each
            places = pruned[a:b].split(rows, 1)
            for share, score, place in zip(patterns, scores, places, strict=True):
                place.copy_(_select(score, share, a))
        errors = loop(w[a:b], pruned[a:b], factor[a:b, a:b], scale, pattern)
        w[b:].addmm_(factor[a:b, b:].T, errors, alpha=-1)  # push the block's error to the right
    w.masked_fill_(pruned, 0)
    found = []
    for weight, place in zip(w.split(rows, 1), pruned.split(rows, 1), strict=True):
        found.append((weight.T.contiguous(), place.T.contiguous().logical_not_()))
    return found


def _select(scores: Tensor, pattern: Pattern, a: int) -> Tensor:
    """A matrix' weights to prune among the columns from a on, bool, by their scores [columns, r]:
    the zeros up to each block's end are the floor of the asked share, so that the total is exact.
    """
    k, r = scores.shape
    count = pattern.zeros(r * (a + k)) - pattern.zeros(r * a)
    return lowest(scores.reshape(1, -1), count).view(k, r)


def block_loop(
    device: torch.device, block: int
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Pattern], Tensor]:
    """What prunes a block of so many columns: the Triton kernel on a GPU where it works, else the
    plain loop."""
    kernel = _kernel() if device.type == "cuda" else None
    return kernel.prune_block if kernel and block <= kernel.WIDEST else prune_block


@cache
def _kernel() -> ModuleType | None:
    """sparsegpt_triton, once it has worked here: Triton may be absent, or lack the C compiler that
    it calls."""
    try:
        from . import sparsegpt_triton as kernels

        one = torch.ones(1, 1, device="cuda")
        kernels.prune_block(one, one > 0, one, one, Pattern(0.5)).cpu()
        return kernels
    except Exception as error:  # whatever it is, there is the plain loop
        warnings.warn(
            f"SparseGPT's kernel does not run here ({type(error).__name__}: {error}), so its plain"
            " loop does the work. Triton comes with torch's CUDA wheels, and needs a C compiler.",
            stacklevel=2,
        )
        return None


def _scale(diagonal: Tensor, dead: Tensor) -> Tensor:
    """1 / R_jj as a column [k, 1]; next to nothing for inputs that never fire, so that their
    weights go first."""
    scale = 1 / diagonal
    return torch.where(dead, 1e-8 * scale.min(), scale)[:, None]


def prune_block(
    w: Tensor, pruned: Tensor, factor: Tensor, scale: Tensor, pattern: Pattern
) -> Tensor:
    """Columns of one block in order: w, pruned [k, r] change in place, factor R [k, k]; -> errors
    e_j = w_j / R_jj.

    Before its turn, column j pulls what the errors of the columns before it owe: w_j -= sum over i
    < j of R_ij e_i. First a strip of columns at once from the strips before it, then each column
    from its own strip.
    """
    errors, owed = torch.zeros_like(w), factor.triu(1).T.contiguous()  # errors not yet made are 0
    for a in range(0, len(w), strip := pattern.m or STRIP):
        part = slice(a, a + strip)
        w[part].addmm_(owed[part, :a], errors[:a], alpha=-1)
        if pattern.m:
            chosen = (w[part] * scale[part]).square_().topk(pattern.n, dim=0, largest=False).indices
            pruned[part].scatter_(0, chosen, True)
        inverse = pruned[part] / factor.diagonal()[part, None]  # kept weights make no error
        made, columns = errors[part].T, (w[part], owed[part, part], inverse, errors[part])
        for column, row, gain, error in zip(*columns, strict=True):
            torch.mul(column.addmv_(made, row, alpha=-1), gain, out=error)
    return errors
