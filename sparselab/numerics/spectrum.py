"""The Hessian's eigenvectors: one decomposition for all penalties, sparsities and matrices."""

import torch
from torch import Tensor


class Spectrum:
    """A Hessian H [c, c] in units in which its diagonal is 1, G = S H S with S = diag(H)^-1/2, as
    Q L Q^T.

    (G + rho I)^-1 is Q (L + rho)^-1 Q^T: a product for each rho, where the decomposition is made
    once. Weights W are W S^-1 in these units. Float32, as the Gram matrix is.

    Parameters
    ----------
    hessian : Tensor of shape (c, c), float32
        Positive definite, as `Statistics.hessian` gives.
    """

    def __init__(self, hessian: Tensor):
        self.norms = hessian.diagonal().sqrt()  # [c], the diagonal of S^-1
        scaled = hessian / self.norms
        values, self.vectors = torch.linalg.eigh(scaled.div_(self.norms[:, None]))
        self.values = values.clamp_(min=0)  # rounding may leave some below

    def inverse(self, rho: float, out: Tensor | None = None) -> Tensor:
        """(G + rho I)^-1, [c, c]; written into `out`, the last one, where that is given."""
        return torch.matmul(self.vectors / (self.values + rho), self.vectors.T, out=out)

    def scaled(self, weight: Tensor) -> Tensor:
        """W S^-1 of weights [r, c]."""
        return weight * self.norms

    def pull(self, weight: Tensor, hessian: Tensor) -> Tensor:
        """W S^-1 G of weights [r, c]: minus half the gradient of tr((B - W S^-1) G (B - W S^-1)^T)
        at B = 0."""
        return (weight @ hessian) / self.norms
