"""ALPS as published: ADMM over one matrix, penalties that rise with the changes of its mask."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..numerics.refit import refit
from ..numerics.spectrum import Spectrum
from ..numerics.statistics import GRAM, NORMS, Statistics
from ..patterns import Pattern, prune_rows
from .base import Method, Solution

EVERY, FEW, LEAST = 3, 3e-4, 30  # looks; the share of changes that ends it, and not before
MUCH, MOST = 0.005, 1e6  # of the mask changed: the penalty is strong enough; the strongest
GROWTH = ((0.1, 1.3), (MUCH, 1.2), (0.0, 1.1))  # more than this share changed: so much harder


@dataclass(frozen=True)
class ALPS(Method):
    """ALPS with its published constants, for comparison; `sl.ADMM` is ours.

    From D, the largest of the dense weights, and V = 0: B = (W H - V + rho D)(H + rho I)^-1; D
    keeps the largest of B + V / rho over the whole matrix (n:m: in groups); V += rho (B - D). Every
    3 iterations rho rises by 10 to 30 %, the more the more of the mask has changed; until half a
    percent of it has, rho is divided by 5, and what has changed is taken back. It ends where
    nothing changes any more. Then the largest of B, and conjugate gradients under their mask.
    Source: Meng et al., arXiv 2406.07831, algorithm 1 and section 3.3, and the defaults of their
    code, whose rules for small changes these are.

    Parameters
    ----------
    damp : float
        Ridge, as a share of the Hessian's mean diagonal.
    penalty : float
        The first rho, where the scaled Hessian has a unit diagonal.
    iterations : int
        At most.
    refit_steps : int
        Steps of the conjugate gradients at the end.
    **switches
        Those of `Method`.
    """

    damp: Annotated[float, "> 0"] = 0.01
    penalty: Annotated[float, "> 0"] = 0.1
    iterations: Annotated[int, ">= 1"] = 300
    refit_steps: Annotated[int, ">= 0"] = 10
    name = "alps"
    products = 2 * (40 + 12 + 10)
    squares, copies = 3, 8  # as ADMM's
    needs = (GRAM, NORMS)

    def solve(self, weight: Tensor, stats: Statistics, pattern: Pattern) -> Solution:
        """Mask and weights [r, c]."""
        spectrum = stats.cached(("spectrum", self.damp), lambda: Spectrum(self._hessian(stats)))
        pull = spectrum.pull(weight, self._hessian(stats))
        sparse, mask = self._iterate(weight, pull, spectrum, pattern)
        del spectrum, pull  # room for the Hessian, which was not held meanwhile
        hessian = stats.cached(("hessian", self.damp), lambda: self._hessian(stats))
        kept = refit(weight, sparse, mask, hessian, steps=self.refit_steps, tolerance=0.0)
        return Solution(kept, mask, damp=self.damp, tries=1, refitted=True)

    def _hessian(self, stats: Statistics) -> Tensor:
        """With the ridge alone at inputs that are always zero: what stands there goes first."""
        hessian = stats.gram / stats.tokens
        mean = hessian.diagonal().mean()
        hessian.diagonal().add_(self.damp * torch.where(mean > 0, mean, 1.0))
        return hessian

    def _iterate(
        self, weight: Tensor, pull: Tensor, spectrum: Spectrum, pattern: Pattern
    ) -> tuple[Tensor, Tensor]:
        dense, rho = spectrum.scaled(weight), self.penalty
        seen, moved = _largest(dense, pattern), False
        sparse = first = dense * seen
        dual, inverse = torch.zeros_like(dense), spectrum.inverse(rho)
        for step in range(1, self.iterations + 1):
            free = (pull - dual + rho * sparse) @ inverse
            shifted = free + dual / rho
            mask = _largest(shifted, pattern)
            sparse = shifted * mask
            dual = dual + rho * (free - sparse)
            if step % EVERY:
                continue
            changed = ((mask ^ seen).sum() / mask.sum().clamp(min=1)).item()
            moved = moved or changed > MUCH
            if moved and not changed:
                break
            if moved:
                rho = min(rho * next(factor for share, factor in GROWTH if changed > share), MOST)
            else:
                rho /= 5
                if changed:
                    sparse, dual = first, torch.zeros_like(dense)
            if step > LEAST and changed < FEW:
                break
            seen, inverse = mask, spectrum.inverse(rho, out=inverse)
        mask = _largest(free, pattern)
        return free * mask / spectrum.norms, mask


def _largest(weight: Tensor, pattern: Pattern) -> Tensor:
    """Where the largest weights of a matrix [r, c] are, or of its groups, bool."""
    return ~prune_rows(weight.abs(), pattern, per_row=False)
