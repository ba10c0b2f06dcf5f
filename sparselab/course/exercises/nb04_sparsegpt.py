"""The exercises of notebook 04."""

import torch
from torch import Tensor

from .checking import Exercise, mistakes, normal


def _hessian(size: int, seed: int) -> Tensor:
    """A damped Hessian of correlated inputs of unequal loudness, [size, size]."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.eye(size) + 0.6 * torch.randn(size, size, generator=draw) / size**0.5
    x = mix @ torch.randn(size, 8 * size, generator=draw)
    x = x * (0.5 + torch.rand(size, 1, generator=draw))
    return x @ x.T / (8 * size) + 0.01 * torch.eye(size)


# 04.1: one weight
def _step(w, inverse, j):
    return w - w[j] / inverse[j, j] * inverse[j], w[j] ** 2 / inverse[j, j]


def _step_by_elimination(w, inverse, j):
    """The same from the Hessian: the others are the least-squares answer to what the weight used to
    give."""
    hessian = torch.linalg.inv(inverse)
    others = torch.arange(len(w)) != j
    new = torch.zeros_like(w)
    share = torch.linalg.solve(hessian[others][:, others], hessian[others, j])
    new[others] = w[others] + w[j] * share
    return new, (w - new) @ hessian @ (w - new)


def _no_update(w, inverse, j):
    """the weight goes and the others stay: that is Wanda. Equation (3) moves every weight of the
    row."""
    new = w.clone()
    new[j] = 0
    return new, w[j] ** 2 / inverse[j, j]


def _row_of_hessian(w, inverse, j):
    """the update uses a row of H; equation (3) needs the row of its inverse."""
    hessian = torch.linalg.inv(inverse)
    return w - w[j] / hessian[j, j] * hessian[j], w[j] ** 2 / inverse[j, j]


def _plus(w, inverse, j):
    """the sign of the update: the weight itself must come out as 0, and yours doubles."""
    return w + w[j] / inverse[j, j] * inverse[j], w[j] ** 2 / inverse[j, j]


def _not_divided(w, inverse, j):
    """the update is not divided by the diagonal entry, so the weight does not come out as 0."""
    return w - w[j] * inverse[j], w[j] ** 2 / inverse[j, j]


def _unrepaired_cost(w, inverse, j):
    """the cost is w_j^2 H_jj, the price without any repair; equation (4) divides by the inverse's
    diagonal."""
    return _step(w, inverse, j)[0], w[j] ** 2 * torch.linalg.inv(inverse)[j, j]


def _linear_cost(w, inverse, j):
    """the cost is not squared: |w_j| / [H^-1]_jj has the unit of a weight, not of a squared
    error."""
    return _step(w, inverse, j)[0], w[j].abs() / inverse[j, j]


def _step_case(k):
    return normal(5, seed=k), torch.linalg.inv(_hessian(5, k)), k


STEP = Exercise(
    _step,
    tuple(map(_step_case, range(3))),
    mistakes(_plus, _not_divided, _unrepaired_cost, _no_update, _row_of_hessian, _linear_cost),
    right=(_step_by_elimination,),
    kind="warm-up",
    minutes=4,
    rtol=1e-3,
)


# 04.2: several weights at once
def _remove(w, inverse, places):
    multipliers = torch.linalg.solve(inverse[places][:, places], w[places])
    return w - multipliers @ inverse[places], w[places] @ multipliers


def _remove_one_by_one(w, inverse, places):
    """Single steps, the inverse Hessian brought up to date after each: the costs add up."""
    w, inverse, cost = w.clone(), inverse.clone(), 0.0
    for j in places.tolist():
        cost = cost + w[j] ** 2 / inverse[j, j]
        w = w - w[j] / inverse[j, j] * inverse[j]
        inverse = inverse - inverse[:, j, None] * inverse[j] / inverse[j, j]
    return w, cost


def _remove_apart(w, inverse, places):
    """every weight is treated as if it went alone: their repairs overlap, which the small matrix
    [H^-1]_PP knows."""
    multipliers = w[places] / inverse.diagonal()[places]
    return w - multipliers @ inverse[places], w[places] @ multipliers


def _remove_stale(w, inverse, places):
    """the weights go one after the other with the same inverse: the second repair moves the first
    weight off 0 again."""
    w, cost = w.clone(), 0.0
    for j in places.tolist():
        cost = cost + w[j] ** 2 / inverse[j, j]
        w = w - w[j] / inverse[j, j] * inverse[j]
    return w, cost


def _remove_by_hessian(w, inverse, places):
    """H_PP is not the inverse of [H^-1]_PP: take the rows and columns of H^-1 first, and invert
    what is left."""
    multipliers = torch.linalg.inv(inverse)[places][:, places] @ w[places]
    return w - multipliers @ inverse[places], w[places] @ multipliers


def _remove_multiplied(w, inverse, places):
    """the small matrix multiplies where it must be solved with: the multipliers are w_P
    ([H^-1]_PP)^-1."""
    multipliers = inverse[places][:, places] @ w[places]
    return w - multipliers @ inverse[places], w[places] @ multipliers


def _remove_in_place(w, inverse, places):
    """the cost is right, and the weights outside P did not move: the update covers the whole
    row."""
    return w.index_fill(0, places, 0), _remove(w, inverse, places)[1]


def _remove_case(k, *places):
    return normal(7, seed=k), torch.linalg.inv(_hessian(7, k)), torch.tensor(places)


REMOVE = Exercise(
    _remove,
    (_remove_case(0, 1, 4), _remove_case(1, 0, 2, 5), _remove_case(2, 6, 3)),
    mistakes(
        _remove_apart, _remove_stale, _remove_by_hessian, _remove_multiplied, _remove_in_place
    ),
    right=(_remove_one_by_one,),
    minutes=10,
    rtol=1e-3,
)


# 04.3, find the bug: the factor
def _damped(hessian, damp=0.01):
    diagonal = hessian.diagonal()
    dead = (diagonal == 0).float()
    return hessian + torch.diag(dead + damp * (diagonal + dead).mean())


def _factor(hessian, damp):
    return torch.linalg.cholesky(torch.linalg.inv(_damped(hessian, damp)), upper=True)


def _factor_flipped(hessian, damp):
    """From one Cholesky factor of the reversed Hessian."""
    lower = torch.linalg.cholesky(_damped(hessian, damp).flip(0, 1))
    return torch.linalg.inv(lower).flip(0, 1)


def _dead_hessian() -> Tensor:
    hessian = _hessian(6, 8)
    hessian[2], hessian[:, 2] = 0, 0
    return hessian


def _lower_factor(hessian, damp):
    """this factor is lower triangular, H^-1 = L L^T: right of the diagonal it is 0, and no error is
    pushed to the right."""
    return torch.linalg.cholesky(torch.linalg.inv(_damped(hessian, damp)))


def _factor_of_hessian(hessian, damp):
    """that is a factor of H: the column loop needs one of its inverse."""
    return torch.linalg.cholesky(_damped(hessian, damp), upper=True)


def _inverse_of_lower(hessian, damp):
    """L^-1 with H = L L^T does give R^T R = H^-1, but it is lower triangular: the factor for going
    from right to left."""
    return torch.linalg.inv(torch.linalg.cholesky(_damped(hessian, damp)))


def _damped_as_it_stands(hessian, damp):
    """the damping is a share of the mean of the diagonal, not a number added as it stands."""
    damped = hessian + torch.diag((hessian.diagonal() == 0).float() + damp)
    return torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)


def _dead_input_left(hessian, damp):
    """an input that is always 0 keeps a diagonal of 0 before damping: give it a 1, as the published
    code does."""
    damped = hessian + damp * hessian.diagonal().mean() * torch.eye(len(hessian))
    return torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)


FACTOR = Exercise(
    _factor,
    ((_hessian(5, 7), 0.01), (_dead_hessian(), 0.1)),
    mistakes(
        _lower_factor, _factor_of_hessian, _inverse_of_lower, _damped_as_it_stands, _dead_input_left
    ),
    right=(_factor_flipped,),
    kind="find-the-bug",
    minutes=8,
    rtol=1e-3,
)


# 04.4, find the bug: the Hessian, batch by batch
class UpToFactor(Exercise):
    """Answers are matrices whose constant factor cancels later on: each is compared with a mean
    diagonal of 1."""

    def outputs(self, answer):
        return [_mean_diagonal_one(result) for result in super().outputs(answer)]


def _mean_diagonal_one(matrix):
    mean = matrix.diagonal().mean() if isinstance(matrix, Tensor) and matrix.ndim == 2 else 0
    return matrix / mean if mean > 0 else matrix


def _gather(batches):
    hessian, seen = torch.zeros(batches[0].shape[-1], batches[0].shape[-1]), 0
    for x in batches:
        hessian = hessian * (seen / (seen + len(x)))
        seen += len(x)
        hessian = hessian + 2 / seen * _products(x)
    return hessian


def _products(x):  # [sequences, tokens, inputs] -> [inputs, inputs]
    return x.flatten(0, 1).T @ x.flatten(0, 1)


def _gather_at_once(batches):
    x = torch.cat(batches)
    return 2 / len(x) * _products(x)


def _gather_sum(batches):
    """Divided by nothing: the damping is a share of the diagonal and prices are compared, so the
    factor cancels."""
    return sum(map(_products, batches))


def _gather_mean_over_tokens(batches):
    x = torch.cat(batches)
    return _products(x) / x.shape[:2].numel()


def _gather_unshrunk(batches):
    """what was gathered before is not scaled down when a batch comes in: early batches count too
    much."""
    hessian, seen = 0, 0
    for x in batches:
        seen += len(x)
        hessian = hessian + 2 / seen * _products(x)
    return hessian


def _gather_means(batches):
    """a mean over batches: a short last batch counts as much as a full one. Weigh by the number of
    sequences."""
    return sum(2 / len(x) * _products(x) for x in batches) / len(batches)


def _gather_shrink_wrong(batches):
    """the old sum shrinks as if one sequence came in; a batch holds several, see len(x)."""
    hessian, seen = 0, 0
    for x in batches:
        seen += len(x)
        hessian = hessian * ((seen - 1) / seen) + 2 / seen * _products(x)
    return hessian


def _gather_nothing(batches):
    """H is allocated and nothing is ever added to it: every input looks dead, and the mask is the
    first columns."""
    return torch.zeros(batches[0].shape[-1], batches[0].shape[-1])


def _gather_the_last(batches):
    """only the last batch is in it: a batch replaces what was there."""
    return 2 / len(batches[-1]) * _products(batches[-1])


GATHER = UpToFactor(
    _gather,
    (
        ([normal(2, 4, 3, seed=1), normal(3, 4, 3, seed=2)],),
        ([normal(1, 6, 4, seed=3), 3 * normal(4, 6, 4, seed=4), normal(2, 6, 4, seed=5)],),
    ),
    mistakes(
        _gather_nothing, _gather_unshrunk, _gather_means, _gather_shrink_wrong, _gather_the_last
    ),
    right=(_gather_at_once, _gather_sum, _gather_mean_over_tokens),
    kind="find-the-bug",
    minutes=8,
)


# 04.5: n:m
def _groups(
    weight, factor, n, m, *, early=False, power=2, keep=False, push=True, scaled=True, down=False
):
    """SparseGPT for n:m; each switch makes one mistake."""
    w, original = weight.clone(), weight
    for j in range(w.shape[1]):
        if j % m == 0:
            source = original if early else w
            scale = factor.diagonal()[j : j + m] if scaled else torch.ones(m)
            score = source[:, j : j + m].abs() / scale ** (power - 1)
            dim, count = 1, m - n if keep else n
            if down:
                dim, count = 0, round(count / m * len(w))
            pruned = torch.zeros_like(score, dtype=torch.bool)
            pruned.scatter_(dim, score.topk(count, dim=dim, largest=False).indices, True)
        error = w[:, j] * pruned[:, j % m] / factor[j, j]
        if push:
            w[:, j:] -= error[:, None] * factor[j, j:]
        w[:, j] = w[:, j] * ~pruned[:, j % m]
    return w


def _groups_case(c, n, m):
    return normal(8, c, seed=c), _factor(_hessian(c, c), 0.01), n, m


def _early_masks(*case):
    """every mask comes from the original weights: choose a group's mask when the loop reaches it,
    from the weights as they are by then."""
    return _groups(*case, early=True)


def _n_kept(*case):
    """n counts zeros here, as in the published code; you keep n of m, as NVIDIA counts. The two
    agree for 2:4 only."""
    return _groups(*case, keep=True)


def _off_scale(*case):
    """the score is w^2 / R_jj^2: with |w| / R_jj^2 the weight and its column are not on the same
    footing."""
    return _groups(*case, power=3)


def _unscaled(*case):
    """the weights are compared without their columns' R_jj: that is magnitude with a repair."""
    return _groups(*case, scaled=False)


def _error_dropped(*case):
    """the mask is right and the error of a pruned weight is dropped: push it to the columns on the
    right."""
    return _groups(*case, push=False)


def _by_columns(*case):
    """a column's weights compete; in n:m those of a row within its group do."""
    return _groups(*case, down=True)


GROUPS = Exercise(
    _groups,
    (_groups_case(8, 2, 4), _groups_case(12, 1, 4)),
    mistakes(_early_masks, _n_kept, _off_scale, _unscaled, _error_dropped, _by_columns),
    kind="stretch",
    minutes=15,
    rtol=1e-3,
)
EXERCISES = {"04.1": STEP, "04.2": REMOVE, "04.3": FACTOR, "04.4": GATHER, "04.5": GROUPS}
