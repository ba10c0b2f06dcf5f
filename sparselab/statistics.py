"""What a method may know about the inputs of a layer: their second moments, gathered in one pass."""
import torch
from torch import Tensor

from .errors import SparselabError
from .factor import add_gram, inverse_factor

GRAM, NORMS = "gram", "norms"


class Statistics:
    """Second moments of the inputs X [c, N] that one or more linears share, tokens as columns.

    `gram` [c, c] is the raw sum X X^T in float32, only where a method asked for it; `square` [c] is its diagonal;
    `sample` [k, c] keeps some tokens, so that methods without a Gram matrix can still report an output error.
    """

    def __init__(self, width: int, device: torch.device, *, needs: tuple[str, ...] = (GRAM,), every: int = 1):
        self.tokens, self.every = 0, every
        self.square = torch.zeros(width, device=device) if NORMS in needs else None
        self.gram = torch.zeros(width, width, device=device) if GRAM in needs else None
        self.samples: list[Tensor] = []
        self._factors: dict[float, tuple[Tensor, float, int]] = {}

    @classmethod
    def of(cls, x: Tensor, **options) -> "Statistics":
        """Of inputs at hand, x [..., c]."""
        stats = cls(x.shape[-1], x.device, **options)
        stats.add(x)
        return stats

    def add(self, x: Tensor) -> None:
        """Add tokens, x [..., c]."""
        x = x.detach().reshape(-1, x.shape[-1])                              # [tokens, c]
        if self.gram is not None:
            add_gram(self.gram, x.float())
        else:
            self.samples.append(x[-self.tokens % self.every::self.every].clone())   # every k-th token; a view holds all
        if self.square is not None:
            for part in x.split(1024):                                       # small enough to stay in a CPU's cache
                self.square += part.float().square().sum(dim=0)
        self.tokens += len(x)

    def finish(self, name: str) -> "Statistics":
        """Mirror the Gram matrix' lower half, and refuse what is not finite, naming the module."""
        if self.gram is not None:
            self.gram = self.gram.tril().add_(self.gram.tril(-1).T)
            self.square = self.gram.diagonal().clone()
        seen = self.square if self.square is not None else torch.cat(self.samples).float()
        if not torch.isfinite(seen).all():
            raise SparselabError(f"the calibration inputs of {name} are not finite (NaN or infinite). Look for broken "
                                 "weights before it, or load the model with dtype=torch.float32: float16 overflows.")
        return self

    @property
    def norms(self) -> Tensor:
        """||X_j||_2 of every input over all calibration tokens, float32 [c]."""
        return self.square.sqrt()

    def relative_error(self, weight: Tensor, new: Tensor) -> float:
        """||W X - W' X|| / ||W X||: exact from the Gram matrix, else on the sampled tokens. weight, new [r, c]."""
        if self.gram is not None:
            change, whole = (((w @ self.gram) * w).sum(dtype=torch.float64) for w in (weight - new, weight))
        else:
            x = torch.cat(self.samples).float()                              # [k, c]
            change, whole = ((x @ w.T).square_().sum(dtype=torch.float64) for w in (weight - new, weight))
        return (change.clamp(min=0) / whole).sqrt().item() if whole > 0 else float(change > 0)

    def inverse_factor(self, damp: float, tries: int = 6) -> tuple[Tensor, float, int]:
        """Upper triangular R with H^-1 = R^T R, H = X X^T / N + damp * mean(diag) * I; the damping used; the tries.

        SparseGPT (arXiv 2301.00774), section 3.3. Built from the last inputs to the first out of matrix products, in
        place of factor, invert, factor again. Inputs that are always zero get the mean curvature, so that
        they stay out of everybody's way. A failed factorisation is tried again with ten times the damping, and told.
        Kept for the next matrix with the same inputs, and for the next sparsity.
        """
        if damp not in self._factors:
            self._factors[damp] = inverse_factor(self.gram / self.tokens, damp, tries)
        return self._factors[damp]

    @property
    def dead(self) -> Tensor:
        """Inputs that are zero on every calibration token, bool [c]."""
        return self.square == 0
