"""ADMM: mask and weights of a matrix together, from its Gram matrix alone."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from ..numerics.refit import refit
from ..numerics.spectrum import Spectrum
from ..numerics.statistics import GRAM, NORMS, Statistics
from ..patterns import Pattern, prune_rows
from ..runtime.transfer import Later
from .base import Method, Solution, Start
from .magnitude import Magnitude
from .sparsegpt import SparseGPT
from .wanda import Wanda

STARTS = {method.name: method for method in (Magnitude, Wanda, SparseGPT)}


@dataclass(frozen=True)
class ADMM(Method):
    """Two copies of the weights, one that fits the outputs and one that is sparse, are drawn
    together ever harder, until the mask stands still.

    Inputs are scaled to unit norm, so that weights of all columns compete on equal terms over the
    whole matrix (n:m: within their groups). The eigenvectors of the scaled Hessian serve all
    penalties, all sparsities and all matrices with the same inputs. The kept weights are refitted
    at the end. The error on the calibration inputs, with `Statistics.damping`, as `fisher` counts
    it, is never worse than that of `initial`, whose solution is returned where it is the better
    one. Sources: Boza, arXiv 2401.02938 (the iteration); Meng et al., ALPS, arXiv 2406.07831
    (rising penalties, one decomposition; `sl.ALPS` is as published).

    Parameters
    ----------
    initial : {'sparsegpt', 'wanda', 'magnitude'}
        The method whose solution it starts from.
    penalty : float
        The first penalty rho, in units of the scaled Hessian's diagonal. A lower one gives the
        masks more time to change.
    growth : float
        What rho is multiplied by after every `every` iterations. Nearer to 1 is slower and lower.
    every : int
        Iterations between two looks at the mask.
    tolerance : float
        It ends when fewer than this share of the kept weights changed between two looks.
    steps : int
        Iterations at most.
    **switches
        Those of `Method`.
    """

    initial: Start = "sparsegpt"
    penalty: Annotated[float, "> 0"] = 0.1
    growth: Annotated[float, "> 1", "<= 10"] = 1.2
    every: Annotated[int, ">= 1"] = 3
    tolerance: Annotated[float, ">= 0", "< 1"] = 0.01
    steps: Annotated[int, ">= 1"] = 300
    name = "admm"
    presets = ("guided",)
    products = 2 * (40 + 12 + 20)  # some 40 steps, as many inverses as looks, a refit of about 20
    squares = 3  # eigenvectors, and twice that for LAPACK at work
    copies = 8  # the start, both copies, the multiplier, the aim, and steps in the making, too
    needs = (GRAM, NORMS)

    @classmethod
    def guided(cls, family: str = "") -> "ADMM":
        """By the model's own loss, for both families alike: errors count as the loss's squared
        gradient says, zeros are divided among all matrices by the loss that they are expected to
        cost, and what writes to the residual stream aims at the dense model's."""
        return cls(targets="dense-stream", fisher=True, divide=True)

    def solve(self, weight: Tensor, stats: Statistics, pattern: Pattern) -> Solution:
        """The better of the start and of where the iteration ends, refitted; weight [r, c]."""
        start = STARTS[self.initial]().solve(weight, stats, pattern)
        spectrum = stats.cached("spectrum", lambda: Spectrum(stats.hessian()))
        pull = spectrum.pull(weight, stats.hessian())
        sparse, mask = self._iterate(pull, start.weight, spectrum, pattern)
        del spectrum, pull  # room for the Hessian, which was not held meanwhile
        hessian = stats.cached("hessian", stats.hessian)
        kept = refit(weight, sparse, mask, hessian)
        found = replace(start, weight=kept, mask=mask, refitted=True)
        return min(start, found, key=lambda one: squared_error(weight, one.weight, hessian))

    def _iterate(
        self, pull: Tensor, start: Tensor, spectrum: Spectrum, pattern: Pattern
    ) -> tuple[Tensor, Tensor]:
        """The sparse copy that the iteration arrives at, [r, c], and its mask, bool; all in the
        units of the spectrum in between, as `pull` is."""
        rho, sparse = self.penalty, spectrum.scaled(start)
        dual, free = torch.zeros_like(pull), torch.empty_like(pull)
        inverse, seen = spectrum.inverse(rho), sparse != 0
        for step in range(1, self.steps + 1):
            near = torch.sub(sparse, dual, out=sparse).mul_(rho).add_(pull)
            torch.matmul(near, inverse, out=free).add_(dual)  # fits the outputs, near the sparse
            pruned = prune_rows(free.abs(), pattern, per_row=False)
            sparse.copy_(free).masked_fill_(pruned, 0)  # nearest sparse weights
            torch.sub(free, sparse, out=dual)
            if step % self.every == 0:
                mask = ~pruned
                still = Later((mask ^ seen).sum() <= self.tolerance * mask.sum())
                seen, rho, dual = mask, rho * self.growth, dual.div_(self.growth)
                if still.read():
                    break
                inverse = spectrum.inverse(rho, out=inverse)
        return sparse / spectrum.norms, ~pruned


def squared_error(weight: Tensor, new: Tensor, hessian: Tensor) -> float:
    """tr((W - W') H (W - W')^T)."""
    change = weight - new
    return ((change @ hessian) * change).sum(dtype=torch.float64).item()
