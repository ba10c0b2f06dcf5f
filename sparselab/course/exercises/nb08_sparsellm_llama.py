"""The exercises of notebook 08."""

import math

import torch
import torch.nn.functional as F

from .checking import Exercise, mistakes, normal

STEEPEST = 1.0998  # the largest slope of SiLU


# 08.1: how large z may be
def _largest_z(rate, alpha, gamma):
    return math.sqrt((1 / rate - alpha) / gamma) / STEEPEST


def _largest_z_at_once(rate, alpha, gamma):
    return ((1 / rate - alpha) / (gamma * STEEPEST**2)) ** 0.5


def _squared_z(rate, alpha, gamma):
    """that is z squared: (5) bounds z^2, take the root."""
    return (1 / rate - alpha) / gamma / STEEPEST**2


def _without_alpha(rate, alpha, gamma):
    """the alpha term has curvature too: 2 alpha goes off the bound 2 / rate before z gets its
    share."""
    return math.sqrt(1 / rate / gamma) / STEEPEST


def _root_of_slope(rate, alpha, gamma):
    """the slope of SiLU is squared in (5): its root takes it out as STEEPEST, not as the root of
    it."""
    return math.sqrt((1 / rate - alpha) / gamma / STEEPEST)


def _factor_two_once(rate, alpha, gamma):
    """the squares bring a factor of 2 to the gradient, in both terms: rate (2 alpha + 2 gamma z^2
    slope^2) < 2."""
    return math.sqrt(max(2 / rate - alpha, 0) / gamma) / STEEPEST


STABLE = Exercise(
    _largest_z,
    ((0.01, 5.0, 5.0), (0.01, 0.1, 0.1), (0.2, 1.0, 0.5)),
    mistakes(_squared_z, _without_alpha, _root_of_slope, _factor_two_once),
    right=(_largest_z_at_once,),
    kind="warm-up",
    minutes=4,
)


# 08.2: the step for z with any penalties
def _gated_z(p, m, gate, alpha, gamma):
    return (alpha * m + gamma * gate * p) / (alpha + gamma * gate**2)


def _published_z(p, m, gate, alpha, gamma):
    """that is the published formula, which holds for alpha = gamma alone: both penalties have
    cancelled."""
    return (m + gate * p) / (1 + gate**2)


def _penalties_exchanged(p, m, gate, alpha, gamma):
    """alpha and gamma are exchanged: alpha belongs to m, the side of the matrix."""
    return (gamma * m + alpha * gate * p) / (gamma + alpha * gate**2)


def _gate_not_squared(p, m, gate, alpha, gamma):
    """the gate is not squared in the denominator: the inner derivative brings a second factor."""
    return (alpha * m + gamma * gate * p) / (alpha + gamma * gate.abs())


def _z_from_p(p, m, gate, alpha, gamma):
    """p / gate alone leaves out the alpha term, and explodes where the gate is shut."""
    return p / gate


def _p_without_gate(p, m, gate, alpha, gamma):
    """p must be multiplied by the gate: where the gate is shut, p says nothing about z."""
    return (alpha * m + gamma * p) / (alpha + gamma * gate**2)


def _gated_z_from_m(p, m, gate, alpha, gamma):
    return m + gamma * gate * (p - gate * m) / (alpha + gamma * gate**2)


def _gated_case(k, alpha, gamma):
    gate = F.silu(normal(40, seed=k + 2, scale=2.0))
    return normal(40, seed=k), normal(40, seed=k + 1), gate, alpha, gamma


GATED = Exercise(
    _gated_z,
    (_gated_case(1, 1.0, 1.0), _gated_case(5, 0.1, 5.0), _gated_case(9, 5.0, 0.1)),
    mistakes(_published_z, _penalties_exchanged, _gate_not_squared, _z_from_p, _p_without_gate),
    right=(_gated_z_from_m,),
    kind="find-the-bug",
    minutes=5,
)


# 08.3: take a step only where it helps
def _accept(s, new, cost, new_cost):
    return torch.where(new_cost < cost, new, s)


def _accept_nan(s, new, cost, new_cost):
    """a comparison with NaN is False, so where(new_cost > cost, s, new) lets NaN in. Ask for what
    is better instead."""
    return torch.where(new_cost > cost, s, new)


def _accept_all(s, new, cost, new_cost):
    """one verdict for all: each element has its own minimum, and must accept or refuse on its
    own."""
    return new if new_cost.nan_to_num(nan=torch.inf).sum() < cost.sum() else s


def _accept_blindly(s, new, cost, new_cost):
    """every step is taken, the bad ones too."""
    return new


def _accept_worse(s, new, cost, new_cost):
    """the wrong way round: you keep what makes it worse."""
    return torch.where(new_cost < cost, s, new)


def _accept_unless_worse(s, new, cost, new_cost):
    return torch.where(~(new_cost < cost), s, new)


INF, NAN = torch.inf, torch.nan
STEPS = [[1.0, 2, 3, 4], [1.5, 9, NAN, -INF], [1.0, 1, 1, 1], [0.5, 7, NAN, INF]]
ACCEPT = Exercise(
    _accept,
    (
        tuple(torch.tensor(STEPS)),
        tuple(torch.tensor([[0.5, -1, 2], [0.4, -2, 1], [4.0, 4, 4], [3.0, 5, 1]])),
    ),
    mistakes(_accept_nan, _accept_all, _accept_blindly, _accept_worse),
    right=(_accept_unless_worse,),
    minutes=5,
)


# 08.4: the curvature of the cost in s
def _slopes(s):
    sigmoid = torch.sigmoid(s)
    first = sigmoid * (1 + s * (1 - sigmoid))
    return F.silu(s), first, sigmoid * (1 - sigmoid) * (2 + s * (1 - 2 * sigmoid))


def _curvature(s, p, z, alpha, gamma):
    silu, first, second = _slopes(s)
    return 2 * alpha + 2 * gamma * ((z * first) ** 2 - (p - silu * z) * z * second)


def _curvature_by_autograd(s, p, z, alpha, gamma):
    with torch.enable_grad():
        s = s.detach().clone().requires_grad_()
        fit = gamma * (p - F.silu(s) * z) ** 2
        (slope,) = torch.autograd.grad(fit.sum(), s, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), s)
    return 2 * alpha + bend


def _gauss_newton(s, p, z, alpha, gamma):
    """that is Gauss-Newton's curvature, which leaves out how SiLU bends: it is always positive, the
    true one is not."""
    return 2 * alpha + 2 * gamma * (z * _slopes(s)[1]) ** 2


def _curvature_wrong_sign(s, p, z, alpha, gamma):
    """the sign of the bending term: the residual is p - SiLU(s) z, and its derivative in s is
    negative."""
    silu, first, second = _slopes(s)
    return 2 * alpha + 2 * gamma * ((z * first) ** 2 + (p - silu * z) * z * second)


def _curvature_without_z(s, p, z, alpha, gamma):
    """the bending term lacks z: d^2 (SiLU(s) z) / ds^2 = z SiLU''(s)."""
    silu, first, second = _slopes(s)
    return 2 * alpha + 2 * gamma * ((z * first) ** 2 - (p - silu * z) * second)


def _curvature_halved(s, p, z, alpha, gamma):
    """half of it: the costs are squares without 1/2, so both terms carry a factor of 2."""
    return _curvature(s, p, z, alpha, gamma) / 2


def _gate_case(k):
    """s, p, and z or m."""
    s, p = normal(30, seed=k, scale=2.0), normal(30, seed=k + 1, scale=3.0)
    return s, p, normal(30, seed=k + 2, scale=2.0)


CURVATURE = Exercise(
    _curvature,
    ((*_gate_case(1), 1.0, 1.0), (*_gate_case(5), 0.3, 2.0)),
    mistakes(_gauss_newton, _curvature_wrong_sign, _curvature_without_z, _curvature_halved),
    right=(_curvature_by_autograd,),
    minutes=10,
    rtol=1e-3,
)


# 08.5: z eliminated
def _reduced(s, p, m, g, alpha, gamma):
    gate = F.silu(s)
    return alpha * (s - g) ** 2 + alpha * gamma * (p - gate * m) ** 2 / (alpha + gamma * gate**2)


def _reduced_by_insertion(s, p, m, g, alpha, gamma):
    """The best z put into the cost."""
    z = _gated_z(p, m, F.silu(s), alpha, gamma)
    return alpha * (s - g) ** 2 + alpha * (z - m) ** 2 + gamma * (p - F.silu(s) * z) ** 2


def _reduced_without_alpha(s, p, m, g, alpha, gamma):
    """a factor alpha is missing: with the best z, both terms together are alpha gamma (...)^2 /
    (alpha + gamma gate^2)."""
    gate = F.silu(s)
    return alpha * (s - g) ** 2 + gamma * (p - gate * m) ** 2 / (alpha + gamma * gate**2)


def _reduced_without_price(s, p, m, g, alpha, gamma):
    """the price alpha (z - m)^2 of moving z is missing."""
    z = _gated_z(p, m, F.silu(s), alpha, gamma)
    return alpha * (s - g) ** 2 + gamma * (p - F.silu(s) * z) ** 2


def _reduced_at_m(s, p, m, g, alpha, gamma):
    """z stays at m: that is the cost before z has moved. Insert the z of (3)."""
    return alpha * (s - g) ** 2 + gamma * (p - F.silu(s) * m) ** 2


def _reduced_equal(s, p, m, g, alpha, gamma):
    """the denominator holds for alpha = gamma = 1 alone."""
    gate = F.silu(s)
    return alpha * (s - g) ** 2 + alpha * gamma * (p - gate * m) ** 2 / (1 + gate**2)


REDUCED = Exercise(
    _reduced,
    (
        (*_gate_case(1), normal(30, seed=4), 1.0, 2.0),
        (*_gate_case(5), normal(30, seed=8), 0.3, 2.0),
    ),
    mistakes(_reduced_without_alpha, _reduced_without_price, _reduced_at_m, _reduced_equal),
    right=(_reduced_by_insertion,),
    kind="stretch",
    minutes=12,
    rtol=1e-3,
)
EXERCISES = {"08.1": STABLE, "08.2": GATED, "08.3": ACCEPT, "08.4": CURVATURE, "08.5": REDUCED}
