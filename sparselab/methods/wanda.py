"""Wanda: weight times input norm, compared within each output row; no weight is changed."""

from dataclasses import dataclass

from torch import Tensor

from ..errors import SparselabError
from ..numerics.statistics import NORMS, Statistics
from ..patterns import Pattern, prune_rows
from .base import Method, Solution, keep_weights


@dataclass(frozen=True)
class Wanda(Method):
    """Zero the lowest |W_ij| * ||X_j||_2 of every output row (`per="row"`) or of the matrix
    (`per="matrix"`).

    Source: Sun et al., arXiv 2306.11695, equation 1. It is SparseGPT's criterion with the Hessian
    cut to its diagonal.
    """

    per: str = "row"
    name = "wanda"
    needs = (NORMS,)

    def __post_init__(self):
        super().__post_init__()
        if self.per not in ("row", "matrix"):
            raise SparselabError(
                f"Wanda(per={self.per!r}): scores are compared per 'row' or per 'matrix'."
            )

    def solve(self, weight: Tensor, stats: Statistics, pattern: Pattern) -> Solution:
        return keep_weights(
            weight,
            prune_rows(wanda_scores(weight, stats.norms), pattern, per_row=self.per == "row"),
        )


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """|W_ij| ||X_j||_2 for weight [r, c] and the norms of its inputs [c]."""
    return weight.abs() * norms
