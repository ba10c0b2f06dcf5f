"""What every pruning method is: hyper-parameters in, `solve` for one matrix."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..numerics.refit import refit
from ..numerics.statistics import CROSS, GRAM, Statistics, share
from ..patterns import Pattern
from .parameters import check_fields
from .reconstruction import Reconstruction

DENSE_BLOCK = "dense-block"
ROWS = 512  # of a matrix whose error is measured at a time
TARGETS = (DENSE_BLOCK, "dense-model", "dense-stream")
Target = Annotated[
    Literal[TARGETS],
    "what a linear aims at: its own dense outputs, those in the dense model, or the dense model's"
    " residual stream after it",
]
Start = Literal["magnitude", "wanda", "sparsegpt"]  # the local method that another starts from


@dataclass
class Solution:
    """Result of pruning one matrix: the new weight [r, c] float32 and where it was kept, bool [r,
    c] (the mask)."""

    weight: Tensor
    mask: Tensor
    damp: float | None = None  # damping used, as a fraction of the Hessian's mean diagonal
    tries: int = 0  # factorisations until one succeeded
    refitted: bool = False  # the weights are the best under the mask already


@dataclass
class Fit:
    """A solution and how well it does on the calibration inputs: ||T X - W' X|| / ||T X|| for the
    target T with the mask alone (`error_mask_only`) and with the solution's weights (`error`), over
    so many tokens."""

    solution: Solution
    error_mask_only: float
    error: float
    tokens: int

    @classmethod
    def of(
        cls,
        target: Tensor,
        solution: Solution,
        stats: Statistics,
        dtype: torch.dtype = torch.float32,
        rows: int | None = None,
    ) -> "Fit":
        """Measured with the weights rounded to the model's dtype, some rows at a time: a matrix may
        be large; on so many evenly spread rows of it (None: on all)."""
        matrices = target, solution.mask, solution.weight
        if rows and rows < len(target):
            chosen = torch.arange(rows, device=target.device) * len(target) // rows
            matrices = [matrix[chosen] for matrix in matrices]
        parts = list(zip(*(matrix.split(ROWS) for matrix in matrices), strict=True))
        same = [(t * mask == new.to(dtype).float()).all() for t, mask, new in parts]
        unchanged = bool(torch.stack(same).all())  # asked once: each time stops a GPU
        squares = 0
        for t, mask, new in parts:
            changes = [t, t.masked_fill(mask, 0)]
            if not unchanged:
                changes.append(t - new.to(dtype).float())
            squares = squares + stats.squared_norms(*changes)
        whole, mask_only, *rest = squares.tolist()
        error = rest[0] if rest else mask_only
        tokens = stats.tokens if stats.gram is not None else sum(map(len, stats.samples))
        return cls(solution, share(mask_only, whole), share(error, whole), tokens)


def common_option(default):
    """A hyper-parameter that every method has; given by its name only."""
    return field(default=default, kw_only=True, metadata={"switch": default})


@dataclass(frozen=True)
class Method:
    """Hyper-parameters of a method; `solve` prunes one matrix from the statistics of its inputs.

    A new method is one dataclass in one file: say what statistics it needs, write `solve`, add it
    to METHODS. What a hyper-parameter may be is said by its annotation (see `parameters`). Six
    switches belong to all methods.

    Parameters
    ----------
    refit : bool
        After the mask is chosen, the kept weights become the exact minimiser of the output error
        (with `Statistics.damping`).
    targets : {'dense-block', 'dense-model', 'dense-stream'}
        What a linear aims at: W X on the inputs that it has now; what it gives in the dense model,
        W X_d (implies in order); or, for the linears that write to the residual stream (out_proj
        and fc2, o_proj and down_proj), half way to the dense model's stream after them, so that
        they make up for part of what the stream lacks already.
    in_order : bool
        The linears of a block are pruned in the order in which they run, each on the inputs that
        the pruned ones before it leave.
    fisher : bool
        Squared errors of a matrix's row count as much as the loss's mean squared gradient at that
        output in the dense model, which decides which rows keep more weights; those of a token as
        much as the root of it there, which decides what the statistics heed.
    divide : bool
        The zeros are divided among the matrices so that the loss expected of them is least (see
        `divide_zeros`, which tries SparseGPT whatever the method), where the sparsity is one
        fraction for all; n:m leaves nothing to divide.
    reconstruct : Reconstruction, bool or {'tm', 'ebft', 'free_lunch'}, optional
        After a block's matrices are pruned, what is left of it is tuned by gradient (see
        `sl.Reconstruction`). True: with its defaults.

    Raises
    ------
    SparselabError
        Where a hyper-parameter is of another kind, out of its bounds, or not finite.
    """

    refit: bool = common_option(False)
    targets: Target = common_option(DENSE_BLOCK)
    in_order: bool = common_option(False)
    fisher: bool = common_option(False)
    divide: bool = common_option(False)
    reconstruct: Reconstruction | None = common_option(None)
    name = "method"  # class attributes, not hyper-parameters
    needs = ()
    allocates = False  # whether `shares` divides the zeros among the matrices
    squares = 1  # matrices [c, c] that `solve` holds beside the Gram matrix; for plans
    copies = 4  # matrices [r, c] then: weights, result, mask and errors, targets; for plans
    products = 0  # what `solve` takes for a matrix [r, c], in products of r c^2; for plans
    presets = ()  # names of class methods that give a published variant for a family, for sweeps
    prunes_ffn_jointly = False  # whether `prune_ffn` prunes the feed-forward network as a whole
    shares_column_loop = False  # whether `solve_together` takes matrices with the same inputs

    def __post_init__(self):
        tuned = Reconstruction.parse(self.reconstruct, type(self).__name__)
        object.__setattr__(self, "reconstruct", tuned)  # past the lock of frozen
        check_fields(self)

    def solve(self, weight: Tensor, stats: Statistics, pattern: Pattern) -> Solution:
        """Prune weight [r, c], float32, left untouched, given statistics of its inputs [c, N]."""
        raise NotImplementedError

    def solve_together(
        self, weights: list[Tensor], stats: Statistics, patterns: list[Pattern]
    ) -> list[Solution]:
        """Prune matrices [r_k, c] with the same inputs, each under its own pattern: the masks that
        `solve` finds."""
        return [
            self.solve(weight, stats, pattern)
            for weight, pattern in zip(weights, patterns, strict=True)
        ]

    def shares(self, weights: dict[str, Tensor], pattern: Pattern) -> dict[str, Pattern]:
        """The pattern of each matrix, by name, before any is pruned: the same for all, unless a
        method allocates."""
        return dict.fromkeys(weights, pattern)

    def feed_forward(self, linears: dict, tokens: int):
        """Where `prunes_ffn_jointly`: what collects the feed-forward network's tokens; linears by
        role ('up', 'down', and 'gate' where there is one)."""
        raise NotImplementedError

    def prune_ffn(self, ffn, shares: dict[str, Pattern]) -> tuple[dict[str, Fit], list[dict]]:
        """Where `prunes_ffn_jointly`: the fits of the network's matrices by role, and rows for the
        report's epochs."""
        raise NotImplementedError

    def ffn_bytes(
        self, tokens: int, width: int, inner: int, linears: int, size: int
    ) -> dict[str, float]:
        """What `prune_ffn` holds beside statistics and weights, by term, of `linears` matrices
        between `width` and `inner`; size: bytes of a weight. For plans."""
        return {}

    def ffn_operations(self, tokens: int, width: int, inner: int, linears: int) -> float:
        """Floating point operations of the sub-problems of `prune_ffn`, for a block. For plans."""
        return 0.0

    def on(self, ffn: bool) -> "Method":
        """What prunes a matrix of the feed-forward network, or (ffn=False) of the attention: the
        method itself, unless it treats them differently. The statistics are those that the method
        itself needs."""
        return self

    @property
    def aims_at_dense_model(self) -> bool:
        """Linears aim at the dense model, so that they are pruned in order."""
        return self.targets != DENSE_BLOCK

    @property
    def follows_dense_model(self) -> bool:
        """The dense model's activations go along."""
        tuned = self.reconstruct
        return self.aims_at_dense_model or (tuned is not None and tuned.targets != DENSE_BLOCK)

    @property
    def needs_dense_block(self) -> bool:
        """A copy of the dense block is needed after it is pruned."""
        return self.aims_at_dense_model or self.reconstruct is not None

    @property
    def all_needs(self) -> set[str]:
        """Statistics that the method needs with its switches."""
        dense = {GRAM, CROSS} if self.aims_at_dense_model else set()
        return {*self.needs, *dense, *({GRAM} if self.refit else ())}

    def prune_matrix(
        self, weight: Tensor, stats: Statistics, pattern: Pattern, rows: Tensor | None = None
    ) -> tuple[Tensor, Solution]:
        """What the matrix aims at [r, c], and the solution for it, with the switches applied; rows
        [r]: how much the squared error of each counts, None: all alike."""
        target = self._target(weight, stats)
        scaled = scale_rows(target, rows)
        solution = self._refitted(scaled, self.solve(scaled, stats, pattern), stats)
        return target, unscale_rows(solution, target, scaled, rows)

    def prune_matrices(
        self,
        weights: list[Tensor],
        stats: Statistics,
        patterns: list[Pattern],
        rows: Sequence[Tensor | None] = (),
    ) -> list[tuple[Tensor, Solution]]:
        """The same for matrices [r_k, c] with the same inputs."""
        rows = rows or [None] * len(weights)
        if len(weights) == 1:
            return [self.prune_matrix(weights[0], stats, patterns[0], rows[0])]
        targets = [self._target(weight, stats) for weight in weights]
        scaled = [*map(scale_rows, targets, rows)]
        solutions = self.solve_together(scaled, stats, patterns)
        found = []
        for target, big, own, solution in zip(targets, scaled, rows, solutions, strict=True):
            done = self._refitted(big, solution, stats)
            found.append((target, unscale_rows(done, target, big, own)))
        return found

    def _target(self, weight: Tensor, stats: Statistics) -> Tensor:
        if stats.cross is None:
            return weight
        outputs = stats.target_cross(weight)
        if not stats.shared:
            del stats.cross, stats.drift  # as large as the Gram matrix, and read no more
        return regression(weight, outputs, stats)

    def _refitted(self, target: Tensor, solution: Solution, stats: Statistics) -> Solution:
        if not self.refit or solution.refitted:
            return solution
        kept = refit(target, solution.weight, solution.mask, stats.hessian())
        return replace(solution, weight=kept, refitted=True)

    def __str__(self) -> str:
        own, switches = [], []
        for each in fields(self):
            value = getattr(self, each.name)
            if "switch" not in each.metadata:
                own.append(f"{each.name}={value}")
            elif value != each.metadata["switch"]:
                switches.append(f"{each.name}={value}")
        return f"{self.name}({', '.join(own + switches)})"


def keep_weights(weight: Tensor, pruned: Tensor) -> Solution:
    """Zero the pruned weights and leave the others as they are."""
    return Solution(weight.masked_fill(pruned, 0), ~pruned)


def scale_rows(weight: Tensor, rows: Tensor | None) -> Tensor:
    """A matrix [r, c] whose rows' squared errors count `rows` times as much, [r]."""
    return weight if rows is None else weight * rows.to(weight.device).sqrt().unsqueeze(1)


def unscale_rows(
    solution: Solution, target: Tensor, scaled: Tensor, rows: Tensor | None
) -> Solution:
    """The solution for the target, from that for the scaled one; weights that a method left as they
    were are the target's own, bit by bit."""
    if rows is None:
        return solution
    back = solution.weight / rows.to(target.device).sqrt().unsqueeze(1)
    return replace(solution, weight=torch.where(solution.weight == scaled, target, back))


def regression(
    weight: Tensor, outputs: Tensor, stats: Statistics, damp: float | None = None
) -> Tensor:
    """The ridge regression of targets T on inputs X, drawn to `weight` [r, c]; outputs is T X^T [r,
    c], a raw sum.

    W0 = (T X^T + lambda W)(X X^T + lambda I)^-1, written as a correction, so that it is W where T =
    W X. To approximate T by W' X, with the same ridge, is to approximate W0 in the norm of X X^T +
    lambda I: pruning need not know.
    """
    damp = stats.damping if damp is None else damp
    factor, *_ = stats.inverse_factor(damp)  # H^-1 = R^T R
    return weight + ((outputs - weight @ stats.gram) / stats.tokens @ factor.T) @ factor
