"""The feed-forward network as a whole: the sub-problems of SparseLLM."""

from collections.abc import Iterator
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SparselabError
from ..numerics.statistics import GRAM, NORMS, Statistics
from ..runtime import distributed
from ..runtime.memory import chunk_size

GATE_STEPS = 2  # safeguarded Gauss-Newton steps for the gate variable
CHUNK, COPIES = 256, 8  # tokens at a time that a CPU's cache holds; [n, f] that a step has of them


class FeedForward:
    """The tokens and auxiliary variables of one feed-forward network, and the steps that solve for
    them.

    x [N, d] what it receives, and `dense` [N, d] what it would receive in the dense model (None:
    the same), both as they come; y [N, d] its target less the bias; z [N, f] and (gate) s [N, f]
    the auxiliary variables, which start as what the dense weights make of `dense`, and need memory
    only where they are changed.
    """

    def __init__(self, linears: dict[str, nn.Linear], tokens: int, *, keep_p: bool = False):
        self.weight, self.bias = {}, {}
        for role, linear in linears.items():
            self.weight[role] = linear.weight.detach().float()
            self.bias[role] = 0 if linear.bias is None else linear.bias.detach().float()
        up = self.weight["up"]
        self.gated, self.dtype = "gate" in linears, linears["up"].weight.dtype
        self.tokens, self.filled = tokens, 0
        self.x = self.dense = self.z = self.s = None
        self.y = up.new_empty(tokens, up.shape[1])
        self.p = up.new_empty(tokens, up.shape[0]) if keep_p else None
        self.weights: Tensor | None = None  # of the tokens [N], where they differ
        self.rows: dict[str, Tensor | None] = {}  # of the matrices' rows, by role
        self.error_rows: int | None = None  # on which errors are reported, None: all
        self.cross_products = self._no_aims()

    def add(
        self,
        x: Tensor,
        dense: Tensor | None = None,
        drift: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Tokens on their way in, x [..., d]; `dense`: the same place in the dense model, which
        sets the targets; `drift` [..., d]: what the residual stream lacks of the dense model's,
        added to them; `weights` [...]: how much each token's error counts."""
        x = x.detach().reshape(-1, x.shape[-1])
        if self.x is None:
            self.x = x.new_empty(self.tokens, x.shape[1])
            self.dense = None if dense is None else torch.empty_like(self.x)
        part = slice(self.filled, self.filled + len(x))
        self.filled += len(x)
        self.x[part] = x
        if weights is not None:
            if self.weights is None:
                self.weights = self.y.new_empty(self.tokens)
            self.weights[part] = weights.reshape(-1)
        if dense is not None:
            self.dense[part] = dense.detach().reshape(x.shape)
        z, s = self._at_start(part)
        self._add_aims(self.cross_products, part, z, s)
        p = self.activation(z, s)
        self.y[part] = p @ self.weight["down"].T + (0 if drift is None else drift.reshape(x.shape))
        if self.p is not None:
            self.p[part] = p

    def finish(self, name: str) -> "FeedForward":
        """Refuse what is not finite, naming the module."""
        if not torch.isfinite(self.x).all() & torch.isfinite(self.y).all():
            raise SparselabError(
                f"the calibration inputs of {name}, or its outputs, are not finite (NaN or"
                " infinite). Look for broken weights before it, or load the model with"
                " dtype=torch.float32."
            )
        return self

    def _at_start(self, part: slice) -> list[Tensor | None]:
        """z and s [n, f] as the dense model has them."""
        inputs = self.x if self.dense is None else self.dense
        return self._before(self.weight, inputs[part].float())

    def _auxiliary(self, part: slice) -> tuple[Tensor, Tensor | None] | list[Tensor | None]:
        """z and s [n, f] as they are now."""
        if self.z is None:
            return self._at_start(part)
        return self.z[part], self.s[part] if self.gated else None

    def _make_room(self) -> None:
        """From here on z and s are changed."""
        up = self.weight["up"]
        z = up.new_empty(self.filled, len(up))
        s = torch.empty_like(z) if self.gated else None
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
        for a in range(0, self.filled, self.chunk):
            yield slice(a, min(a + self.chunk, self.filled))

    @cached_property
    def chunk(self) -> int:
        """Tokens in a chunk; decided once, for free memory changes while the next block is read."""
        return chunk_size(self.x.device, 4 * COPIES * len(self.weight["up"]), CHUNK)

    def before(self, weights: dict[str, Tensor], part: slice) -> list[Tensor | None]:
        """What the up and the gate matrix make of x, [n, f]; None without a gate."""
        return self._before(weights, self.x[part].float())

    def _before(self, weights: dict[str, Tensor], x: Tensor) -> list[Tensor | None]:
        made: list[Tensor | None] = [x @ weights["up"].T + self.bias["up"], None]
        if "gate" in weights:
            made[1] = x @ weights["gate"].T + self.bias["gate"]
        return made

    def initial_cross_products(self, needs: set[str]) -> tuple[Statistics, dict[str, Tensor]]:
        """Statistics of x, and what the first matrices aim at, (z - b) X^T and (s - b) X^T [f, d],
        before any update."""
        inputs = Statistics(self.x.shape[1], self.x.device, needs=needs - {"cross"})
        for part in self.parts():
            inputs.add(self.x[part], weights=self._weights(part))
        distributed.all_reduce(*self.cross_products.values())
        return inputs.finish("the feed-forward network"), self.cross_products

    def _no_aims(self) -> dict[str, Tensor]:
        """Zeros for the aims of the first matrices, [f, d] each."""
        first = [role for role in self.weight if role != "down"]
        return {role: torch.zeros_like(self.weight[role]) for role in first}

    def _add_aims(self, aims: dict[str, Tensor], part: slice, z: Tensor, s: Tensor | None) -> None:
        for role, auxiliary in (("up", z), ("gate", s)):
            if role in aims:
                aim = self._weighed(auxiliary - self.bias[role], part)
                aims[role].addmm_(aim.T, self.x[part].float())

    def _weighed(self, tokens: Tensor, part: slice) -> Tensor:
        """Tokens [n, ...] times how much their squared errors count."""
        return tokens if self.weights is None else tokens * self.weights[part, None]

    def _weights(self, part: slice) -> Tensor | None:
        return None if self.weights is None else self.weights[part]

    def hidden_statistics(self, weights: dict[str, Tensor]) -> tuple[Statistics, Tensor]:
        """Statistics of W2's inputs a: the auxiliary p where it is kept, else what the weights make
        of x; and its aim Y a^T [d, f]."""
        hidden = Statistics(self.weight["down"].shape[1], self.x.device, needs=(GRAM, NORMS))
        hidden.shared = False  # W2 alone reads it, and f x f is the largest matrix of a block
        outputs = torch.zeros_like(self.weight["down"])
        for part in self.parts():
            a = self.activation(*self.before(weights, part)) if self.p is None else self.p[part]
            hidden.add(a, weights=self._weights(part))
            outputs.addmm_(self._weighed(self.y[part], part).T, a)
        distributed.all_reduce(outputs)
        return hidden.finish("the second linear of the feed-forward network"), outputs

    def relative_error(
        self, weights: dict[str, Tensor], hidden: Statistics, outputs: Tensor
    ) -> float:
        """||Y - W2 a|| / ||Y|| for what the weights really make of x: from W2's Gram matrix where
        that is of a, else from a pass over the tokens."""
        down = weights["down"]
        whole = sum(self._square(self.y[part], part) for part in self.parts())
        distributed.all_reduce(whole)
        if self.p is None:
            mixed = (down * outputs).sum(dtype=torch.float64)
            rest = whole - 2 * mixed + ((down @ hidden.gram) * down).sum(dtype=torch.float64)
        else:
            rest = torch.zeros_like(whole)
            for part in self.parts():
                made = self.activation(*self.before(weights, part)) @ down.T
                rest += self._square(self.y[part] - made, part)
            distributed.all_reduce(rest)
        whole, rest, error = torch.stack((whole, rest, (rest.clamp(min=0) / whole).sqrt())).tolist()
        return error if whole > 0 else float(rest > 0)

    def _square(self, errors: Tensor, part: slice) -> Tensor:
        """Sum of squared errors [n, ...] as they count, float64."""
        if self.weights is None:
            return errors.square().sum(dtype=torch.float64)
        return (errors.square() * self.weights[part, None]).sum(dtype=torch.float64)

    def update(
        self,
        weights: dict[str, Tensor],
        alpha: float,
        beta: float,
        gamma: float,
        *,
        last: bool = False,
    ) -> tuple[dict, dict]:
        """One step for p, z and s, given the weights: the next aims, and the penalty terms per
        token after it. The last step is for p alone."""
        down, sums = weights["down"], torch.zeros(3, dtype=torch.float64, device=self.x.device)
        if not last and self.z is None:
            self._make_room()
        inner = torch.linalg.cholesky(ridge(down @ down.T, gamma / beta))  # [d, d]
        aims = self._no_aims()
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
            first = self._square(z - m, part) + (self._square(s - g, part) if self.gated else 0)
            second = self._square(y - p @ down.T, part)
            third = self._square(p - self.activation(z, s), part)
            sums += torch.stack((alpha * first, beta * second, gamma * third))
            if not last:
                self._add_aims(aims, part, z, s)
        distributed.all_reduce(sums, *aims.values())
        terms = (sums / distributed.all_reduce_scalar(self.filled)).tolist()
        return aims, dict(zip(("alpha_term", "beta_term", "gamma_term"), terms, strict=True))


def ridge(matrix: Tensor, amount: float) -> Tensor:
    """matrix + amount * I, in place; never less than float32 can factor."""
    least = 1e-6 * matrix.diagonal().mean().double()
    matrix.diagonal().add_(least.clamp(min=amount).to(matrix.dtype))
    return matrix


def solve_p(phi: Tensor, y: Tensor, down: Tensor, inner: Tensor) -> Tensor:
    """argmin over p of beta |y - W2 p|^2 + gamma |p - phi|^2, rows are tokens: phi [n, f], y [n,
    d], down W2 [d, f].

    p = phi + W2^T (W2 W2^T + gamma/beta I)^-1 (y - W2 phi): the push-through identity turns the f x
    f inverse of the normal equations into `inner`, the Cholesky factor of a d x d matrix.
    """
    return phi + torch.cholesky_solve((y - phi @ down.T).T, inner).T @ down


def solve_relu_z(p: Tensor, m: Tensor, alpha: float, gamma: float) -> Tensor:
    """argmin over z of alpha (z - m)^2 + gamma (p - relu(z))^2, per element: the better of z >= 0
    and z <= 0."""
    up, low = ((gamma * p + alpha * m) / (gamma + alpha)).clamp_(min=0), m.clamp(max=0)
    cost_up = alpha * (up - m).square_() + gamma * (p - up).square_()
    cost_low = alpha * (low - m).square_() + gamma * p.square()
    return torch.where(cost_up <= cost_low, up, low)


def solve_gated_z(p: Tensor, m: Tensor, gate: Tensor, alpha: float, gamma: float) -> Tensor:
    """argmin over z of alpha (z - m)^2 + gamma (p - gate z)^2, per element."""
    return (alpha * m + gamma * gate * p) / (alpha + gamma * gate.square())


def solve_s(
    s: Tensor, p: Tensor, z: Tensor, g: Tensor, alpha: float, gamma: float, steps: int = GATE_STEPS
) -> Tensor:
    """Lower alpha (s - g)^2 + gamma (p - silu(s) z)^2 over s, per element, from s.

    Gauss-Newton: the step is the gradient over alpha + gamma (z silu'(s))^2, at most |g - s| + |p -
    silu(s) z| / |z| in size whatever z is. A step that does not lower the cost is not taken, and
    the next is a quarter of it: finite and never worse, where the published fixed step diverges for
    |z| above 4.
    """
    cost, scale = _gate_cost(s, p, z, g, alpha, gamma), torch.ones_like(s)
    for _ in range(steps):
        sigmoid = torch.sigmoid(s)
        slope = z * sigmoid * (1 + s * (1 - sigmoid))  # d (silu(s) z) / ds
        gradient = alpha * (s - g) - gamma * (p - s * sigmoid * z) * slope
        new = s - scale * gradient / (alpha + gamma * slope.square())
        new_cost = _gate_cost(new, p, z, g, alpha, gamma)
        better = new_cost < cost  # False for NaN
        s, cost = torch.where(better, new, s), torch.where(better, new_cost, cost)
        scale = torch.where(better, scale, scale / 4)
    return s


def _gate_cost(s: Tensor, p: Tensor, z: Tensor, g: Tensor, alpha: float, gamma: float) -> Tensor:
    return alpha * (s - g).square() + gamma * (p - F.silu(s) * z).square()
