"""SparseLLM: prune a feed-forward network as a whole, by auxiliary variables for what passes between its matrices."""
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ranks
from ..errors import SparselabError
from ..patterns import Pattern
from ..refit import refit
from ..statistics import GRAM, NORMS, Statistics
from .admm import ADMM, STARTS
from .base import Fit, Method, Solution, check_start, regression, switch

GATE_STEPS = 2              # safeguarded Gauss-Newton steps for the gate variable
CHUNK = {"cpu": 256, "cuda": 16384}     # tokens at a time: in cache on a CPU, large products on a GPU


@dataclass(frozen=True)
class SparseLLM(Method):
    """The penalty form of a feed-forward network Y = W2 phi(W1 X + b1) + b2, minimised in turns.

    min alpha |z - W1 X - b1|^2 + beta |Y - W2 p - b2|^2 + gamma |p - phi(z)|^2 over sparse W1, W2 and the auxiliary
    z (before the activation) and p (after it); LLaMA's gate adds s, alpha |s - Wg X|^2 and phi = silu(s) z. Source: Bai
    et al., arXiv 2402.17946, equations 4 to 9. Attention is pruned matrix by matrix. Common factors of alpha, beta and
    gamma do not matter.

    `epochs`: times that the matrices are solved for, the first from the start values, the dense model's own z, p and s;
    1 by default, because more lower the block's error on the calibration tokens and hardly the perplexity. `initial`: the
    method that prunes a matrix, 'sparsegpt', 'wanda' or 'magnitude'. `improve`: its mask and weights are improved by
    ADMM, kept where better.
    `realised`: W2 is fitted to what the pruned W1 gives, not to the auxiliary p. `keep_best`: the epoch with the lowest
    true error |Y - FFN(X)| is kept, the start included, and the loop ends when an epoch gains less than `tolerance` of
    it. `down`: W2 by 'regression', or by ten gradient steps ('descent') as published for OPT. `ridge`: damping of the
    regressions, as a share of the Hessian's mean diagonal; None: `Statistics.damping`. `new_masks`: every epoch chooses
    its masks anew; else the later ones refit the weights under those of the first, at a third of the time. What
    the switches are worth: bench/ablation.csv. `SparseLLM.published()` is the code as released,
    `.paper()` the paper's mathematics, `.repaired()` the code with one ridge changed.
    Memory of a block of N tokens, width d, FFN width f, b bytes a weight: N d (2 b + 4) bytes; from two epochs on 4 N f
    more for z, as much for a gate's s, and for p where it is kept (not `realised`); and about 20 f^2 for the solver.
    """

    epochs: int = 1
    alpha: float = 0.1
    beta: float = 1.0
    gamma: float = 1.0
    initial: str = "sparsegpt"
    improve: bool = True
    realised: bool = True
    keep_best: bool = True
    tolerance: float = 0.01
    down: str = "regression"
    ridge: float | None = None
    new_masks: bool = False
    refit: bool = switch(True)
    targets: str = switch("dense-stream")
    name = "sparsellm"
    presets = ("paper", "published", "repaired")
    needs = (GRAM, NORMS)
    joint = True

    def __post_init__(self):
        super().__post_init__()
        check_start(self, STARTS)
        if self.epochs < 1 or min(self.alpha, self.beta, self.gamma) <= 0:
            raise SparselabError(f"SparseLLM(epochs={self.epochs}, alpha={self.alpha}, beta={self.beta}, "
                                 f"gamma={self.gamma}): epochs >= 1, and the penalties are positive.")
        if self.down not in ("regression", "descent"):
            raise SparselabError(f"SparseLLM(down={self.down!r}): 'regression' or 'descent'.")

    @classmethod
    def published(cls, family: str = "OPT", epochs: int = 4) -> "SparseLLM":
        """The code as released for a family: SparseGPT in every step, targets and inputs of the dense block, W1 (and the
        gate) by a pseudo-inverse, W2 for LLaMA likewise and for OPT by ten gradient steps, fitted to p, the last epoch
        kept, no refit. In float32, with regressions of a ridge of 1e-6 (more where that cannot be factored) for the
        pseudo-inverses, and bounded gate steps; their 1 epoch for LLaMA's blocks 1, 30 and 31 was a guard against the
        divergence of the gate step and is not needed."""
        if family.upper() not in ("OPT", "LLAMA"):
            raise SparselabError(f"SparseLLM.published({family!r}): the published code has two variants, 'OPT' and 'LLaMA'.")
        return cls(epochs, 1.0, 1.0, 1.0, improve=False, realised=False, keep_best=False, ridge=1e-6, new_masks=True,
                   refit=False, down="descent" if family.upper() == "OPT" else "regression", targets="dense-block")

    @classmethod
    def paper(cls, family: str = "OPT", epochs: int = 4) -> "SparseLLM":
        """The paper's mathematics: as `published`, and W2 too is the regression of equation 5 in both families."""
        return replace(cls.published(family, epochs), down="regression")

    @classmethod
    def repaired(cls, family: str = "OPT", epochs: int = 4) -> "SparseLLM":
        """The published loop with a ridge of 1e-4 in its regressions. What a LayerNorm gives hardly varies along 1/gamma,
        the inverse of its weights; a pseudo-inverse divides by that variance and fills W1 with weights that only work
        together, and pruning takes some of them. The ridge is a hundredth of SparseGPT's own damping, and keeps that
        direction still."""
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

    def prune_ffn(self, ffn: "FeedForward", shares: dict[str, Pattern]) -> tuple[dict[str, Fit], list[dict]]:
        """Prune the two or three matrices together: their fits by role ('up', 'gate', 'down'), and per epoch the true
        relative error and the three penalty terms per token after the step for p, z and s (the last epoch: for p alone).
        An epoch is one pass over the tokens for W2 and one for p, z and s."""
        inputs, aims = ffn.first_aims(self.all_needs)
        best, kept, now, history = math.inf, {}, {}, []
        for epoch in range(self.epochs):
            for role, aim in aims.items():
                now[role] = self._step(role, ffn.weight[role], aim, inputs, shares[role], now.get(role))
            hidden, outputs = ffn.hidden_statistics({role: one.solution.weight for role, one in now.items()})
            now["down"] = self._step("down", ffn.weight["down"], outputs, hidden, shares["down"], now.get("down"))
            weights = {role: one.solution.weight for role, one in now.items()}
            error = ffn.relative_error(weights, hidden, outputs)
            gain = 1.0 if not epoch else 1 - error / best if best else 0.0       # nothing is better than no error
            if gain > 0 or not self.keep_best:
                best, kept = error, dict(now)
            last = epoch == self.epochs - 1 or (self.keep_best and gain < self.tolerance)
            aims, terms = ffn.update(weights, self.alpha, self.beta, self.gamma, last=last)
            history.append({"epoch": epoch, "error": error, **terms})
            if last:
                break
        return {role: Fit.of(one.target, one.solution, one.stats, ffn.dtype) for role, one in kept.items()}, history

    def _step(self, role: str, weight: Tensor, outputs: Tensor, stats: Statistics, pattern: Pattern, last: "Step | None"
              ) -> "Step":
        """Fit the outputs (T X^T, a raw sum) by a regression on the inputs, and prune what it gives; or refit the weights
        under the mask found before, where that is kept."""
        if last and role == "down" and self.down == "descent":
            target = descend(last.solution.weight, outputs, stats)
        else:
            target = regression(weight, outputs, stats, self.ridge)
        if last and not self.new_masks:
            new = refit(target, last.solution.weight, last.solution.mask, stats.hessian())
            return Step(target, replace(last.solution, weight=new), stats)
        return Step(*self.prune_matrix(target, stats, pattern), stats)


@dataclass
class Step:
    """What a matrix aimed at in an epoch, what it became, and the statistics of its inputs."""

    target: Tensor
    solution: Solution
    stats: Statistics


def descend(weight: Tensor, outputs: Tensor, stats: Statistics, steps: int = 10, rate: float = 0.01) -> Tensor:
    """Gradient steps on the mean of (W p - T)^2, from the Gram matrix; outputs is T p^T, a raw sum."""
    count = stats.tokens * len(weight)
    for _ in range(steps):
        weight = weight - 2 * rate / count * (weight @ stats.gram - outputs)
    return weight


class FeedForward:
    """The tokens and auxiliary variables of one feed-forward network, and the steps that solve for them.

    x [N, d] what it receives, and `dense` [N, d] what it would receive in the dense model (None: the same), both as they
    come; y [N, d] its target less the bias; z [N, f] and (gate) s [N, f] the auxiliary variables, which start as what the
    dense weights make of `dense`, and need memory only where they are changed.
    """

    def __init__(self, linears: dict[str, nn.Linear], tokens: int, *, keep_p: bool = False):
        self.weight = {role: linear.weight.detach().float() for role, linear in linears.items()}
        self.bias = {role: 0 if linear.bias is None else linear.bias.detach().float() for role, linear in linears.items()}
        self.gated, up, self.dtype = "gate" in linears, self.weight["up"], linears["up"].weight.dtype
        self.tokens, self.filled = tokens, 0
        self.x = self.dense = self.z = self.s = None
        self.y = up.new_empty(tokens, up.shape[1])
        self.p = up.new_empty(tokens, up.shape[0]) if keep_p else None
        self.aims = {role: torch.zeros_like(self.weight[role]) for role in self.weight if role != "down"}

    def add(self, x: Tensor, dense: Tensor | None = None, drift: Tensor | None = None) -> None:
        """Tokens on their way in, x [..., d]; `dense`: the same place in the dense model, which sets the targets;
        `drift` [..., d]: what the residual stream lacks of the dense model's, added to them."""
        x = x.detach().reshape(-1, x.shape[-1])
        if self.x is None:
            self.x = x.new_empty(self.tokens, x.shape[1])
            self.dense = None if dense is None else torch.empty_like(self.x)
        part = slice(self.filled, self.filled + len(x))
        self.filled += len(x)
        self.x[part] = x
        if dense is not None:
            self.dense[part] = dense.detach().reshape(x.shape)
        z, s = self._at_start(part)
        self._add_aims(self.aims, part, z, s)
        p = self.activation(z, s)
        self.y[part] = p @ self.weight["down"].T + (0 if drift is None else drift.reshape(x.shape))
        if self.p is not None:
            self.p[part] = p

    def finish(self, name: str) -> "FeedForward":
        """Refuse what is not finite, naming the module."""
        if not (torch.isfinite(self.x).all() and torch.isfinite(self.y).all()):
            raise SparselabError(f"the calibration inputs of {name}, or its outputs, are not finite (NaN or infinite). "
                                 "Look for broken weights before it, or load the model with dtype=torch.float32.")
        return self

    def _at_start(self, part: slice) -> list[Tensor | None]:
        """z and s [n, f] as the dense model has them."""
        return self._before(self.weight, (self.x if self.dense is None else self.dense)[part].float())

    def _auxiliary(self, part: slice) -> tuple[Tensor, Tensor | None] | list[Tensor | None]:
        """z and s [n, f] as they are now."""
        return self._at_start(part) if self.z is None else (self.z[part], self.s[part] if self.gated else None)

    def _make_room(self) -> None:
        """From here on z and s are changed."""
        up = self.weight["up"]
        z, s = up.new_empty(self.filled, len(up)), up.new_empty(self.filled, len(up)) if self.gated else None
        for part in self.parts():
            z[part], start = self._at_start(part)
            if self.gated:
                s[part] = start
        self.z, self.s = z, s

    def activation(self, z: Tensor, s: Tensor | None) -> Tensor:
        """phi: ReLU, or SwiGLU with a gate; [n, f]."""
        return F.silu(s) * z if self.gated else F.relu(z)

    def parts(self) -> Iterator[slice]:
        """Chunks of tokens."""
        size = CHUNK.get(self.x.device.type, CHUNK["cpu"])
        return (slice(a, min(a + size, self.filled)) for a in range(0, self.filled, size))

    def before(self, weights: dict[str, Tensor], part: slice) -> list[Tensor | None]:
        """What the up and the gate matrix make of x, [n, f]; None without a gate."""
        return self._before(weights, self.x[part].float())

    def _before(self, weights: dict[str, Tensor], x: Tensor) -> list[Tensor | None]:
        return [x @ weights[role].T + self.bias[role] if role in weights else None for role in ("up", "gate")]

    def first_aims(self, needs: set[str]) -> tuple[Statistics, dict[str, Tensor]]:
        """Statistics of x, and what the first matrices aim at, (z - b) X^T and (s - b) X^T [f, d], before any update."""
        inputs = Statistics(self.x.shape[1], self.x.device, needs=needs - {"cross"})
        for part in self.parts():
            inputs.add(self.x[part])
        ranks.add_up(*self.aims.values())
        return inputs.finish("the feed-forward network"), self.aims

    def _add_aims(self, aims: dict[str, Tensor], part: slice, z: Tensor, s: Tensor | None) -> None:
        for role, auxiliary in (("up", z), ("gate", s)):
            if role in aims:
                aims[role].addmm_((auxiliary - self.bias[role]).T, self.x[part].float())

    def hidden_statistics(self, weights: dict[str, Tensor]) -> tuple[Statistics, Tensor]:
        """Statistics of W2's inputs a: the auxiliary p where it is kept, else what the weights make of x; and its aim
        Y a^T [d, f]."""
        hidden = Statistics(self.weight["down"].shape[1], self.x.device, needs=(GRAM, NORMS))
        outputs = torch.zeros_like(self.weight["down"])
        for part in self.parts():
            a = self.activation(*self.before(weights, part)) if self.p is None else self.p[part]
            hidden.add(a)
            outputs.addmm_(self.y[part].T, a)
        ranks.add_up(outputs)
        return hidden.finish("the second linear of the feed-forward network"), outputs

    def relative_error(self, weights: dict[str, Tensor], hidden: Statistics, outputs: Tensor) -> float:
        """||Y - W2 a|| / ||Y|| for what the weights really make of x: from W2's Gram matrix where that is of a, else from
        a pass over the tokens."""
        down, whole = weights["down"], square(self.y)
        ranks.add_up(whole)
        if self.p is None:
            rest = whole - 2 * (down * outputs).sum(dtype=torch.float64) + ((down @ hidden.gram) * down).sum(
                dtype=torch.float64)
        else:
            rest = sum(square(self.y[part] - self.activation(*self.before(weights, part)) @ down.T)
                       for part in self.parts())
            ranks.add_up(rest)
        return (rest.clamp(min=0) / whole).sqrt().item() if whole > 0 else float(rest > 0)

    def update(self, weights: dict[str, Tensor], alpha: float, beta: float, gamma: float, *, last: bool = False
               ) -> tuple[dict, dict]:
        """One step for p, z and s, given the weights: the next aims, and the penalty terms per token after it. The last
        step is for p alone."""
        down, sums = weights["down"], torch.zeros(3, dtype=torch.float64, device=self.x.device)
        if not last and self.z is None:
            self._make_room()
        inner = torch.linalg.cholesky(ridge(down @ down.T, gamma / beta))    # [d, d]
        aims = {role: torch.zeros_like(self.weight[role]) for role in self.weight if role != "down"}
        for part in self.parts():
            m, g = self.before(weights, part)
            y, (z, s) = self.y[part], self._auxiliary(part)
            p = solve_p(self.activation(z, s), y, down, inner)
            if self.p is not None:
                self.p[part] = p
            if self.gated and not last:
                self.z[part] = z = solve_gated_z(p, m, F.silu(s), alpha, gamma)
                self.s[part] = s = solve_s(s, p, z, g, alpha, gamma)
            elif not last:
                self.z[part] = z = solve_relu_z(p, m, alpha, gamma)
            first = alpha * (square(z - m) + (square(s - g) if self.gated else 0))
            sums += torch.stack((first, beta * square(y - p @ down.T), gamma * square(p - self.activation(z, s))))
            if not last:
                self._add_aims(aims, part, z, s)
        ranks.add_up(sums, *aims.values())
        terms = (sums / ranks.total(self.filled)).tolist()
        return aims, dict(zip(("alpha_term", "beta_term", "gamma_term"), terms, strict=True))


# --- the sub-problems, each solved exactly or by steps that never make it worse ---------------------------------------

def square(x: Tensor) -> Tensor:
    """Sum of squares, float64."""
    return x.square().sum(dtype=torch.float64)


def ridge(matrix: Tensor, amount: float) -> Tensor:
    """matrix + amount * I, in place; never less than float32 can factor."""
    matrix.diagonal().add_(max(amount, 1e-6 * matrix.diagonal().mean().item()))
    return matrix


def solve_p(phi: Tensor, y: Tensor, down: Tensor, inner: Tensor) -> Tensor:
    """argmin over p of beta |y - W2 p|^2 + gamma |p - phi|^2, rows are tokens: phi [n, f], y [n, d], down W2 [d, f].

    p = phi + W2^T (W2 W2^T + gamma/beta I)^-1 (y - W2 phi): the push-through identity turns the f x f inverse of the
    normal equations into `inner`, the Cholesky factor of a d x d matrix.
    """
    return phi + torch.cholesky_solve((y - phi @ down.T).T, inner).T @ down


def solve_relu_z(p: Tensor, m: Tensor, alpha: float, gamma: float) -> Tensor:
    """argmin over z of alpha (z - m)^2 + gamma (p - relu(z))^2, per element: the better of z >= 0 and z <= 0."""
    up, low = ((gamma * p + alpha * m) / (gamma + alpha)).clamp_(min=0), m.clamp(max=0)
    cost_up = alpha * (up - m).square_() + gamma * (p - up).square_()
    cost_low = alpha * (low - m).square_() + gamma * p.square()
    return torch.where(cost_up <= cost_low, up, low)


def solve_gated_z(p: Tensor, m: Tensor, gate: Tensor, alpha: float, gamma: float) -> Tensor:
    """argmin over z of alpha (z - m)^2 + gamma (p - gate z)^2, per element."""
    return (alpha * m + gamma * gate * p) / (alpha + gamma * gate.square())


def solve_s(s: Tensor, p: Tensor, z: Tensor, g: Tensor, alpha: float, gamma: float, steps: int = GATE_STEPS) -> Tensor:
    """Lower alpha (s - g)^2 + gamma (p - silu(s) z)^2 over s, per element, from s.

    Gauss-Newton: the step is the gradient over alpha + gamma (z silu'(s))^2, at most |g - s| + |p - silu(s) z| / |z|
    in size whatever z is. A step that does not lower the cost is not taken, and the next is a quarter of it: finite
    and never worse, where the published fixed step diverges for |z| above 4.
    """
    cost, scale = _gate_cost(s, p, z, g, alpha, gamma), torch.ones_like(s)
    for _ in range(steps):
        sigmoid = torch.sigmoid(s)
        slope = z * sigmoid * (1 + s * (1 - sigmoid))                        # d (silu(s) z) / ds
        gradient = alpha * (s - g) - gamma * (p - s * sigmoid * z) * slope
        new = s - scale * gradient / (alpha + gamma * slope.square())
        new_cost = _gate_cost(new, p, z, g, alpha, gamma)
        better = new_cost < cost                                             # False for NaN
        s, cost = torch.where(better, new, s), torch.where(better, new_cost, cost)
        scale = torch.where(better, scale, scale / 4)
    return s


def _gate_cost(s: Tensor, p: Tensor, z: Tensor, g: Tensor, alpha: float, gamma: float) -> Tensor:
    return alpha * (s - g).square() + gamma * (p - F.silu(s) * z).square()
