"""Wanda: weight times input norm, compared within each output row; no weight is changed."""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from ..numerics.statistics import NORMS, Statistics
from ..patterns import Pattern, prune_rows
from .base import Method, Solution, keep_weights


@dataclass(frozen=True)
class Wanda(Method):
    """Zero the lowest |W_ij| * ||X_j||_2.

    It is SparseGPT's criterion with the Hessian cut to its diagonal. Source: Sun et al., arXiv
    2306.11695, equation 1.

    Parameters
    ----------
    per : {'row', 'matrix'}
        What the scores are compared within: an output row, or the whole matrix.
    **switches
        Those of `Method`.
    """

    per: Annotated[Literal["row", "matrix"], "scores are compared per 'row' or per 'matrix'"] = (
        "row"
    )
    name = "wanda"
    needs = (NORMS,)

    def solve(self, weight: Tensor, stats: Statistics, pattern: Pattern) -> Solution:
        """The mask of the lowest scores; the kept weights [r, c] are left as they are."""
        scores = wanda_scores(weight, stats.norms)
        return keep_weights(weight, prune_rows(scores, pattern, per_row=self.per == "row"))


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """|W_ij| ||X_j||_2 for weight [r, c] and the norms of its inputs [c]."""
    return weight.abs() * norms
