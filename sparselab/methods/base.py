"""What every pruning method is: hyper-parameters in, `solve` for one matrix."""
from dataclasses import asdict, dataclass

from torch import Tensor

from ..patterns import Pattern
from ..statistics import Statistics


@dataclass
class Solution:
    """Result of pruning one matrix: the new weight [r, c] float32 and where it was kept, bool [r, c] (the mask)."""

    weight: Tensor
    mask: Tensor
    damp: float | None = None       # damping used, as a fraction of the Hessian's mean diagonal
    tries: int = 0                  # factorisations until one succeeded


@dataclass(frozen=True)
class Method:
    """Hyper-parameters of a method; `solve` prunes one matrix from the statistics of its inputs.

    A new method is one dataclass in one file: say what statistics it needs, write `solve`, add it to METHODS.
    """

    name = "method"                 # class attributes, not hyper-parameters
    needs = ()

    def solve(self, weight: Tensor, stats: Statistics, pattern: Pattern) -> Solution:
        """Prune weight [r, c], float32, left untouched, given the statistics of its inputs [c, N]."""
        raise NotImplementedError

    def shares(self, weights: dict[str, Tensor], pattern: Pattern) -> dict[str, Pattern]:
        """The pattern of each matrix, by name, before any is pruned: the same for all, unless a method allocates."""
        return dict.fromkeys(weights, pattern)

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in asdict(self).items())
        return f"{self.name}({settings})"


def keep_weights(weight: Tensor, pruned: Tensor) -> Solution:
    """Zero the pruned weights and leave the others as they are."""
    return Solution(weight.masked_fill(pruned, 0), ~pruned)
