"""The pruning methods, by name."""
from ..errors import SparselabError, nearest
from .admm import ADMM
from .base import DENSE_BLOCK, TARGETS, Fit, Method, Solution
from .dsnot import DSnoT
from .magnitude import Magnitude
from .sparsegpt import SparseGPT
from .sparsellm import SparseLLM
from .swaps import Swaps
from .wanda import Wanda

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Magnitude, Wanda, SparseGPT, DSnoT, Swaps, ADMM, SparseLLM)}


def find_method(method: "str | Method") -> Method:
    """A method by name with its default hyper-parameters, or the instance itself."""
    if isinstance(method, Method):
        return method
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]()
    raise SparselabError(f"unknown method {method!r}.{nearest(str(method), METHODS)} A method may also be an instance "
                         "such as sl.SparseGPT(damp=0.1).")


__all__ = ["ADMM", "DENSE_BLOCK", "METHODS", "TARGETS", "DSnoT", "Fit", "Magnitude", "Method", "Solution", "SparseGPT",
           "SparseLLM", "Swaps", "Wanda", "find_method"]
