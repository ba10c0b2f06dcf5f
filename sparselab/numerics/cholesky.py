"""Gram matrix and inverse Hessian factor: the two large matrix computations of SparseGPT, at half
price."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import SparselabError

PANELS = 8  # half of a symmetric or triangular product, in 8 panels, costs 9/16 of the whole
LEAF = 256  # rows of the inverse factor computed at a time
ROUNDING = 1e-6  # a pivot below this share of its diagonal entry is float32 rounding, not curvature


def _panels(width: int) -> list[tuple[int, int]]:
    """Borders a:b of PANELS strips."""
    step = max(1, -(-width // PANELS))
    return [(a, min(a + step, width)) for a in range(0, width, step)]


@contextmanager
def tensor_cores(dtype: torch.dtype) -> Iterator[None]:
    """Let a GPU multiply in TF32 what came in 16 bits: those numbers fit its mantissa and exponent,
    so that every product is exact, and the sums stay float32. Numbers of float32 would be cut: for
    them nothing changes.
    """
    products = torch.backends.cuda.matmul
    before = products.fp32_precision  # its own, or inherited: to set that would pin it
    if dtype not in (torch.float16, torch.bfloat16) or before == "tf32":
        yield
        return
    products.fp32_precision = "tf32"
    try:
        yield
    finally:
        products.fp32_precision = before


def add_gram(gram: Tensor, x: Tensor) -> None:
    """gram [c, c] += x^T x for x [tokens, c], lower block triangle alone."""
    with tensor_cores(x.dtype):
        x = x.float()
        for a, b in _panels(len(gram)):
            gram[a:b, :b].addmm_(x[:, a:b].T, x[:, :b])


def mirror(gram: Tensor) -> None:
    """Copy the lower triangle of gram [c, c] to the upper one, panel by panel: without a second
    matrix of that size."""
    for a, b in _panels(len(gram)):
        corner = gram[a:b, a:b].tril()
        gram[a:b, a:b] = corner.add_(corner.tril(-1).T)
        gram[:a, a:b] = gram[a:b, :a].T


def inverse_factor(
    gram: Tensor, damp: float, tries: int, tokens: int = 1
) -> tuple[Tensor, float, int]:
    """Upper R with H^-1 = R^T R for H = gram [c, c] / tokens + damp * mean diagonal; the damping
    used, and the tries.

    In two lines it would be `L = cholesky(H.flip(0, 1)); R = solve_triangular(L, I,
    upper=False).flip(0, 1)`.
    """
    diagonal = gram.diagonal() / tokens
    dead = diagonal == 0
    mean = live_mean(diagonal, dead)
    for attempt in range(1, tries + 1):
        factor, broken = _factor(gram, tokens, damp * mean + mean * dead)
        extremes = torch.stack(torch.aminmax(factor))  # NaN too, and no copy
        if extremes.isfinite().all() & ~broken:  # asked once: each time stops a GPU
            return factor, damp, attempt
        del factor  # before there is another
        damp = max(10 * damp, 1e-4)
    raise SparselabError(
        f"the Hessian could not be factored, even with damping {damp / 10:g} of its mean diagonal. "
        "Use more calibration tokens, or a larger damp=."
    )


def live_mean(diagonal: Tensor, dead: Tensor) -> Tensor:
    """The mean of the inputs' curvatures [c] without the dead ones, bool [c]; 1 where all are."""
    mean = diagonal[~dead].mean()  # NaN of nothing
    return torch.where(dead.all(), 1.0, mean)


def _factor(gram: Tensor, tokens: int, extra: Tensor) -> tuple[Tensor, Tensor]:
    """Upper R with R^T R = (gram / tokens + diag(extra))^-1, and whether a pivot is no more than
    rounding, bool.

    From the last rows to the first, LEAF at a time, and nearly all of it matrix products. With A
    the rows' own block, B to the right of it and D what R is known for: S = A - B D^-1 B^T is what
    the later inputs leave unexplained.
    """
    n, total = len(gram), gram.diagonal() / tokens + extra
    factor, identity = torch.zeros_like(gram), torch.eye(min(n, LEAF), device=gram.device)
    broken = torch.zeros((), dtype=torch.bool, device=gram.device)
    for b in range(n, 0, -LEAF):
        a = max(b - LEAF, 0)
        rows, known = gram[a:b, a:] / tokens, factor[b:, b:]  # never a second matrix of that size
        own, right = rows[:, : b - a], rows[:, b - a :]  # A, B
        side = torch.empty_like(right)
        for c, d in _panels(n - b):  # side = B R_D^T; R_D is upper: skip zeros
            torch.mm(right[:, c:], known[c:d, c:].T, out=side[:, c:d])
        rest = torch.addmm(own, side, side.T, alpha=-1)  # S
        rest.diagonal().add_(extra[a:b])
        reverse = rest.flip(0, 1)  # for an upper factor of S^-1
        lower, failed = torch.linalg.cholesky_ex(reverse)
        broken |= (failed != 0) | (lower.diagonal().square() < ROUNDING * total[a:b].flip(0)).any()
        unit = identity[: b - a, : b - a]
        corner = torch.linalg.solve_triangular(lower, unit, upper=False).flip(0, 1)
        factor[a:b, a:b] = corner
        side = torch.mm(corner, side).neg_()
        for c, d in _panels(n - b):
            torch.mm(side[:, :d], known[:d, c:d], out=factor[a:b, b + c : b + d])
    return factor, broken
