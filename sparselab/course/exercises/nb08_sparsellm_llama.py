"""The exercises of notebook 08."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .checking import Exercise, mistakes, normal
from .nb07_sparsellm_opt import (
    activation_step,
    by_epoch,
    errors_by_epoch,
    fit_of_the_check,
    prune_in_the_check,
)

STEEPEST = 1.0998  # the largest slope of SiLU


def silu_slope(s: Tensor) -> Tensor:
    """SiLU'(s), any shape."""
    sigmoid = torch.sigmoid(s)
    return sigmoid * (1 + s * (1 - sigmoid))


def gate_cost(s, p, z, g, alpha=1.0, gamma=1.0) -> Tensor:
    """What each entry of s costs, any shape."""
    return alpha * (s - g) ** 2 + gamma * (p - F.silu(s) * z) ** 2


# 08.1: the step for z with any penalties
def gated_z_step(p, m, gate, alpha=1.0, gamma=1.0):
    """The z, entry by entry, that minimises alpha (z - m)^2 + gamma (p - gate z)^2."""
    return (alpha * m + gamma * gate * p) / (alpha + gamma * gate**2)


def _released_z(p, m, gate, alpha=1.0, gamma=1.0):
    """That is the released formula. It holds for alpha = gamma alone, where both cancel."""
    return (m + gate * p) / (1 + gate**2)


def _penalties_exchanged(p, m, gate, alpha=1.0, gamma=1.0):
    """alpha and gamma are exchanged: alpha belongs to m, the side of the matrix."""
    return (gamma * m + alpha * gate * p) / (gamma + alpha * gate**2)


def _gate_not_squared(p, m, gate, alpha=1.0, gamma=1.0):
    """The gate is not squared in the denominator: the inner derivative brings a second factor."""
    return (alpha * m + gamma * gate * p) / (alpha + gamma * gate.abs())


def _z_from_p(p, m, gate, alpha=1.0, gamma=1.0):
    """p / gate alone leaves out the alpha term, and explodes where the gate is closed."""
    return p / gate


def _p_without_gate(p, m, gate, alpha=1.0, gamma=1.0):
    """p must be multiplied by the gate: where the gate is closed, p says nothing about z."""
    return (alpha * m + gamma * p) / (alpha + gamma * gate**2)


def _gated_z_from_m(p, m, gate, alpha=1.0, gamma=1.0):
    return m + gamma * gate * (p - gate * m) / (alpha + gamma * gate**2)


def _gated_case(seed: int, alpha: float, gamma: float) -> tuple:
    gate = F.silu(normal(3, 6, seed=seed + 2, scale=2.0))
    return normal(3, 6, seed=seed), normal(3, 6, seed=seed + 1), gate, alpha, gamma


# 08.2: one gradient step for s
def gate_step(s, p, z, g, alpha=5.0, gamma=5.0, rate=0.01):
    """s after one step of this length against the gradient of its cost, any shape."""
    missing = p - F.silu(s) * z
    gradient = 2 * alpha * (s - g) - 2 * gamma * missing * z * silu_slope(s)
    return s - rate * gradient


def _gate_step_by_autograd(s, p, z, g, alpha=5.0, gamma=5.0, rate=0.01):
    cost = lambda s: gate_cost(s, p, z, g, alpha, gamma).sum()  # noqa: E731
    return s - rate * torch.func.grad(cost)(s)


def _without_factor_two(s, p, z, g, alpha=5.0, gamma=5.0, rate=0.01):
    """The factor of 2 is missing: the derivative of a square brings one, in both terms."""
    return gate_step(s, p, z, g, alpha, gamma, rate / 2)


def _without_slope(s, p, z, g, alpha=5.0, gamma=5.0, rate=0.01):
    """The inner derivative is z SiLU'(s): the slope of SiLU is missing."""
    return s - rate * (2 * alpha * (s - g) - 2 * gamma * (p - F.silu(s) * z) * z)


def _without_inner_z(s, p, z, g, alpha=5.0, gamma=5.0, rate=0.01):
    """The inner derivative is z SiLU'(s): its z is missing."""
    missing = p - F.silu(s) * z
    return s - rate * (2 * alpha * (s - g) - 2 * gamma * missing * silu_slope(s))


def _without_inner_derivative(s, p, z, g, alpha=5.0, gamma=5.0, rate=0.01):
    """The chain rule: the second square has an inner derivative, -z SiLU'(s)."""
    return s - rate * (2 * alpha * (s - g) - 2 * gamma * (p - F.silu(s) * z))


def _sign_of_second_term(s, p, z, g, alpha=5.0, gamma=5.0, rate=0.01):
    """The sign of the second term: what is missing is p - SiLU(s) z, and its derivative in s is
    negative."""
    missing = p - F.silu(s) * z
    return s - rate * (2 * alpha * (s - g) + 2 * gamma * missing * z * silu_slope(s))


def _uphill(s, p, z, g, alpha=5.0, gamma=5.0, rate=0.01):
    """You walk uphill: subtract the gradient."""
    return gate_step(s, p, z, g, alpha, gamma, -rate)


def _gradient_alone(s, p, z, g, alpha=5.0, gamma=5.0, rate=0.01):
    """That is the gradient. The step subtracts rate times it from s."""
    return (s - gate_step(s, p, z, g, alpha, gamma, rate)) / rate


def _gate_case(seed: int, *rest: float) -> tuple:
    """s, p, z and g."""
    s, g = normal(3, 6, seed=seed, scale=2.0), normal(3, 6, seed=seed + 3, scale=2.0)
    return s, normal(3, 6, seed=seed + 1, scale=3.0), normal(3, 6, seed=seed + 2), g, *rest


# 08.3: how large z may be
def largest_z(rate, alpha, gamma):
    """The |z| up to which a gradient step of this rate is stable, whatever s is."""
    return math.sqrt((1 / rate - alpha) / gamma) / STEEPEST


def _largest_z_at_once(rate, alpha, gamma):
    return ((1 / rate - alpha) / (gamma * STEEPEST**2)) ** 0.5


def _squared_z(rate, alpha, gamma):
    """That is z squared: (5) bounds z^2, so take the root."""
    return (1 / rate - alpha) / gamma / STEEPEST**2


def _without_alpha(rate, alpha, gamma):
    """The alpha term has a curvature too: take 2 alpha off the bound 2 / rate before z gets its
    share."""
    return math.sqrt(1 / rate / gamma) / STEEPEST


def _root_of_slope(rate, alpha, gamma):
    """The slope of SiLU is squared in (5), so under the root it is squared, too."""
    return math.sqrt((1 / rate - alpha) / gamma / STEEPEST)


def _factor_two_once(rate, alpha, gamma):
    """The factor of 2 stands before both terms of the curvature: divide all of it by 2."""
    return math.sqrt(max(2 / rate - alpha, 0) / gamma) / STEEPEST


# 08.4: a step that cannot make things worse
def safe_gate_step(s, p, z, g, alpha=1.0, gamma=1.0, steps=2):
    """s after Gauss-Newton steps, each taken only where it lowers the entry's cost, any shape."""
    return _safe_steps(s, p, z, g, alpha, gamma, steps)


def _safe_steps(s, p, z, g, alpha, gamma, steps, fault=""):
    """The steps, or one of the ways to get them wrong."""
    length, cost = torch.ones_like(s), gate_cost(s, p, z, g, alpha, gamma)
    for _ in range(1 if fault == "one step" else steps):
        slope = (1 if fault == "no z" else z) * silu_slope(s)
        pull = alpha * (s - g) - gamma * (p - F.silu(s) * z) * slope
        bend = slope.abs() if fault == "not squared" else slope**2
        new = s - length * pull / (alpha + gamma * bend)
        new_cost = gate_cost(new, p, z, g, alpha, gamma)
        better = new_cost < cost  # False for NaN
        if fault == "NaN":
            better = ~(new_cost > cost)
        if fault == "blind":
            better = torch.ones_like(better)
        if fault == "together":
            better = (new_cost.nansum() < cost.nansum()).expand_as(better)
        s = torch.where(better, new, s)
        if fault != "first cost":
            cost = torch.where(better, new_cost, cost)
        if fault != "full length":
            length = torch.where(better, length, length / 4)
    return s


def _let_nan_in(s, p, z, g, alpha=1.0, gamma=1.0, steps=2):
    """A comparison with NaN is False, so "keep s where the new cost is higher" lets NaN in. Ask
    whether the new cost is lower."""
    return _safe_steps(s, p, z, g, alpha, gamma, steps, "NaN")


def _every_step_taken(s, p, z, g, alpha=1.0, gamma=1.0, steps=2):
    """Every step is taken, those that raise the cost, too: compare the costs before and after."""
    return _safe_steps(s, p, z, g, alpha, gamma, steps, "blind")


def _one_verdict(s, p, z, g, alpha=1.0, gamma=1.0, steps=2):
    """One verdict for all entries: each has its own cost, and takes or refuses its step alone."""
    return _safe_steps(s, p, z, g, alpha, gamma, steps, "together")


def _never_shorter(s, p, z, g, alpha=1.0, gamma=1.0, steps=2):
    """After a refused step you try the same one again: divide the length of that entry by 4."""
    return _safe_steps(s, p, z, g, alpha, gamma, steps, "full length")


def _against_first_cost(s, p, z, g, alpha=1.0, gamma=1.0, steps=2):
    """You compare with the cost at the start. After a step is taken, its cost is the one to
    beat."""
    return _safe_steps(s, p, z, g, alpha, gamma, steps, "first cost")


def _one_step_alone(s, p, z, g, alpha=1.0, gamma=1.0, steps=2):
    """You take one step, whatever `steps` says."""
    return _safe_steps(s, p, z, g, alpha, gamma, steps, "one step")


def _curvature_not_squared(s, p, z, g, alpha=1.0, gamma=1.0, steps=2):
    """In the denominator of (6), z SiLU'(s) is squared."""
    return _safe_steps(s, p, z, g, alpha, gamma, steps, "not squared")


def _curvature_lacks_z(s, p, z, g, alpha=1.0, gamma=1.0, steps=2):
    """z is missing: both the numerator and the denominator of (6) have z SiLU'(s) in them."""
    return _safe_steps(s, p, z, g, alpha, gamma, steps, "no z")


def _gradient_steps_again(s, p, z, g, alpha=1.0, gamma=1.0, steps=2):
    """Those are gradient steps: divide by the curvature, as (6) says."""
    for _ in range(steps):
        s = gate_step(s, p, z, g, alpha, gamma, 0.5)
    return s


def _safe_by_loop(s, p, z, g, alpha=1.0, gamma=1.0, steps=2):
    """Where no step is refused, the same; entry by entry."""
    every = torch.stack(torch.broadcast_tensors(s, p, z, g)).flatten(1).T
    made = [_safe_steps(*entry, alpha, gamma, steps) for entry in every]
    return torch.stack(made).view_as(s)


def _hard_case(seed: int, *rest: float) -> tuple:
    """Entries with a large z, far from their minimum, one of them with a p that overflowed; in
    double precision, so that rounding takes and refuses no step."""
    s, p, z, g = (each.double() for each in _gate_case(seed))
    z, p = 5 * z, 10 * p
    p[0, 0] = torch.inf
    return s, p, z, g, *rest


# 08.5: the loop
def gated_sparsellm(Wg, Wu, Wd, X, prune_layer, fit, s_step, epochs):
    """SparseLLM's loop for a network with a gate: for each epoch the pruned matrices, and s, z and
    p after it."""
    return _gated_loop(Wg, Wu, Wd, X, prune_layer, fit, s_step, epochs)


def _p_step(phi: Tensor, Y: Tensor, D: Tensor) -> Tensor:
    return phi + activation_step(torch.zeros_like(phi), Y - D @ phi, D)


def _gated_loop(Wg, Wu, Wd, X, prune_layer, fit, s_step, epochs, fault="") -> list[tuple]:
    """The loop, or one of the ways to get it wrong."""
    s, z = Wg @ X, Wu @ X
    p = F.silu(s) * z
    Y, found = Wd @ p, []
    for _ in range(epochs):
        phi = F.silu(s) * z
        G, U = prune_layer(fit(Wg, s, X), X), prune_layer(fit(Wu, z, X), X)
        inputs = phi if fault == "phi" else p
        D = prune_layer(fit(Wd, Y, inputs), inputs)
        if fault != "p stays":
            p = _p_step(phi, Y, Wd if fault == "dense Wd" else D)
        dense = fault == "dense"
        m, g = ((Wu, Wg) if dense else (U, G) if fault != "exchanged" else (G, U)), X
        m, g = m[0] @ X, m[1] @ X
        if fault == "s first":
            s = s_step(s, p, z, g)
        if fault != "z stays":
            z = gated_z_step(p, m, s if fault == "no silu" else F.silu(s))
        if fault not in ("s first", "s stays"):
            s = s_step(s, p, z, g)
        if fault == "target":
            Y = D @ p
        found.append((G, U, D, s, z, p))
    return found


def _dense_sides(*given):
    """z and s were tied to what the dense matrices give. The alpha terms have the pruned ones in
    them: m = U X and g = G X."""
    return _gated_loop(*given, fault="dense")


def _sides_exchanged(*given):
    """Gate and up are exchanged: z is tied to U X, and s to G X."""
    return _gated_loop(*given, fault="exchanged")


def _p_by_dense_matrix(*given):
    """The step for p used the dense Wd. The beta term has the pruned one in it."""
    return _gated_loop(*given, fault="dense Wd")


def _s_before_z(*given):
    """You updated s before z. Here z comes first, with the old s, and then s with the new z."""
    return _gated_loop(*given, fault="s first")


def _gate_without_silu(*given):
    """The gate of the step for z is SiLU(s), not s."""
    return _gated_loop(*given, fault="no silu")


def _p_never_moves(*given):
    """Your p stays as the dense model has it: call p_step in each epoch."""
    return _gated_loop(*given, fault="p stays")


def _gated_z_never_moves(*given):
    """Your z stays as the dense model has it: call gated_z_step in each epoch."""
    return _gated_loop(*given, fault="z stays")


def _s_never_moves(*given):
    """Your s stays as the dense model has it: call s_step in each epoch."""
    return _gated_loop(*given, fault="s stays")


def _gated_target_moves(*given):
    """You changed Y in the loop. It is frozen: the output of the dense network."""
    return _gated_loop(*given, fault="target")


def _fitted_to_phi(*given):
    """Wd is fitted to SiLU(s) z here; its inputs in the beta term are the auxiliary p."""
    return _gated_loop(*given, fault="phi")


def _last_gated_epoch(*given):
    """Only the last epoch is returned: append one entry in each."""
    return gated_sparsellm(*given)[-1:]


def _half_way(s: Tensor, p: Tensor, z: Tensor, g: Tensor) -> Tensor:
    """A step for s that uses all that it is given."""
    return 0.5 * (s + g) + 0.1 * torch.tanh(p - F.silu(s) * z)


def _try_gated_loop(gated_sparsellm: Callable, seed: int) -> dict | None:
    Wg, Wu, Wd = normal(6, 4, seed=seed), normal(6, 4, seed=seed + 1), normal(4, 6, seed=seed + 2)
    X = normal(4, 40, seed=seed + 3)
    found = gated_sparsellm(Wg, Wu, Wd, X, prune_in_the_check, fit_of_the_check, _half_way, 3)
    if found is None:
        return None
    Y, errors = Wd @ (F.silu(Wg @ X) * (Wu @ X)), []
    for G, U, D, *_ in found:
        made = D @ (F.silu(G @ X) * (U @ X))
        errors.append(((made - Y).norm() / Y.norm()).item())
    return by_epoch(found, errors, ("Wg", "Wu", "Wd", "s", "z", "p"))


# 08.6: the curvature of the cost in s
def _slopes(s):
    sigmoid = torch.sigmoid(s)
    return F.silu(s), silu_slope(s), sigmoid * (1 - sigmoid) * (2 + s * (1 - 2 * sigmoid))


def curvature(s, p, z, alpha=1.0, gamma=1.0):
    """The second derivative of the gate's cost in s, any shape."""
    silu, first, second = _slopes(s)
    return 2 * alpha + 2 * gamma * ((z * first) ** 2 - (p - silu * z) * z * second)


def _curvature_by_autograd(s, p, z, alpha=1.0, gamma=1.0):
    with torch.enable_grad():
        s = s.detach().clone().requires_grad_()
        fit = gamma * (p - F.silu(s) * z) ** 2
        (slope,) = torch.autograd.grad(fit.sum(), s, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), s)
    return 2 * alpha + bend


def _gauss_newton(s, p, z, alpha=1.0, gamma=1.0):
    """That is Gauss and Newton's curvature, which leaves out how SiLU bends: it is always
    positive, the true one is not."""
    return 2 * alpha + 2 * gamma * (z * _slopes(s)[1]) ** 2


def _curvature_wrong_sign(s, p, z, alpha=1.0, gamma=1.0):
    """The sign of the bending term: what is missing is p - SiLU(s) z, and its derivative in s is
    negative."""
    silu, first, second = _slopes(s)
    return 2 * alpha + 2 * gamma * ((z * first) ** 2 + (p - silu * z) * z * second)


def _curvature_without_z(s, p, z, alpha=1.0, gamma=1.0):
    """The bending term lacks z: the second derivative of SiLU(s) z is z SiLU''(s)."""
    silu, first, second = _slopes(s)
    return 2 * alpha + 2 * gamma * ((z * first) ** 2 - (p - silu * z) * second)


def _curvature_halved(s, p, z, alpha=1.0, gamma=1.0):
    """That is half of it: the costs are squares without 1/2, so both terms carry a factor of 2."""
    return curvature(s, p, z, alpha, gamma) / 2


# 08.7: z eliminated
def reduced_cost(s, p, m, g, alpha=1.0, gamma=1.0):
    """What s costs when z takes its best value, any shape."""
    gate = F.silu(s)
    return alpha * (s - g) ** 2 + alpha * gamma * (p - gate * m) ** 2 / (alpha + gamma * gate**2)


def _reduced_by_insertion(s, p, m, g, alpha=1.0, gamma=1.0):
    """The best z put into the cost."""
    z = gated_z_step(p, m, F.silu(s), alpha, gamma)
    return alpha * (s - g) ** 2 + alpha * (z - m) ** 2 + gamma * (p - F.silu(s) * z) ** 2


def _reduced_without_alpha(s, p, m, g, alpha=1.0, gamma=1.0):
    """A factor alpha is missing: with the best z, both terms together are alpha gamma (...)^2 /
    (alpha + gamma gate^2)."""
    gate = F.silu(s)
    return alpha * (s - g) ** 2 + gamma * (p - gate * m) ** 2 / (alpha + gamma * gate**2)


def _reduced_without_move(s, p, m, g, alpha=1.0, gamma=1.0):
    """What moving z costs, alpha (z - m)^2, is missing."""
    z = gated_z_step(p, m, F.silu(s), alpha, gamma)
    return alpha * (s - g) ** 2 + gamma * (p - F.silu(s) * z) ** 2


def _reduced_at_m(s, p, m, g, alpha=1.0, gamma=1.0):
    """Your z stays at m: that is the cost before z has moved. Insert the z of (3)."""
    return alpha * (s - g) ** 2 + gamma * (p - F.silu(s) * m) ** 2


def _reduced_equal(s, p, m, g, alpha=1.0, gamma=1.0):
    """Your denominator holds for alpha = gamma = 1 alone."""
    gate = F.silu(s)
    return alpha * (s - g) ** 2 + alpha * gamma * (p - gate * m) ** 2 / (1 + gate**2)


EXERCISES = {
    "08.1": Exercise(
        gated_z_step,
        (_gated_case(1, 1.0, 1.0), _gated_case(5, 0.1, 5.0), _gated_case(9, 5.0, 0.1)),
        mistakes(_released_z, _penalties_exchanged, _gate_not_squared, _z_from_p, _p_without_gate),
        right=(_gated_z_from_m,),
        kind="find-the-bug",
        minutes=4,
        draw="the auxiliary z",
        quiet=True,
    ),
    "08.2": Exercise(
        gate_step,
        (
            _gate_case(1, 5.0, 5.0, 0.01),
            _gate_case(7, 0.3, 2.0, 0.1),
            _gate_case(11, 2.0, 0.5, 0.2),
        ),
        mistakes(
            _without_factor_two,
            _without_slope,
            _without_inner_z,
            _without_inner_derivative,
            _sign_of_second_term,
            _uphill,
            _gradient_alone,
        ),
        right=(_gate_step_by_autograd,),
        minutes=6,
        rtol=1e-4,
        draw="s after one step",
        quiet=True,
    ),
    "08.3": Exercise(
        largest_z,
        ((0.01, 5.0, 5.0), (0.01, 0.1, 0.1), (0.2, 1.0, 0.5)),
        mistakes(_squared_z, _without_alpha, _root_of_slope, _factor_two_once),
        right=(_largest_z_at_once,),
        kind="warm-up",
        minutes=4,
        quiet=True,
    ),
    "08.4": Exercise(
        safe_gate_step,
        (_hard_case(1, 1.0, 1.0, 3), _hard_case(7, 0.3, 2.0, 5), _gate_case(11, 2.0, 0.5, 2)),
        mistakes(
            _let_nan_in,
            _every_step_taken,
            _one_verdict,
            _never_shorter,
            _against_first_cost,
            _one_step_alone,
            _curvature_not_squared,
            _curvature_lacks_z,
            _gradient_steps_again,
        ),
        right=(_safe_by_loop,),
        minutes=10,
        rtol=1e-3,
        draw="s after the steps",
        quiet=True,
    ),
    "08.5": Exercise(
        gated_sparsellm,
        ((21,), (31,)),
        mistakes(
            _dense_sides,
            _sides_exchanged,
            _p_by_dense_matrix,
            _s_before_z,
            _gate_without_silu,
            _p_never_moves,
            _gated_z_never_moves,
            _s_never_moves,
            _gated_target_moves,
            _fitted_to_phi,
            _last_gated_epoch,
        ),
        minutes=8,
        trial=_try_gated_loop,
        rtol=1e-3,
        draw=errors_by_epoch,
        quiet=True,
    ),
    "08.6": Exercise(
        curvature,
        ((*_gate_case(1)[:3], 1.0, 1.0), (*_gate_case(5)[:3], 0.3, 2.0)),
        mistakes(_gauss_newton, _curvature_wrong_sign, _curvature_without_z, _curvature_halved),
        right=(_curvature_by_autograd,),
        minutes=10,
        rtol=1e-3,
        quiet=True,
    ),
    "08.7": Exercise(
        reduced_cost,
        (_gate_case(1, 1.0, 2.0), _gate_case(5, 0.3, 2.0)),
        mistakes(_reduced_without_alpha, _reduced_without_move, _reduced_at_m, _reduced_equal),
        right=(_reduced_by_insertion,),
        kind="stretch",
        minutes=12,
        rtol=1e-3,
        quiet=True,
    ),
}
