"""The exercises of notebook 08."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .checking import Exercise

STEEPEST = 1.0998  # the largest slope of SiLU


def _draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# 08.1: how large z may be
def _largest_z(rate, alpha, gamma):
    return math.sqrt((1 / rate - alpha) / gamma) / STEEPEST


STABLE = Exercise(
    _largest_z,
    ((0.01, 5.0, 5.0), (0.01, 0.1, 0.1), (0.2, 1.0, 0.5)),
    {
        "that is z squared: (5) bounds z^2, take the root.": (
            lambda rate, alpha, gamma: (1 / rate - alpha) / gamma / STEEPEST**2
        ),
        "the alpha term has curvature too: 2 alpha goes off the bound 2 / rate before z gets "
        "its share.": (lambda rate, alpha, gamma: math.sqrt(1 / rate / gamma) / STEEPEST),
        "the slope of SiLU is squared in (5): its root takes it out as STEEPEST, not as the "
        "root of it.": lambda rate, alpha, gamma: math.sqrt((1 / rate - alpha) / gamma / STEEPEST),
        "the squares bring a factor of 2 to the gradient, in both terms: rate (2 alpha + 2 "
        "gamma z^2 slope^2) < 2.": (
            lambda rate, alpha, gamma: math.sqrt(max(2 / rate - alpha, 0) / gamma) / STEEPEST
        ),
    },
    right=(lambda rate, alpha, gamma: ((1 / rate - alpha) / (gamma * STEEPEST**2)) ** 0.5,),
    kind="warm-up",
    minutes=4,
)


# 08.2: the step for z with any penalties
def _gated_z(p, m, gate, alpha, gamma):
    return (alpha * m + gamma * gate * p) / (alpha + gamma * gate**2)


GATED = Exercise(
    _gated_z,
    tuple(
        (
            _draw(40, seed=k),
            _draw(40, seed=k + 1),
            F.silu(_draw(40, seed=k + 2, scale=2.0)),
            *penalties,
        )
        for k, penalties in ((1, (1.0, 1.0)), (5, (0.1, 5.0)), (9, (5.0, 0.1)))
    ),
    {
        "that is the published formula, which holds for alpha = gamma alone: both penalties "
        "have cancelled.": (lambda p, m, gate, alpha, gamma: (m + gate * p) / (1 + gate**2)),
        "alpha and gamma are exchanged: alpha belongs to m, the side of the matrix.": (
            lambda p, m, gate, alpha, gamma: (
                (gamma * m + alpha * gate * p) / (gamma + alpha * gate**2)
            )
        ),
        "the gate is not squared in the denominator: the inner derivative brings a second "
        "factor.": (
            lambda p, m, gate, alpha, gamma: (
                (alpha * m + gamma * gate * p) / (alpha + gamma * gate.abs())
            )
        ),
        "p / gate alone leaves out the alpha term, and explodes where the gate is shut.": (
            lambda p, m, gate, alpha, gamma: p / gate
        ),
        "p must be multiplied by the gate: where the gate is shut, p says nothing about z.": (
            lambda p, m, gate, alpha, gamma: (alpha * m + gamma * p) / (alpha + gamma * gate**2)
        ),
    },
    right=(
        lambda p, m, gate, alpha, gamma: (
            m + gamma * gate * (p - gate * m) / (alpha + gamma * gate**2)
        ),
    ),
    kind="find-the-bug",
    minutes=5,
)


# 08.3: take a step only where it helps
def _accept(s, new, cost, new_cost):
    return torch.where(new_cost < cost, new, s)


def _accept_nan(s, new, cost, new_cost):
    return torch.where(new_cost > cost, s, new)


def _accept_all(s, new, cost, new_cost):
    return new if new_cost.nan_to_num(nan=torch.inf).sum() < cost.sum() else s


INF, NAN = torch.inf, torch.nan
ACCEPT = Exercise(
    _accept,
    (
        (
            torch.tensor([1.0, 2, 3, 4]),
            torch.tensor([1.5, 9, NAN, -INF]),
            torch.tensor([1.0, 1, 1, 1]),
            torch.tensor([0.5, 7, NAN, INF]),
        ),
        (
            torch.tensor([0.5, -1, 2]),
            torch.tensor([0.4, -2, 1]),
            torch.tensor([4.0, 4, 4]),
            torch.tensor([3.0, 5, 1]),
        ),
    ),
    {
        "a comparison with NaN is False, so where(new_cost > cost, s, new) lets NaN in. Ask for "
        "what is better instead.": (_accept_nan),
        "one verdict for all: each element has its own minimum, and must accept or refuse on "
        "its own.": (_accept_all),
        "every step is taken, the bad ones too.": lambda s, new, cost, new_cost: new,
        "the wrong way round: you keep what makes it worse.": lambda s, new, cost, new_cost: (
            torch.where(new_cost < cost, s, new)
        ),
    },
    right=(lambda s, new, cost, new_cost: torch.where(~(new_cost < cost), s, new),),
    kind="core",
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
    return 2 * alpha + 2 * gamma * (z * _slopes(s)[1]) ** 2


def _curvature_wrong_sign(s, p, z, alpha, gamma):
    silu, first, second = _slopes(s)
    return 2 * alpha + 2 * gamma * ((z * first) ** 2 + (p - silu * z) * z * second)


def _curvature_without_z(s, p, z, alpha, gamma):
    silu, first, second = _slopes(s)
    return 2 * alpha + 2 * gamma * ((z * first) ** 2 - (p - silu * z) * second)


def _curvature_halved(s, p, z, alpha, gamma):
    return _curvature(s, p, z, alpha, gamma) / 2


CURVATURE = Exercise(
    _curvature,
    tuple(
        (
            _draw(30, seed=k, scale=2.0),
            _draw(30, seed=k + 1, scale=3.0),
            _draw(30, seed=k + 2, scale=2.0),
            *penalties,
        )
        for k, penalties in ((1, (1.0, 1.0)), (5, (0.3, 2.0)))
    ),
    {
        "that is Gauss-Newton's curvature, which leaves out how SiLU bends: it is always "
        "positive, the true one is not.": (_gauss_newton),
        "the sign of the bending term: the residual is p - SiLU(s) z, and its derivative in s "
        "is negative.": (_curvature_wrong_sign),
        "the bending term lacks z: d^2 (SiLU(s) z) / ds^2 = z SiLU''(s).": _curvature_without_z,
        "half of it: the costs are squares without 1/2, so both terms carry a factor of 2.": (
            _curvature_halved
        ),
    },
    right=(_curvature_by_autograd,),
    kind="core",
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
    gate = F.silu(s)
    return alpha * (s - g) ** 2 + gamma * (p - gate * m) ** 2 / (alpha + gamma * gate**2)


def _reduced_without_price(s, p, m, g, alpha, gamma):
    z = _gated_z(p, m, F.silu(s), alpha, gamma)
    return alpha * (s - g) ** 2 + gamma * (p - F.silu(s) * z) ** 2


def _reduced_at_m(s, p, m, g, alpha, gamma):
    return alpha * (s - g) ** 2 + gamma * (p - F.silu(s) * m) ** 2


def _reduced_equal(s, p, m, g, alpha, gamma):
    gate = F.silu(s)
    return alpha * (s - g) ** 2 + alpha * gamma * (p - gate * m) ** 2 / (1 + gate**2)


REDUCED = Exercise(
    _reduced,
    tuple(
        (
            _draw(30, seed=k, scale=2.0),
            _draw(30, seed=k + 1, scale=3.0),
            _draw(30, seed=k + 2, scale=2.0),
            _draw(30, seed=k + 3),
            *penalties,
        )
        for k, penalties in ((1, (1.0, 2.0)), (5, (0.3, 2.0)))
    ),
    {
        "a factor alpha is missing: with the best z, both terms together are alpha gamma "
        "(...)^2 / (alpha + gamma gate^2).": (_reduced_without_alpha),
        "the price alpha (z - m)^2 of moving z is missing.": _reduced_without_price,
        "z stays at m: that is the cost before z has moved. Insert the z of (3).": _reduced_at_m,
        "the denominator holds for alpha = gamma = 1 alone.": _reduced_equal,
    },
    right=(_reduced_by_insertion,),
    kind="stretch",
    minutes=12,
    rtol=1e-3,
)
EXERCISES = {"08.1": STABLE, "08.2": GATED, "08.3": ACCEPT, "08.4": CURVATURE, "08.5": REDUCED}
