"""The pruning methods, one file each."""

from .admm import ADMM
from .alps import ALPS
from .base import DENSE_BLOCK, TARGETS, Fit, Method, Solution
from .dsnot import DSnoT
from .magnitude import Magnitude
from .reconstruction import Reconstruction
from .registry import METHODS, find_method
from .sparsegpt import SparseGPT
from .sparsellm import SparseLLM
from .swaps import Swaps
from .wanda import Wanda

__all__ = [
    "ADMM",
    "ALPS",
    "DENSE_BLOCK",
    "METHODS",
    "TARGETS",
    "DSnoT",
    "Fit",
    "Magnitude",
    "Method",
    "Reconstruction",
    "Solution",
    "SparseGPT",
    "SparseLLM",
    "Swaps",
    "Wanda",
    "find_method",
]
