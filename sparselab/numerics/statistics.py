"""What a method may know of a layer's inputs: their second moments, gathered in one pass."""

from collections.abc import Callable, Collection, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import SparselabError
from ..runtime import distributed
from ..runtime.memory import chunk_size
from .cholesky import add_gram, inverse_factor, live_mean, mirror, tensor_cores

GRAM, NORMS, MOMENTS, CROSS = "gram", "norms", "moments", "cross"
DAMP = 0.01  # SparseGPT's damping
NOISE = 0.5  # damping per input and token, where it is more
COLUMNS = 1024  # of a Gram matrix, multiplied at a time: a CPU's library copies what it multiplies


class Statistics:
    """Second moments of the inputs X [c, N] that one or more linears share, tokens as columns.

    `gram` [c, c] is the raw sum X X^T in float32, only where a method asked for it; `square` [c] is
    its diagonal; `sample` [k, c] keeps some tokens, so that methods without a Gram matrix can still
    report an output error. `sums` and `between` [c] give means and variances (DSnoT); `cross` [c,
    c] is X_d X^T, where X_d are the inputs at the same place in the dense model; `drift` [r, c] is
    D X^T, where D [r, N] is what the residual stream lacks.

    Parameters
    ----------
    width : int
        How many inputs there are, c.
    device : torch.device
        Where the sums are kept.
    needs : collection of {'gram', 'norms', 'moments', 'cross'}
        What is gathered.
    every : int
        Without a Gram matrix, one token of so many is kept for the output error.
    """

    def __init__(
        self, width: int, device: torch.device, *, needs: Collection[str] = (GRAM,), every: int = 1
    ):
        self.tokens, self.sequences, self.every = 0, 0, every
        vector = partial(torch.zeros, width, device=device)
        matrix = partial(torch.zeros, width, width, device=device)
        squares = (NORMS in needs or MOMENTS in needs) and GRAM not in needs  # else its diagonal
        self.square = vector() if squares else None
        self.sums, self.between = (vector(), vector()) if MOMENTS in needs else (None, None)
        self.gram = matrix() if GRAM in needs else None
        self.cross = matrix() if CROSS in needs else None
        self.drift: Tensor | None = None
        self.samples: list[Tensor] = []
        self._cache: dict = {}
        self._ridges: dict[float, Tensor] = {}  # what `hessian` adds, by damping
        self.shared = True  # by several matrices: what is made of it is kept for the next

    @classmethod
    def of(cls, x: Tensor, dense: Tensor | None = None, **options) -> "Statistics":
        """Of inputs at hand, x [..., c], and those of the dense model, `dense` [..., c]."""
        stats = cls(x.shape[-1], x.device, **options)
        stats.add(x, dense)
        return stats._mirrored()

    def add(
        self,
        x: Tensor,
        dense: Tensor | None = None,
        drift: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Add tokens, x [..., seqlen, c], a sequence is what the second last dimension holds;
        `dense` [..., seqlen, c] the same place in the dense model; `drift` [..., seqlen, r] its
        residual stream less the present one; `weights` [..., seqlen] how much a token's squared
        error counts, which DSnoT's means and variances cannot heed.
        """
        self._ridges.clear()
        if self.sums is not None:
            self._add_moments(x.detach().float())
        elif weights is not None:
            x, dense, drift = (weighed(tokens, weights) for tokens in (x, dense, drift))
        x = x.detach().reshape(-1, x.shape[-1])  # [tokens, c]
        if self.gram is not None:
            add_gram(self.gram, x)
        else:
            some = x[-self.tokens % self.every :: self.every]  # every k-th token
            self.samples.append(some.clone())  # a view would hold all
        if self.cross is not None:
            with tensor_cores(x.dtype):
                self.cross.addmm_(dense.detach().reshape(x.shape).float().T, x.float())
        if drift is not None:
            lack = drift.reshape(len(x), -1).T @ x.float()  # [r, c]
            self.drift = lack if self.drift is None else self.drift.add_(lack)
        if self.square is not None:
            for part in x.split(chunk_size(x.device, 8 * x.shape[1], 1024)):
                self.square += part.float().square().sum(dim=0)
        self.tokens += len(x)

    def _add_moments(self, x: Tensor) -> None:
        sums = x.sum(-2).reshape(-1, x.shape[-1])  # [sequences, c]
        self.sums += sums.sum(0)
        self.between += sums.square().sum(0) / x.shape[-2]
        self.sequences += len(sums)

    def target_cross(self, weight: Tensor) -> Tensor:
        """T X^T for what a linear should give, T = W X_d and what its residual stream lacks;
        weight, result [r, c]."""
        outputs = weight @ self.cross
        return outputs if self.drift is None else outputs.add_(self.drift)

    @property
    def mean(self) -> Tensor:
        """Token sum of every input per sequence, averaged over the sequences, [c]: the unit of
        DSnoT's threshold."""
        return self.sums / self.sequences

    @property
    def variance(self) -> Tensor:
        """Variance within the sequences [c], exactly 0 where it is no more than rounding."""
        variance = (self.square - self.between) / self.tokens
        return variance * (variance > 1e-6 * self.square / self.tokens)

    @property
    def damping(self) -> float:
        """For regressions and refits, as a share of the Hessian's mean diagonal: grows with the
        inputs per token, since weights fitted to few tokens fit their noise (bench/few-tokens.csv).
        """
        return max(DAMP, NOISE * self.gram.shape[0] / self.tokens)

    def hessian(self, damp: float | None = None) -> Tensor:
        """H = X X^T / N + damp * mean diagonal * I, float32 [c, c]; always-zero inputs get the
        mean, as `inverse_factor` does, so that H is positive definite. damp: None = `damping`."""
        damp = self.damping if damp is None else damp
        hessian = self.gram / self.tokens
        if damp not in self._ridges:  # kept: the choice of the live inputs stops a GPU
            dead = self.gram.diagonal() == 0
            mean = live_mean(hessian.diagonal(), dead)
            self._ridges[damp] = damp * mean + mean * dead
        hessian.diagonal().add_(self._ridges[damp])
        return hessian

    def finish(self, name: str) -> "Statistics":
        """Add up what other processes saw, fill the Gram matrix' other half, and refuse what is not
        finite, naming the module."""
        distributed.all_reduce(
            self.square, self.sums, self.between, self.gram, self.cross, self.drift
        )
        self.tokens = distributed.all_reduce_scalar(self.tokens)
        self.sequences = distributed.all_reduce_scalar(self.sequences)
        self._mirrored()
        seen = self.square if self.square is not None else torch.cat(self.samples).float()
        if not torch.isfinite(seen).all():
            raise SparselabError(
                f"the calibration inputs of {name} are not finite (NaN or infinite). Look for"
                " broken weights before it, or load the model with dtype=torch.float32: float16"
                " overflows."
            )
        return self

    def _mirrored(self) -> "Statistics":
        """With both halves of the Gram matrix, of which `add` fills the lower one."""
        if self.gram is not None:
            mirror(self.gram)
            self.square = self.gram.diagonal().clone()
        return self

    @property
    def norms(self) -> Tensor:
        """||X_j||_2 of every input over all calibration tokens, float32 [c]."""
        return self.square.sqrt()

    def relative_error(self, weight: Tensor, new: Tensor) -> float:
        """||W X - W' X|| / ||W X||: exact from the Gram matrix, else on the sampled tokens. weight,
        new [r, c]."""
        whole, change = self.squared_norms(weight, weight - new).tolist()
        return share(change, whole)

    def squared_norms(self, *weights: Tensor) -> Tensor:
        """||W X||^2 of each W [r, c], float64 [n]."""
        if self.gram is not None:
            return torch.stack([*map(self._norm_from_gram, weights)])
        x = torch.cat(self.samples).float()  # [k, c]
        squares = [(x @ weight.T).square_().sum(dtype=torch.float64) for weight in weights]
        return torch.stack(squares)

    def _norm_from_gram(self, weight: Tensor) -> Tensor:
        """tr(W G W^T), some columns of G at a time."""
        total = 0
        for gram, part in zip(self.gram.split(COLUMNS, 1), weight.split(COLUMNS, 1), strict=True):
            total = total + (weight @ gram).mul_(part).sum(dtype=torch.float64)
        return total

    def inverse_factor(self, damp: float, tries: int = 6) -> tuple[Tensor, float, int]:
        """Upper triangular R with H^-1 = R^T R, H = X X^T / N + damp * mean(diag) * I; the damping
        used; the tries.

        SparseGPT (arXiv 2301.00774), section 3.3. Built from the last inputs to the first out of
        matrix products, in place of factor, invert, factor again. Inputs that are always zero get
        the mean curvature, so that they stay out of everybody's way. A failed factorisation is
        tried again with ten times the damping, and told. Kept for the next matrix with the same
        inputs, and for the next sparsity.
        """
        return self.cached(damp, lambda: inverse_factor(self.gram, damp, tries, self.tokens))

    def cached(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gave the first time, kept for the other matrices with the same inputs; where
        there are no others, only until something else is made."""
        if key not in self._cache:
            if not self.shared:
                self._cache.clear()
            self._cache[key] = make()
        return self._cache[key]

    @property
    def dead(self) -> Tensor:
        """Inputs that are zero on every calibration token, bool [c]."""
        return self.square == 0


def weighed(tokens: Tensor | None, weights: Tensor) -> Tensor | None:
    """Tokens [..., c], or such in another shape, times the roots of their weights, float32."""
    if tokens is None:
        return None
    roots = weights.to(tokens.device).sqrt().unsqueeze(-1)
    return tokens.detach().float().reshape(*weights.shape, tokens.shape[-1]) * roots


def share(change: float, whole: float) -> float:
    """The square root of change / whole, both squared lengths; rounding may make them negative."""
    return (max(change, 0.0) / whole) ** 0.5 if whole > 0 else float(change > 0)
