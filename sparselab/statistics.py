"""What a method may know about the inputs of a layer: their second moments, gathered in one pass."""
import torch
from torch import Tensor

from .errors import SparselabError

PANELS = 4              # half of a symmetric or triangular product, in 4 panels, costs 10/16 of the whole product
LEAF = 128              # rows of the inverse factor computed at a time
ROUNDING = 1e-6         # a pivot below this share of its diagonal entry is float32 rounding, not curvature
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
            _add_gram(self.gram, x.float())
        else:
            self.samples.append(x[-self.tokens % self.every::self.every].clone())    # every k-th token; a view would hold all
        if self.square is not None:
            self.square += torch.linalg.vector_norm(x, dim=0, dtype=torch.float32).square_()
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

        SparseGPT (arXiv 2301.00774), section 3.3. One Cholesky factorisation of the reversed matrix and one triangular
        inverse in place of factor, invert, factor again. Inputs that are always zero get the mean curvature, so that
        they stay out of everybody's way. A failed factorisation is tried again with ten times the damping, and told.
        Kept for the next matrix with the same inputs, and for the next sparsity.
        """
        if damp not in self._factors:
            self._factors[damp] = _inverse_factor(self.gram / self.tokens, damp, tries)
        return self._factors[damp]

    @property
    def dead(self) -> Tensor:
        """Inputs that are zero on every calibration token, bool [c]."""
        return self.square == 0


def _panels(width: int) -> list[tuple[int, int]]:
    """Borders a:b of PANELS strips."""
    step = max(1, -(-width // PANELS))
    return [(a, min(a + step, width)) for a in range(0, width, step)]


def _add_gram(gram: Tensor, x: Tensor) -> None:
    """gram [c, c] += x^T x for x [tokens, c], lower block triangle alone."""
    for a, b in _panels(len(gram)):
        gram[a:b, :b].addmm_(x[:, a:b].T, x[:, :b])


def _inverse_factor(hessian: Tensor, damp: float, tries: int) -> tuple[Tensor, float, int]:
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    mean = diagonal[~dead].mean() if not dead.all() else torch.ones((), device=hessian.device)
    for attempt in range(1, tries + 1):
        factor = _factor(hessian, damp * mean + mean * dead)
        if factor is not None and torch.isfinite(factor).all():
            return factor, damp, attempt
        damp = max(10 * damp, 1e-4)
    raise SparselabError(f"the Hessian could not be factored, even with damping {damp / 10:g} of its mean diagonal. "
                         "Use more calibration tokens, or a larger damp=.")


def _factor(hessian: Tensor, extra: Tensor) -> Tensor | None:
    """Upper R with R^T R = (hessian + diag(extra))^-1, or None where a pivot is no more than rounding.

    From the last rows to the first, LEAF at a time, and nearly all of it matrix products. With A the rows' own block,
    B to the right of it and D what R is known for: S = A - B D^-1 B^T is what the later inputs leave unexplained.
    """
    n, total = len(hessian), hessian.diagonal() + extra
    factor, identity = torch.zeros_like(hessian), torch.eye(min(n, LEAF), device=hessian.device)
    for b in range(n, 0, -LEAF):
        a = max(b - LEAF, 0)
        known, side = factor[b:, b:], torch.empty_like(hessian[a:b, b:])
        for c, d in _panels(n - b):                                          # side = B R_D^T; R_D is upper: skip zeros
            torch.mm(hessian[a:b, b + c:], known[c:d, c:].T, out=side[:, c:d])
        rest = torch.addmm(hessian[a:b, a:b], side, side.T, alpha=-1)        # S
        rest.diagonal().add_(extra[a:b])
        lower, failed = torch.linalg.cholesky_ex(rest.flip(0, 1))            # reversed, for an upper factor of S^-1
        if failed or (lower.diagonal().square() < ROUNDING * total[a:b].flip(0)).any():
            return None
        corner = torch.linalg.solve_triangular(lower, identity[:b - a, :b - a], upper=False).flip(0, 1)
        factor[a:b, a:b] = corner
        side = torch.mm(corner, side).neg_()
        for c, d in _panels(n - b):
            torch.mm(side[:, :d], known[:d, c:d], out=factor[a:b, b + c:b + d])
    return factor
