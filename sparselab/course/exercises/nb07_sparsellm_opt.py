"""The exercises of notebook 07."""

import torch
from torch import Tensor

from .checking import Exercise


def _draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# 07.1: one unit and one token, by hand
BY_HAND = Exercise(
    1.0,
    wrong={
        "that is the branch z <= 0, where z keeps m: its cost is a^2 = 9. Look at the other "
        "branch, it costs 8.": (-1.0),
        "z = a leaves the gamma term at 0 and pays (3 + 1)^2 = 16 for it in the alpha term.": 3.0,
        "z = 0 is the border of the two branches, and the minimum of neither: inside each, one "
        "can do better.": (0.0),
        "the distance of a and m is halved, and their mean is asked for: m is negative.": 2.0,
    },
    kind="warm-up",
    minutes=3,
)


# 07.2: the step for z with a leaky ReLU
def _leaky(a, m, slope, alpha, gamma):
    up = ((gamma * a + alpha * m) / (gamma + alpha)).clamp(min=0)
    low = ((gamma * slope * a + alpha * m) / (gamma * slope**2 + alpha)).clamp(max=0)
    return _cheaper(up, low, a, m, slope, alpha, gamma)


def _cost(z, a, m, slope, alpha, gamma):
    return alpha * (z - m) ** 2 + gamma * (a - torch.maximum(z, slope * z)) ** 2


def _cheaper(up, low, *rest):
    return torch.where(_cost(up, *rest) <= _cost(low, *rest), up, low)


def _leaky_by_branches(a, m, slope, alpha, gamma):
    """The same, one formula for both branches."""
    best = [
        ((gamma * k * a + alpha * m) / (gamma * k**2 + alpha)).clamp(**side)
        for k, side in ((1.0, {"min": 0}), (slope, {"max": 0}))
    ]
    return _cheaper(*best, a, m, slope, alpha, gamma)


def _leaky_with_relu_branch(a, m, slope, alpha, gamma):
    up = ((gamma * a + alpha * m) / (gamma + alpha)).clamp(min=0)
    return _cheaper(up, m.clamp(max=0), a, m, slope, alpha, gamma)


def _leaky_slope_not_squared(a, m, slope, alpha, gamma):
    up = ((gamma * a + alpha * m) / (gamma + alpha)).clamp(min=0)
    low = ((gamma * slope * a + alpha * m) / (gamma * slope + alpha)).clamp(max=0)
    return _cheaper(up, low, a, m, slope, alpha, gamma)


def _leaky_unclamped(a, m, slope, alpha, gamma):
    up = (gamma * a + alpha * m) / (gamma + alpha)
    low = (gamma * slope * a + alpha * m) / (gamma * slope**2 + alpha)
    up_cost = alpha * (up - m) ** 2 + gamma * (a - up) ** 2
    low_cost = alpha * (low - m) ** 2 + gamma * (a - slope * low) ** 2
    return torch.where(up_cost <= low_cost, up, low)


def _leaky_by_sign(a, m, slope, alpha, gamma):
    up = ((gamma * a + alpha * m) / (gamma + alpha)).clamp(min=0)
    low = ((gamma * slope * a + alpha * m) / (gamma * slope**2 + alpha)).clamp(max=0)
    return torch.where(m > 0, up, low)


LEAKY = Exercise(
    _leaky,
    tuple(
        (_draw(60, seed=k, scale=2.0), _draw(60, seed=k + 9, scale=2.0), *rest)
        for k, rest in enumerate(((0.1, 1.0, 1.0), (0.5, 0.3, 2.0), (0.25, 4.0, 0.5)))
    ),
    {
        "below zero you use ReLU's branch, min(0, m). With a slope the gamma term depends on z "
        "there too.": (_leaky_with_relu_branch),
        "the slope is not squared: differentiate gamma (a - slope z)^2, the inner derivative "
        "brings a second factor.": (_leaky_slope_not_squared),
        "the branches are not held to their sides: a minimum at z < 0 of the branch for z >= 0 "
        "is not a minimum.": (_leaky_unclamped),
        "the sign of m does not say which branch is the better one: compare their costs.": (
            _leaky_by_sign
        ),
    },
    right=(_leaky_by_branches,),
    kind="core",
    minutes=8,
)


# 07.3: the Hessians of the epochs
def _mean_diagonal(hessian):
    return hessian.diagonal().mean() * torch.eye(len(hessian))


def _hessians(gram, damp, epochs):
    return [gram + damp * _mean_diagonal(gram) for _ in range(epochs)]


def _hessians_published(gram, damp, epochs):
    """Each epoch damps what the one before has damped."""
    result = []
    for _ in range(epochs):
        gram = gram + damp * _mean_diagonal(gram)
        result.append(gram)
    return result


def _hessians_shared(gram, damp, epochs):
    """One matrix, damped in place in every epoch, and named in the list as often."""
    gram, result = gram.clone(), []
    for _ in range(epochs):
        gram += damp * _mean_diagonal(gram)
        result.append(gram)
    return result


HESSIANS = Exercise(
    _hessians,
    (
        (_draw(5, 5, seed=1) @ _draw(5, 5, seed=1).T, 0.01, 4),
        (torch.diag(torch.tensor([1.0, 2, 6])), 0.1, 3),
    ),
    {
        "every epoch damps the matrix that the epoch before has damped: after k epochs (1 + "
        "damp)^k. Start from gram.": (_hessians_published),
        "all entries of your list are one and the same matrix, damped in place once for each "
        "epoch: make a new one.": (_hessians_shared),
        "the damping is damp times the mean of the diagonal; yours is damp alone, whatever the "
        "scale of the inputs.": lambda gram, damp, epochs: [
            gram + damp * torch.eye(len(gram)) for _ in range(epochs)
        ],
        "the mean is taken over the whole matrix: it is that of the diagonal.": (
            lambda gram, damp, epochs: [
                gram + damp * gram.mean() * torch.eye(len(gram)) for _ in range(epochs)
            ]
        ),
        "the damping belongs on the diagonal; yours is everywhere.": lambda gram, damp, epochs: [
            gram + damp * gram.diagonal().mean() for _ in range(epochs)
        ],
    },
    right=(
        lambda gram, damp, epochs: (
            [torch.diag_embed(damp * gram.diagonal().mean().expand(len(gram))) + gram] * epochs
        ),
    ),
    kind="find-the-bug",
    minutes=5,
)


# 07.4: what W2 is fitted to
def _fit(inputs, outputs, ridge):
    return torch.linalg.solve(
        inputs @ inputs.T + ridge * torch.eye(len(inputs)), inputs @ outputs.T
    ).T


def _fit_down(pruned, bias, x, y, ridge):
    return _fit((pruned @ x + bias[:, None]).relu(), y, ridge)


def _fit_down_stacked(pruned, bias, x, y, ridge):
    """The same as a plain least-squares problem with extra rows."""
    inputs = (pruned @ x + bias[:, None]).relu()
    rows = torch.cat([inputs.T, ridge**0.5 * torch.eye(len(inputs))])
    return torch.linalg.lstsq(rows, torch.cat([y.T, torch.zeros(len(inputs), len(y))])).solution.T


def _case(seed):
    pruned = _draw(4, 3, seed=seed) * (_draw(4, 3, seed=seed + 20) > 0)
    return (
        pruned,
        _draw(4, seed=seed + 1).abs(),
        _draw(3, 30, seed=seed + 2),
        _draw(2, 30, seed=seed + 3),
        0.5,
    )


FIT_DOWN = Exercise(
    _fit_down,
    tuple(map(_case, (1, 5, 9))),
    {
        "the activation is missing: W2 receives ReLU(z), not z.": (
            lambda pruned, bias, x, y, ridge: _fit(pruned @ x + bias[:, None], y, ridge)
        ),
        "the bias of the first matrix is missing: it decides which units are on.": (
            lambda pruned, bias, x, y, ridge: _fit((pruned @ x).relu(), y, ridge)
        ),
        "the ridge is missing: where a unit never fires, or two fire together, nothing holds "
        "their weights back.": lambda pruned, bias, x, y, ridge: _fit(
            (pruned @ x + bias[:, None]).relu(), y, 0.0
        ),
        "the ridge is divided by the number of tokens and the Gram matrix is not: add it to the "
        "raw sum.": lambda pruned, bias, x, y, ridge: _fit(
            (pruned @ x + bias[:, None]).relu(), y, ridge / x.shape[1]
        ),
        "the result is transposed: W2 has one row for each output.": (
            lambda pruned, bias, x, y, ridge: _fit_down(pruned, bias, x, y, ridge).T
        ),
    },
    right=(_fit_down_stacked,),
    kind="core",
    minutes=6,
    rtol=1e-3,
)


# 07.5: the step for a where outputs have weights
def _weighted(phi, y, down, weights, ratio):
    inner = down @ down.T + ratio * torch.diag(1 / weights)
    return phi + down.T @ torch.linalg.solve(inner, y - down @ phi)


def _weighted_directly(phi, y, down, weights, ratio):
    """The normal equations as they stand."""
    left = down.T @ (weights[:, None] * down) + ratio * torch.eye(down.shape[1])
    return torch.linalg.solve(left, down.T @ (weights[:, None] * y) + ratio * phi)


def _weighted_upside_down(phi, y, down, weights, ratio):
    inner = down @ down.T + ratio * torch.diag(weights)
    return phi + down.T @ torch.linalg.solve(inner, y - down @ phi)


def _weighted_residual(phi, y, down, weights, ratio):
    inner = down @ down.T + ratio * torch.eye(len(down))
    return phi + down.T @ torch.linalg.solve(inner, weights[:, None] * (y - down @ phi))


def _unweighted(phi, y, down, weights, ratio):
    return _weighted(phi, y, down, torch.ones_like(weights), ratio)


def _weighted_from_zero(phi, y, down, weights, ratio):
    return _weighted(torch.zeros_like(phi), y, down, weights, ratio)


WEIGHTED = Exercise(
    _weighted,
    tuple(
        (
            _draw(6, 5, seed=k).relu(),
            _draw(3, 5, seed=k + 1),
            _draw(3, 6, seed=k + 2),
            torch.tensor([0.2, 1.0, 5.0]),
            ratio,
        )
        for k, ratio in ((1, 1.0), (7, 0.3), (11, 4.0))
    ),
    {
        "the weights stand in the inner matrix as they are: they must be inverted, an output "
        "that counts more is damped less.": (_weighted_upside_down),
        "the weights multiply the residual and not the damping: a weight is then a longer step, "
        "not a dearer error.": (_weighted_residual),
        "the weights of the outputs are not used.": _unweighted,
        "phi is missing: without a residual, a must stay at ReLU(z), and yours goes to 0.": (
            _weighted_from_zero
        ),
    },
    right=(_weighted_directly,),
    kind="stretch",
    minutes=12,
    rtol=1e-3,
)
EXERCISES = {"07.1": BY_HAND, "07.2": LEAKY, "07.3": HESSIANS, "07.4": FIT_DOWN, "07.5": WEIGHTED}
