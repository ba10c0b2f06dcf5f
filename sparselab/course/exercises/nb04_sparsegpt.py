"""The exercises of notebook 04."""

import torch
from torch import Tensor

from .checking import Exercise


def _hessian(size: int, seed: int) -> Tensor:
    """A damped Hessian of correlated inputs of unequal loudness, [size, size]."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.eye(size) + 0.6 * torch.randn(size, size, generator=draw) / size**0.5
    x = (
        mix
        @ torch.randn(size, 8 * size, generator=draw)
        * (0.5 + torch.rand(size, 1, generator=draw))
    )
    return x @ x.T / (8 * size) + 0.01 * torch.eye(size)


def _weight(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# 04.1: one weight
def _step(w, inverse, j):
    return w - w[j] / inverse[j, j] * inverse[j], w[j] ** 2 / inverse[j, j]


def _step_by_elimination(w, inverse, j):
    """The same from the Hessian: the others are the least-squares answer to what the weight used to
    give."""
    hessian = torch.linalg.inv(inverse)
    others = torch.arange(len(w)) != j
    new = torch.zeros_like(w)
    new[others] = w[others] + w[j] * torch.linalg.solve(
        hessian[others][:, others], hessian[others, j]
    )
    return new, (w - new) @ hessian @ (w - new)


def _step_without_update(w, inverse, j):
    new = w.clone()
    new[j] = 0
    return new, w[j] ** 2 / inverse[j, j]


def _step_with_hessian_row(w, inverse, j):
    hessian = torch.linalg.inv(inverse)
    return w - w[j] / hessian[j, j] * hessian[j], w[j] ** 2 / inverse[j, j]


STEP = Exercise(
    _step,
    tuple((_weight(5, seed=k), torch.linalg.inv(_hessian(5, k)), k) for k in range(3)),
    {
        "the sign of the update: the weight itself must come out as 0, and yours doubles.": (
            lambda w, inverse, j: (w + w[j] / inverse[j, j] * inverse[j], w[j] ** 2 / inverse[j, j])
        ),
        "the update is not divided by the diagonal entry, so the weight does not come out as 0.": (
            lambda w, inverse, j: (w - w[j] * inverse[j], w[j] ** 2 / inverse[j, j])
        ),
        "the cost is w_j^2 H_jj, the price without any repair; equation (4) divides by the "
        "inverse's diagonal.": lambda w, inverse, j: (
            _step(w, inverse, j)[0],
            w[j] ** 2 * torch.linalg.inv(inverse)[j, j],
        ),
        "the weight goes and the others stay: that is Wanda. Equation (3) moves every weight of "
        "the row.": (_step_without_update),
        "the update uses a row of H; equation (3) needs the row of its inverse.": (
            _step_with_hessian_row
        ),
        "the cost is not squared: |w_j| / [H^-1]_jj has the unit of a weight, not of a squared "
        "error.": lambda w, inverse, j: (_step(w, inverse, j)[0], w[j].abs() / inverse[j, j]),
    },
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
    parts = [w[j] / inverse[j, j] for j in places.tolist()]
    change = sum(part * inverse[j] for part, j in zip(parts, places.tolist(), strict=True))
    return w - change, sum(part * w[j] for part, j in zip(parts, places.tolist(), strict=True))


def _remove_stale(w, inverse, places):
    w, cost = w.clone(), 0.0
    for j in places.tolist():
        cost = cost + w[j] ** 2 / inverse[j, j]
        w = w - w[j] / inverse[j, j] * inverse[j]
    return w, cost


def _remove_by_hessian(w, inverse, places):
    multipliers = torch.linalg.inv(inverse)[places][:, places] @ w[places]
    return w - multipliers @ inverse[places], w[places] @ multipliers


REMOVE = Exercise(
    _remove,
    tuple(
        (_weight(7, seed=k), torch.linalg.inv(_hessian(7, k)), torch.tensor(places))
        for k, places in enumerate(([1, 4], [0, 2, 5], [6, 3]))
    ),
    {
        "every weight is treated as if it went alone: their repairs overlap, which the small "
        "matrix [H^-1]_PP knows.": (_remove_apart),
        "the weights go one after the other with the same inverse: the second repair moves the "
        "first weight off 0 again.": (_remove_stale),
        "H_PP is not the inverse of [H^-1]_PP: take the rows and columns of H^-1 first, and "
        "invert what is left.": (_remove_by_hessian),
        "the small matrix multiplies where it must be solved with: the multipliers are w_P "
        "([H^-1]_PP)^-1.": lambda w, inverse, places: (
            w - inverse[places][:, places] @ w[places] @ inverse[places],
            w[places] @ inverse[places][:, places] @ w[places],
        ),
        "the cost is right, and the weights outside P did not move: the update covers the whole "
        "row.": lambda w, inverse, places: (
            w.index_fill(0, places, 0),
            _remove(w, inverse, places)[1],
        ),
    },
    right=(_remove_one_by_one,),
    kind="core",
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


FACTOR = Exercise(
    _factor,
    ((_hessian(5, 7), 0.01), (_dead_hessian(), 0.1)),
    {
        "this factor is lower triangular, H^-1 = L L^T: right of the diagonal it is 0, and no "
        "error is pushed to the right.": lambda hessian, damp: torch.linalg.cholesky(
            torch.linalg.inv(_damped(hessian, damp))
        ),
        "that is a factor of H: the column loop needs one of its inverse.": (
            lambda hessian, damp: torch.linalg.cholesky(_damped(hessian, damp), upper=True)
        ),
        "L^-1 with H = L L^T does give R^T R = H^-1, but it is lower triangular: the factor for "
        "going from right to left.": lambda hessian, damp: torch.linalg.inv(
            torch.linalg.cholesky(_damped(hessian, damp))
        ),
        "the damping is a share of the mean of the diagonal, not a number added as it stands.": (
            lambda hessian, damp: torch.linalg.cholesky(
                torch.linalg.inv(hessian + torch.diag((hessian.diagonal() == 0).float() + damp)),
                upper=True,
            )
        ),
        "an input that is always 0 keeps a diagonal of 0 before damping: give it a 1, as the "
        "published code does.": lambda hessian, damp: torch.linalg.cholesky(
            torch.linalg.inv(hessian + damp * hessian.diagonal().mean() * torch.eye(len(hessian))),
            upper=True,
        ),
    },
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
        rows = x.flatten(0, 1)
        hessian = hessian + 2 / seen * rows.T @ rows
    return hessian


def _gather_at_once(batches):
    rows = torch.cat(batches).flatten(0, 1)
    return 2 / len(torch.cat(batches)) * rows.T @ rows


def _gather_sum(batches):
    """Divided by nothing: the damping is a share of the diagonal and prices are compared, so the
    factor cancels."""
    return sum(x.flatten(0, 1).T @ x.flatten(0, 1) for x in batches)


def _gather_mean_over_tokens(batches):
    rows = torch.cat(batches).flatten(0, 1)
    return rows.T @ rows / len(rows)


def _gather_without_shrinking(batches):
    hessian, seen = 0, 0
    for x in batches:
        seen += len(x)
        hessian = hessian + 2 / seen * x.flatten(0, 1).T @ x.flatten(0, 1)
    return hessian


def _gather_means(batches):
    parts = [2 / len(x) * x.flatten(0, 1).T @ x.flatten(0, 1) for x in batches]
    return sum(parts) / len(parts)


def _gather_shrink_wrong(batches):
    hessian, seen = 0, 0
    for x in batches:
        seen += len(x)
        hessian = hessian * ((seen - 1) / seen) + 2 / seen * x.flatten(0, 1).T @ x.flatten(0, 1)
    return hessian


GATHER = UpToFactor(
    _gather,
    (
        ([_weight(2, 4, 3, seed=1), _weight(3, 4, 3, seed=2)],),
        ([_weight(1, 6, 4, seed=3), 3 * _weight(4, 6, 4, seed=4), _weight(2, 6, 4, seed=5)],),
    ),
    {
        "H is allocated and nothing is ever added to it: every input looks dead, and the mask "
        "is the first columns.": lambda batches: torch.zeros(
            batches[0].shape[-1], batches[0].shape[-1]
        ),
        "what was gathered before is not scaled down when a batch comes in: early batches count "
        "too much.": (_gather_without_shrinking),
        "a mean over batches: a short last batch counts as much as a full one. Weigh by the "
        "number of sequences.": (_gather_means),
        "the old sum shrinks as if one sequence came in; a batch holds several, see len(x).": (
            _gather_shrink_wrong
        ),
        "only the last batch is in it: a batch replaces what was there.": (
            lambda batches: (
                2 / len(batches[-1]) * batches[-1].flatten(0, 1).T @ batches[-1].flatten(0, 1)
            )
        ),
    },
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
            score = source[:, j : j + m].abs() / (
                factor.diagonal()[j : j + m] if scaled else 1
            ) ** (power - 1)
            dim = 0 if down else 1
            count = m - n if keep else n
            count = round(count / m * len(w)) if down else count
            pruned = torch.zeros_like(score, dtype=torch.bool)
            pruned.scatter_(dim, score.topk(count, dim=dim, largest=False).indices, True)
        error = w[:, j] * pruned[:, j % m] / factor[j, j]
        w[:, j:] = w[:, j:] - error[:, None] * factor[j, j:] * (
            1 if push else torch.arange(w.shape[1] - j) == 0
        )
        w[:, j] = w[:, j] * ~pruned[:, j % m]
    return w


GROUPS = Exercise(
    _groups,
    tuple(
        (_weight(8, c, seed=c), _factor(_hessian(c, c), 0.01), n, m)
        for c, n, m in ((8, 2, 4), (12, 1, 4))
    ),
    {
        "every mask comes from the original weights: choose a group's mask when the loop "
        "reaches it, from the weights as they are by then.": lambda *case: _groups(
            *case, early=True
        ),
        "n counts zeros here, as in the published code; you keep n of m, as NVIDIA counts. The "
        "two agree for 2:4 only.": lambda *case: _groups(*case, keep=True),
        "the score is w^2 / R_jj^2: with |w| / R_jj^2 the weight and its column are not on the "
        "same footing.": lambda *case: _groups(*case, power=3),
        "the weights are compared without their columns' R_jj: that is magnitude with a repair.": (
            lambda *case: _groups(*case, scaled=False)
        ),
        "the mask is right and the error of a pruned weight is dropped: push it to the columns "
        "on the right.": lambda *case: _groups(*case, push=False),
        "a column's weights compete; in n:m those of a row within its group do.": lambda *case: (
            _groups(*case, down=True)
        ),
    },
    kind="stretch",
    minutes=15,
    rtol=1e-3,
)
EXERCISES = {"04.1": STEP, "04.2": REMOVE, "04.3": FACTOR, "04.4": GATHER, "04.5": GROUPS}
