"""The exercises of notebook 07."""

import torch

from .checking import Exercise, mistakes, normal

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
    return _cheaper(*_branches(a, m, slope, alpha, gamma), a, m, slope, alpha, gamma)


def _branches(a, m, slope, alpha, gamma):
    up = ((gamma * a + alpha * m) / (gamma + alpha)).clamp(min=0)
    low = ((gamma * slope * a + alpha * m) / (gamma * slope**2 + alpha)).clamp(max=0)
    return up, low


def _cost(z, a, m, slope, alpha, gamma):
    return alpha * (z - m) ** 2 + gamma * (a - torch.maximum(z, slope * z)) ** 2


def _cheaper(up, low, *rest):
    return torch.where(_cost(up, *rest) <= _cost(low, *rest), up, low)


def _leaky_with_border(a, m, slope, alpha, gamma):
    """The same with z = 0 tried too, the border of the branches: it is better than neither."""
    best = _leaky(a, m, slope, alpha, gamma)
    return _cheaper(best, 0 * a, a, m, slope, alpha, gamma)


def _leaky_with_relu_branch(a, m, slope, alpha, gamma):
    """below zero you use ReLU's branch, min(0, m). With a slope the gamma term depends on z there
    too."""
    up, _ = _branches(a, m, slope, alpha, gamma)
    return _cheaper(up, m.clamp(max=0), a, m, slope, alpha, gamma)


def _leaky_slope_not_squared(a, m, slope, alpha, gamma):
    """the slope is not squared: differentiate gamma (a - slope z)^2, the inner derivative brings a
    second factor."""
    up, _ = _branches(a, m, slope, alpha, gamma)
    low = ((gamma * slope * a + alpha * m) / (gamma * slope + alpha)).clamp(max=0)
    return _cheaper(up, low, a, m, slope, alpha, gamma)


def _leaky_unclamped(a, m, slope, alpha, gamma):
    """the branches are not held to their sides: a minimum at z < 0 of the branch for z >= 0 is not
    a minimum."""
    up = (gamma * a + alpha * m) / (gamma + alpha)
    low = (gamma * slope * a + alpha * m) / (gamma * slope**2 + alpha)
    up_cost = alpha * (up - m) ** 2 + gamma * (a - up) ** 2
    low_cost = alpha * (low - m) ** 2 + gamma * (a - slope * low) ** 2
    return torch.where(up_cost <= low_cost, up, low)


def _leaky_by_sign(a, m, slope, alpha, gamma):
    """the sign of m does not say which branch is the better one: compare their costs."""
    return torch.where(m > 0, *_branches(a, m, slope, alpha, gamma))


def _leaky_case(k, slope, alpha, gamma):
    a, m = normal(60, seed=k, scale=2.0), normal(60, seed=k + 9, scale=2.0)
    return a, m, slope, alpha, gamma


LEAKY = Exercise(
    _leaky,
    (_leaky_case(0, 0.1, 1.0, 1.0), _leaky_case(1, 0.5, 0.3, 2.0), _leaky_case(2, 0.25, 4.0, 0.5)),
    mistakes(_leaky_with_relu_branch, _leaky_slope_not_squared, _leaky_unclamped, _leaky_by_sign),
    right=(_leaky_with_border,),
    minutes=8,
)


# 07.3: the Hessians of the epochs
def _mean_diagonal(hessian):
    return hessian.diagonal().mean() * torch.eye(len(hessian))


def _hessians(gram, damp, epochs):
    return [gram + damp * _mean_diagonal(gram) for _ in range(epochs)]


def _hessians_repeated(gram, damp, epochs):
    return [gram + torch.diag(damp * gram.diagonal().mean().expand(len(gram)))] * epochs


def _hessians_published(gram, damp, epochs):
    """every epoch damps the matrix that the epoch before has damped: after k epochs (1 + damp)^k.
    Start from gram."""
    result = []
    for _ in range(epochs):
        gram = gram + damp * _mean_diagonal(gram)
        result.append(gram)
    return result


def _hessians_shared(gram, damp, epochs):
    """all entries of your list are one and the same matrix, damped in place once for each epoch:
    make a new one."""
    gram, result = gram.clone(), []
    for _ in range(epochs):
        gram += damp * _mean_diagonal(gram)
        result.append(gram)
    return result


def _damp_alone(gram, damp, epochs):
    """the damping is damp times the mean of the diagonal; yours is damp alone, whatever the scale
    of the inputs."""
    return [gram + damp * torch.eye(len(gram)) for _ in range(epochs)]


def _mean_of_the_matrix(gram, damp, epochs):
    """the mean is taken over the whole matrix: it is that of the diagonal."""
    return [gram + damp * gram.mean() * torch.eye(len(gram)) for _ in range(epochs)]


def _damped_everywhere(gram, damp, epochs):
    """the damping belongs on the diagonal; yours is everywhere."""
    return [gram + damp * gram.diagonal().mean() for _ in range(epochs)]


HESSIANS = Exercise(
    _hessians,
    (
        (normal(5, 5, seed=1) @ normal(5, 5, seed=1).T, 0.01, 4),
        (torch.diag(torch.tensor([1.0, 2, 6])), 0.1, 3),
    ),
    mistakes(
        _hessians_published, _hessians_shared, _damp_alone, _mean_of_the_matrix, _damped_everywhere
    ),
    right=(_hessians_repeated,),
    kind="find-the-bug",
    minutes=5,
)


# 07.4: what W2 is fitted to
def _fit(inputs, outputs, ridge):
    gram = inputs @ inputs.T + ridge * torch.eye(len(inputs))
    return torch.linalg.solve(gram, inputs @ outputs.T).T


def _fit_down(pruned, bias, x, y, ridge):
    return _fit((pruned @ x + bias[:, None]).relu(), y, ridge)


def _fit_down_stacked(pruned, bias, x, y, ridge):
    """The same as a plain least-squares problem with extra rows."""
    inputs = (pruned @ x + bias[:, None]).relu()
    rows = torch.cat([inputs.T, ridge**0.5 * torch.eye(len(inputs))])
    targets = torch.cat([y.T, torch.zeros(len(inputs), len(y))])
    return torch.linalg.lstsq(rows, targets).solution.T


def _case(seed):
    pruned = normal(4, 3, seed=seed) * (normal(4, 3, seed=seed + 20) > 0)
    bias = normal(4, seed=seed + 1).abs()
    return pruned, bias, normal(3, 30, seed=seed + 2), normal(2, 30, seed=seed + 3), 0.5


def _without_activation(pruned, bias, x, y, ridge):
    """the activation is missing: W2 receives ReLU(z), not z."""
    return _fit(pruned @ x + bias[:, None], y, ridge)


def _without_bias(pruned, bias, x, y, ridge):
    """the bias of the first matrix is missing: it decides which units are on."""
    return _fit((pruned @ x).relu(), y, ridge)


def _without_ridge(pruned, bias, x, y, ridge):
    """the ridge is missing: where a unit never fires, or two fire together, nothing holds their
    weights back."""
    return _fit((pruned @ x + bias[:, None]).relu(), y, 0.0)


def _ridge_by_tokens(pruned, bias, x, y, ridge):
    """the ridge is divided by the number of tokens and the Gram matrix is not: add it to the raw
    sum."""
    return _fit((pruned @ x + bias[:, None]).relu(), y, ridge / x.shape[1])


def _transposed(pruned, bias, x, y, ridge):
    """the result is transposed: W2 has one row for each output."""
    return _fit_down(pruned, bias, x, y, ridge).T


FIT_DOWN = Exercise(
    _fit_down,
    tuple(map(_case, (1, 5, 9))),
    mistakes(_without_activation, _without_bias, _without_ridge, _ridge_by_tokens, _transposed),
    right=(_fit_down_stacked,),
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
    """the weights stand in the inner matrix as they are: they must be inverted, an output that
    counts more is damped less."""
    inner = down @ down.T + ratio * torch.diag(weights)
    return phi + down.T @ torch.linalg.solve(inner, y - down @ phi)


def _weighted_residual(phi, y, down, weights, ratio):
    """the weights multiply the residual and not the damping: a weight is then a longer step, not a
    dearer error."""
    inner = down @ down.T + ratio * torch.eye(len(down))
    return phi + down.T @ torch.linalg.solve(inner, weights[:, None] * (y - down @ phi))


def _unweighted(phi, y, down, weights, ratio):
    """the weights of the outputs are not used."""
    return _weighted(phi, y, down, torch.ones_like(weights), ratio)


def _weighted_from_zero(phi, y, down, weights, ratio):
    """phi is missing: without a residual, a must stay at ReLU(z), and yours goes to 0."""
    return _weighted(torch.zeros_like(phi), y, down, weights, ratio)


def _weighted_case(k, ratio):
    phi, y, down = normal(6, 5, seed=k).relu(), normal(3, 5, seed=k + 1), normal(3, 6, seed=k + 2)
    return phi, y, down, torch.tensor([0.2, 1.0, 5.0]), ratio


WEIGHTED = Exercise(
    _weighted,
    (_weighted_case(1, 1.0), _weighted_case(7, 0.3), _weighted_case(11, 4.0)),
    mistakes(_weighted_upside_down, _weighted_residual, _unweighted, _weighted_from_zero),
    right=(_weighted_directly,),
    kind="stretch",
    minutes=12,
    rtol=1e-3,
)
EXERCISES = {"07.1": BY_HAND, "07.2": LEAKY, "07.3": HESSIANS, "07.4": FIT_DOWN, "07.5": WEIGHTED}
