"""SparseLLM: prune a feed-forward network as a whole, by auxiliary variables for what passes
between its matrices."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from torch import Tensor, nn

from ..errors import SparselabError
from ..numerics.refit import refit
from ..numerics.statistics import GRAM, NORMS, Statistics
from ..patterns import Pattern
from .admm import ADMM, STARTS
from .base import Fit, Method, Solution, Start, Target, common_option, regression
from .feed_forward import FeedForward

Penalty = Annotated[float, "> 0", "the penalties are positive"]


@dataclass(frozen=True)
class SparseLLM(Method):
    """The penalty form of a feed-forward network Y = W2 phi(W1 X + b1) + b2, minimised in turns.

    min alpha |z - W1 X - b1|^2 + beta |Y - W2 p - b2|^2 + gamma |p - phi(z)|^2 over sparse W1, W2
    and the auxiliary z (before the activation) and p (after it); LLaMA's gate adds s, alpha |s - Wg
    X|^2 and phi = silu(s) z. Source: Bai et al., arXiv 2402.17946, equations 4 to 9. Attention is
    pruned matrix by matrix. `SparseLLM.published()` is the code as released, `.paper()` the paper's
    mathematics, `.repaired()` the code with one ridge changed; what the switches are worth:
    bench/ablation.csv.

    Memory of a block of N tokens, width d, FFN width f, b bytes a weight: N d (2 b + 4) bytes; from
    two epochs on 4 N f more for z, as much for a gate's s, and for p where it is kept (not
    `realised`); and about 20 f^2 for the solver.

    Parameters
    ----------
    epochs : int
        Times that the matrices are solved for, the first from the start values, the dense model's
        own z, p and s; 1 by default, because more lower the block's error on the calibration tokens
        and hardly the perplexity.
    alpha, beta, gamma : float
        The penalties; common factors do not matter.
    initial : {'sparsegpt', 'wanda', 'magnitude'}
        The method that prunes a matrix.
    improve : bool
        Its mask and weights are improved by ADMM, kept where better.
    realised : bool
        W2 is fitted to what the pruned W1 gives, not to the auxiliary p.
    keep_best : bool
        The epoch with the lowest true error |Y - FFN(X)| is kept, the start included.
    tolerance : float
        With `keep_best` the loop ends when an epoch gains less than this share of the error; a
        negative one lets all epochs run.
    down : {'regression', 'descent'}
        How W2 is fitted: by regression, or by ten gradient steps as published for OPT.
    ridge : float, optional
        Damping of the regressions, as a share of the Hessian's mean diagonal; None:
        `Statistics.damping`.
    new_masks : bool
        Every epoch chooses its masks anew; else the later ones refit the weights under those of the
        first, at a third of the time.
    penalties : bool
        The report says the three penalty terms after the last epoch too, at the cost of one more
        update of p, which nothing else uses: two fifths of the default's time.
    **switches
        Those of `Method`; here `refit` and `targets` have other defaults.
    """

    epochs: Annotated[int, ">= 1"] = 1
    alpha: Penalty = 0.1
    beta: Penalty = 1.0
    gamma: Penalty = 1.0
    initial: Start = "sparsegpt"
    improve: bool = True
    realised: bool = True
    keep_best: bool = True
    tolerance: float = 0.01
    down: Literal["regression", "descent"] = "regression"
    ridge: Annotated[float, ">= 0"] | None = None
    new_masks: bool = False
    penalties: bool = False
    refit: bool = common_option(True)
    targets: Target = common_option("dense-stream")
    name = "sparsellm"
    squares, copies, products = ADMM.squares, ADMM.copies, ADMM.products
    presets = ("paper", "published", "repaired")
    needs = (GRAM, NORMS)
    prunes_ffn_jointly = True

    @classmethod
    def published(cls, family: str = "OPT", epochs: int = 4) -> "SparseLLM":
        """The code as released for a family: SparseGPT in every step, targets and inputs of the
        dense block, W1 (and the gate) by a pseudo-inverse, W2 for LLaMA likewise and for OPT by ten
        gradient steps, fitted to p, the last epoch kept, no refit. In float32, with regressions of
        a ridge of 1e-6 (more where that cannot be factored) for the pseudo-inverses, and bounded
        gate steps; their 1 epoch for LLaMA's blocks 1, 30 and 31 was a guard against the divergence
        of the gate step and is not needed."""
        variants = {"OPT": "descent", "LLAMA": "regression"}
        if str(family).upper() not in variants:
            raise SparselabError(
                f"SparseLLM.published({family!r}): the published code has two variants, 'OPT' and"
                " 'LLaMA'."
            )
        return cls(
            epochs,
            alpha=1.0,
            improve=False,
            realised=False,
            keep_best=False,
            down=variants[str(family).upper()],
            ridge=1e-6,
            new_masks=True,
            refit=False,
            targets="dense-block",
        )

    @classmethod
    def paper(cls, family: str = "OPT", epochs: int = 4) -> "SparseLLM":
        """The paper's mathematics: as `published`, and W2 too is the regression of equation 5 in
        both families."""
        return replace(cls.published(family, epochs), down="regression")

    @classmethod
    def repaired(cls, family: str = "OPT", epochs: int = 4) -> "SparseLLM":
        """The published loop with a ridge of 1e-4 in its regressions. What a LayerNorm gives hardly
        varies along 1/gamma, the inverse of its weights; a pseudo-inverse divides by that variance
        and fills W1 with weights that only work together, and pruning takes some of them. The ridge
        is a hundredth of SparseGPT's own damping, and keeps that direction still."""
        return replace(cls.published(family, epochs), ridge=1e-4)

    def solve(self, weight: Tensor, stats: Statistics, pattern: Pattern) -> Solution:
        """One matrix on its own: those of attention, and every step for one of the FFN."""
        return self._solver.solve(weight, stats, pattern)

    @property
    def _solver(self) -> Method:
        return ADMM(self.initial) if self.improve else STARTS[self.initial]()

    def feed_forward(self, linears: dict[str, nn.Linear], tokens: int) -> "FeedForward":
        """An empty network for so many tokens; linears by role ('up', 'gate', 'down')."""
        return FeedForward(linears, tokens, keep_p=not self.realised)

    def ffn_bytes(
        self, tokens: int, width: int, inner: int, linears: int, size: int
    ) -> dict[str, float]:
        """Bytes of tokens and auxiliary variables, and of what the matrices aim at and became."""
        aimed, gates = self.aims_at_dense_model, linears - 1
        variables = gates * (self.epochs > 1) + (not self.realised)  # z, s and p, float32 [N, f]
        kept = tokens * (width * (4 + size * (1 + aimed)) + 4 * variables * inner)
        found = linears * inner * width * (4 + 4 + 1)  # target, weight and mask, until the last is
        return {"feed-forward variables": kept, "feed-forward solutions": found}

    def ffn_operations(self, tokens: int, width: int, inner: int, linears: int) -> float:
        """Operations of the products with W1 and W2, and of the Gram matrix, in all epochs."""
        epoch = 2 * tokens * width * inner * (4 + 4 * linears) + 2 * tokens * inner**2
        return self.epochs * epoch

    def prune_ffn(
        self, ffn: "FeedForward", shares: dict[str, Pattern]
    ) -> tuple[dict[str, Fit], list[dict]]:
        """Prune the two or three matrices together: their fits by role ('up', 'gate', 'down'), and
        per epoch the true relative error and the three penalty terms per token after the step for
        p, z and s (the last epoch: for p alone, with `penalties`). An epoch is one pass over the
        tokens for W2 and one for p, z and s."""
        inputs, aims = ffn.initial_cross_products(self.all_needs)
        best, kept, now, history = math.inf, {}, {}, []
        for epoch in range(self.epochs):
            for role, aim in aims.items():
                weight, share = ffn.weight[role], shares[role]
                now[role] = self._step(role, weight, aim, inputs, share, ffn, now.get(role))
            aims.clear()  # `update` gives the next ones
            del aim
            hidden, outputs = ffn.hidden_statistics(_weights(now))
            weight, share = ffn.weight["down"], shares["down"]
            now["down"] = self._step("down", weight, outputs, hidden, share, ffn, now.get("down"))
            weights = _weights(now)
            error = ffn.relative_error(weights, hidden, outputs)
            gain = 0.0  # nothing is better than no error
            if best:
                gain = 1 - error / best if epoch else 1.0
            if gain > 0 or not self.keep_best:
                best, kept = error, dict(now)
            last = epoch == self.epochs - 1 or (self.keep_best and gain < self.tolerance)
            terms = {}
            if not last or self.penalties:
                aims, terms = ffn.update(weights, self.alpha, self.beta, self.gamma, last=last)
            history.append({"epoch": epoch, "error": error, **terms})
            if last:
                break
        fits = {}
        for role, one in kept.items():
            fits[role] = Fit.of(one.target, one.solution, one.stats, ffn.dtype, ffn.error_rows)
        return fits, history

    def _step(
        self,
        role: str,
        weight: Tensor,
        outputs: Tensor,
        stats: Statistics,
        pattern: Pattern,
        ffn: FeedForward,
        last: "Step | None",
    ) -> "Step":
        """Fit the outputs (T X^T, a raw sum) by a regression on the inputs, and prune what it
        gives; or refit the weights under the mask found before, where that is kept."""
        if last and role == "down" and self.down == "descent":
            target = descend(last.solution.weight, outputs, stats)
        else:
            target = regression(weight, outputs, stats, self.ridge)
        if last and not self.new_masks:
            new = refit(target, last.solution.weight, last.solution.mask, stats.hessian())
            return Step(target, replace(last.solution, weight=new), stats)
        return Step(*self.prune_matrix(target, stats, pattern, ffn.rows.get(role)), stats)


@dataclass
class Step:
    """What a matrix aimed at in an epoch, what it became, and the statistics of its inputs."""

    target: Tensor
    solution: Solution
    stats: Statistics


def _weights(steps: dict[str, Step]) -> dict[str, Tensor]:
    return {role: one.solution.weight for role, one in steps.items()}


def descend(
    weight: Tensor, outputs: Tensor, stats: Statistics, steps: int = 10, rate: float = 0.01
) -> Tensor:
    """Gradient steps on the mean of (W p - T)^2 from the Gram matrix; outputs: T p^T, a raw sum."""
    count = stats.tokens * len(weight)
    for _ in range(steps):
        weight = weight - 2 * rate / count * (weight @ stats.gram - outputs)
    return weight
