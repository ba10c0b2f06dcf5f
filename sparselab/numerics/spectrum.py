"""The Hessian's eigenvectors: one decomposition for all penalties, sparsities and matrices."""

import torch
from torch import Tensor

from ..runtime.memory import trim_host_memory

ROWS = 1024  # of an inverse that are made at a time
LARGE = 32 * 2**20  # bytes of a matrix


class Spectrum:
    """A Hessian H [c, c] in units in which its diagonal is 1, G = S H S with S = diag(H)^-1/2, as
    Q L Q^T.

    (G + rho I)^-1 is Q (L + rho)^-1 Q^T: a product for each rho, where the decomposition is made
    once. Weights W are W S^-1 in these units. Float32, as the Gram matrix is. H is the largest
    matrix of a run, so as few as possible of its size are held at once.

    Parameters
    ----------
    hessian : Tensor of shape (c, c), float32
        Symmetric and positive definite, as `Statistics.hessian` gives. Used up: the eigenvectors
        are written over it.
    """

    def __init__(self, hessian: Tensor):
        if hessian.device.type == "cpu" and hessian.nbytes > LARGE:
            trim_host_memory()  # LAPACK takes twice as much beside it
        self.norms = hessian.diagonal().sqrt()  # [c], the diagonal of S^-1
        columns = hessian.mT  # the same numbers, in the order in which LAPACK works in place
        columns.div_(self.norms).div_(self.norms[:, None])
        values = torch.empty_like(self.norms)
        _, self.vectors = torch.linalg.eigh(columns, out=(values, columns))
        self.values = values.clamp_(min=0)  # rounding may leave some below

    def inverse(self, rho: float, out: Tensor | None = None) -> Tensor:
        """(G + rho I)^-1, [c, c]; written into `out`, the last one, where that is given."""
        out = torch.empty_like(self.vectors) if out is None else out
        for vectors, rows in zip(self.vectors.split(ROWS), out.split(ROWS), strict=True):
            torch.matmul(vectors / (self.values + rho), self.vectors.T, out=rows)
        return out

    def scaled(self, weight: Tensor) -> Tensor:
        """W S^-1 of weights [r, c]."""
        return weight * self.norms

    def pull(self, weight: Tensor, hessian: Tensor) -> Tensor:
        """W S^-1 G of weights [r, c]: minus half the gradient of tr((B - W S^-1) G (B - W S^-1)^T)
        at B = 0."""
        return (weight @ hessian) / self.norms
