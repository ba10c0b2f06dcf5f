"""The exercises of notebook 04."""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ... import viz
from .checking import Exercise, mistakes, normal


def _hessian(size: int, seed: int) -> Tensor:
    """A damped Hessian [size, size] of correlated inputs of unequal norms."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.eye(size) + 0.6 * torch.randn(size, size, generator=draw) / size**0.5
    x = mix @ torch.randn(size, 8 * size, generator=draw)
    x = x * (0.5 + torch.rand(size, 1, generator=draw))
    return x @ x.T / (8 * size) + 0.01 * torch.eye(size)


# 04.1: one weight
def obs_step(w, inverse, j):
    """The row w [c] without weight j, the others moved, and the price; inverse is H^-1 [c, c]."""
    multiple = w[j] / inverse[j, j]
    return w - multiple * inverse[j], multiple * w[j]


def _step_by_least_squares(w, inverse, j):
    hessian = torch.linalg.inv(inverse)
    others = torch.arange(len(w)) != j
    new = torch.zeros_like(w)
    share = torch.linalg.solve(hessian[others][:, others], hessian[others, j])
    new[others] = w[others] + w[j] * share
    return new, (w - new) @ hessian @ (w - new)


def _others_stay(w, inverse, j):
    """The weight goes and the others stay, as with Wanda. Equation (3) moves every weight of the
    row."""
    new = w.clone()
    new[j] = 0
    return new, w[j] ** 2 / inverse[j, j]


def _row_of_hessian(w, inverse, j):
    """You used a row of H. The update is a multiple of a row of its inverse."""
    hessian = torch.linalg.inv(inverse)
    return w - w[j] / hessian[j, j] * hessian[j], w[j] ** 2 / inverse[j, j]


def _step_added(w, inverse, j):
    """The sign of the update is wrong: weight j must become 0, and yours doubles."""
    return w + w[j] / inverse[j, j] * inverse[j], w[j] ** 2 / inverse[j, j]


def _step_not_divided(w, inverse, j):
    """You did not divide by the diagonal entry, so that weight j does not become 0."""
    return w - w[j] * inverse[j], w[j] ** 2 / inverse[j, j]


def _price_without_repair(w, inverse, j):
    """Your price is w_j^2 H_jj, the error without any repair. Equation (4) divides by the diagonal
    entry of the inverse."""
    return obs_step(w, inverse, j)[0], w[j] ** 2 * torch.linalg.inv(inverse)[j, j]


def _price_not_squared(w, inverse, j):
    """Your price is not squared. |w_j| / [H^-1]_jj has the unit of a weight times an input squared;
    a squared error is asked for."""
    return obs_step(w, inverse, j)[0], w[j].abs() / inverse[j, j]


def _step_case(k: int) -> tuple[Tensor, Tensor, int]:
    return normal(5, seed=k), torch.linalg.inv(_hessian(5, k)), k


# 04.2: the factor
def inverse_factor(H):
    """The upper triangular R [c, c] with R^T R = H^-1."""
    return torch.linalg.cholesky(torch.linalg.inv(H), upper=True)


def _factor_flipped(H):
    """From one Cholesky factor of the reversed Hessian, as the package does."""
    return torch.linalg.inv(torch.linalg.cholesky(H.flip(0, 1))).flip(0, 1)


def _lower_factor(H):
    """Your factor is lower triangular. Right of its diagonal all is 0, so that no error would ever
    be pushed to the right: ask for the upper one."""
    return torch.linalg.cholesky(torch.linalg.inv(H))


def _factor_of_hessian(H):
    """That is a factor of H. Invert H first: the steps need its inverse."""
    return torch.linalg.cholesky(H, upper=True)


def _inverse_of_lower(H):
    """Your R does give R^T R = H^-1, but it is lower triangular: that is the factor for going from
    right to left. Invert H first, then ask for the upper factor."""
    return torch.linalg.inv(torch.linalg.cholesky(H))


def _inverse_of_upper(H):
    """Your factor is upper triangular, but it gives H^-1 as R R^T, and equation (6) has R^T R.
    Invert H first, then take the factor: the other order is not the same."""
    return torch.linalg.inv(torch.linalg.cholesky(H, upper=True))


def _inverse_alone(H):
    """That is H^-1 itself. Its upper Cholesky factor is asked for."""
    return torch.linalg.inv(H)


# 04.3: one column
def push_errors(W, R, j, kept):
    """Weights of column j that are not kept become 0, and their errors move the columns on the
    right: changes W [r, c], returns the errors [r]. R [c, c], kept bool [r]."""
    errors = W[:, j] * ~kept / R[j, j]
    W[:, j:] -= errors[:, None] * R[j, j:]
    return errors


def _push_whole_rows(W, R, j, kept):
    """R is 0 on the left of its diagonal, so that whole rows give the same."""
    errors = torch.where(kept, 0.0, W[:, j] / R[j, j])
    W -= torch.outer(errors, R[j])
    return errors


def _push_the_kept(W, R, j, kept):
    """The kept weights made the errors, and the pruned ones stayed: `kept` is True where a weight
    stays."""
    return push_errors(W, R, j, ~kept)


def _push_all(W, R, j, kept):
    """Every weight of the column went: a weight that is kept makes no error."""
    return push_errors(W, R, j, torch.zeros_like(kept))


def _push_not_divided(W, R, j, kept):
    """You did not divide by R_jj, so that the pruned weights do not become 0."""
    errors = W[:, j] * ~kept
    W[:, j:] -= errors[:, None] * R[j, j:]
    return errors


def _push_added(W, R, j, kept):
    """The sign is wrong: the pruned weights must become 0, and yours doubled."""
    errors = W[:, j] * ~kept / R[j, j]
    W[:, j:] += errors[:, None] * R[j, j:]
    return errors


def _push_without_column(W, R, j, kept):
    """The columns on the right are right, and the pruned weights are still there: begin with column
    j itself, W[:, j:]."""
    errors = W[:, j] * ~kept / R[j, j]
    W[:, j + 1 :] -= errors[:, None] * R[j, j + 1 :]
    return errors


def _push_nothing(W, R, j, kept):
    """The weights became 0, and their errors went nowhere. Push them to the columns on the right,
    with row j of R: below the diagonal its column j is 0."""
    errors = W[:, j] * ~kept / R[j, j]
    W[:, j:] -= errors[:, None] * R[j:, j]
    return errors


def _push_into_a_copy(W, R, j, kept):
    """The errors are right, and W is as it was: `W = W - ...` makes a new matrix. Write into the
    old one, with W[:, j:] -= ..."""
    return push_errors(W.clone(), R, j, kept)


def _push_silently(W, R, j, kept):
    """W is right, and the errors are not returned."""
    push_errors(W, R, j, kept)


def _try_push(push: Callable, W: Tensor, R: Tensor, j: int, kept: Tensor) -> dict:
    W = W.clone()
    errors = push(W, R, j, kept)
    return {"W after the step": W, "the errors": errors}


def _push_case(seed: int, r: int, c: int, j: int) -> tuple[Tensor, Tensor, int, Tensor]:
    kept = torch.rand(r, generator=torch.Generator().manual_seed(seed)) < 0.5
    return normal(r, c, seed=seed), inverse_factor(_hessian(c, seed)), j, kept


def _after_push(mine: dict, expected: dict) -> Figure:
    """The matrix where it differs, else the errors."""
    pairs = [(mine[name], expected[name]) for name in expected]
    differs = not torch.allclose(*pairs[0], atol=1e-4)
    return viz.beside(*pairs[0], "W") if differs else viz.beside(*pairs[1], "the errors")


# 04.4: the mask of a block
def block_mask(W, diagonal, zeros):
    """Without the weights with the lowest prices, of all rows together: bool [r, k], from W [r, k]
    and the diagonal of R at these columns, [k]."""
    price = (W / diagonal).square().flatten()
    mask = torch.ones_like(price, dtype=torch.bool)
    mask[price.argsort(stable=True)[:zeros]] = False
    return mask.view_as(W)


def _mask_by_rank(W, diagonal, zeros):
    rank = (W / diagonal).abs().flatten().argsort().argsort().view_as(W)
    return rank >= zeros


def _block_inverted(W, diagonal, zeros):
    """Your mask is inverted: True means kept, and the lowest prices go."""
    return ~block_mask(W, diagonal, zeros)


def _block_by_magnitude(W, diagonal, zeros):
    """You compared the weights without R_jj. That is magnitude: the inputs do not occur in it."""
    return block_mask(W, torch.ones_like(diagonal), zeros)


def _block_multiplied(W, diagonal, zeros):
    """You multiplied by R_jj. A large R_jj^2 means that the others can imitate the input, so that
    the weight is cheap: divide."""
    return block_mask(W, 1 / diagonal, zeros)


def _block_off_scale(W, diagonal, zeros):
    """The price is w^2 / R_jj^2: square the diagonal, too."""
    return block_mask(W, diagonal.sqrt(), zeros)


def _block_by_rows(W, diagonal, zeros):
    """You took the same number in every row. SparseGPT compares all weights of the block, so that
    one row may lose more than another."""
    return torch.stack([block_mask(row[None], diagonal, zeros // len(W))[0] for row in W])


def _block_one_too_many(W, diagonal, zeros):
    """One weight too many goes: in sorted order the price at place `zeros` is the first that
    stays."""
    return block_mask(W, diagonal, zeros + 1)


def _block_all_gone(W, diagonal, zeros):
    """With zeros = 0 all weights go: the sorted price at place zeros - 1 is then that at place -1,
    the highest of all."""
    price = (W / diagonal).square()
    return price > price.flatten().sort().values[zeros - 1]


def _block_case(seed: int, r: int, c: int, zeros: int) -> tuple[Tensor, Tensor, int]:
    spread = torch.randperm(c, generator=torch.Generator().manual_seed(seed))
    return normal(r, c, seed=seed), torch.linspace(0.2, 2, c)[spread], zeros


# 04.5: the whole matrix
def sparsegpt(W, H, sparsity, block=128):
    """The pruned weight [r, c], from W [r, c] and H [c, c]; `block` columns share one mask
    selection and one lazy update."""
    return _sparsegpt(W, H, sparsity, block)


def _sparsegpt(
    W, H, sparsity, block, *, factor=inverse_factor, early=False, lazy=True, twice=False, old=False
):
    """SparseGPT; each switch makes one mistake."""
    original, W, R = W, W.clone(), factor(H)
    mask = torch.ones_like(W, dtype=torch.bool)
    r, c = W.shape
    for a in range(0, c, block):
        b = min(a + block, c)
        zeros = int(sparsity * r * b) - int(sparsity * r * a)
        source = original if early else W
        mask[:, a:b] = block_mask(source[:, a:b], R.diagonal()[a:b], zeros)
        end = c if twice else b
        errors = [
            push_errors(W[:, a:end], R[a:end, a:end], j, mask[:, a + j]) for j in range(b - a)
        ]
        if lazy:
            W[:, b:] -= torch.stack(errors, dim=1) @ R[a:b, b:]
    return (original if old else W) * mask


def _all_columns_at_once(W, H, sparsity, block):
    """Without the lazy update: each column's errors go to all columns on the right."""
    return _sparsegpt(W, H, sparsity, block, lazy=False, twice=True)


def _masks_too_early(W, H, sparsity, block):
    """Every mask comes from the original weights. Choose a block's mask when its turn comes, from
    the weights as they are by then."""
    return _sparsegpt(W, H, sparsity, block, early=True)


def _one_mask(W, H, sparsity, block):
    """You chose one mask for the whole matrix. Choose one for each block of columns, when its turn
    comes."""
    return _sparsegpt(W, H, sparsity, W.shape[1])


def _no_lazy_update(W, H, sparsity, block):
    """The errors of a block never reach the later blocks: after its last column, push all of them
    with one product, errors @ R[a:b, b:]."""
    return _sparsegpt(W, H, sparsity, block, lazy=False)


def _pushed_twice(W, H, sparsity, block):
    """The later blocks got every error twice: once with its column, and once with the block. Within
    the block, hand push_errors the block's columns only."""
    return _sparsegpt(W, H, sparsity, block, twice=True)


def _by_factor_of_hessian(W, H, sparsity, block):
    """You used a factor of H. The loop needs that of its inverse: inverse_factor(H)."""
    return _sparsegpt(W, H, sparsity, block, factor=_factor_of_hessian)


def _old_weights(W, H, sparsity, block):
    """The mask is right, and the kept weights are the old ones: return the weights that moved."""
    return _sparsegpt(W, H, sparsity, block, old=True)


def _first_block_alone(W, H, sparsity, block):
    """Only the first block is pruned. Is there a `return` inside the loop?"""
    R, W = inverse_factor(H), W.clone()
    zeros = int(sparsity * len(W) * block)
    kept = block_mask(W[:, :block], R.diagonal()[:block], zeros)
    errors = [push_errors(W[:, :block], R[:block, :block], j, kept[:, j]) for j in range(block)]
    W[:, block:] -= torch.stack(errors, dim=1) @ R[:block, block:]
    W[:, :block] *= kept
    return W


def _whole_case(seed: int, r: int, c: int, sparsity: float, block: int) -> tuple:
    return normal(r, c, seed=seed), _hessian(c, seed), sparsity, block


# 04.6: n:m
def sparsegpt_groups(W, R, n, m):
    """The pruned weight [r, c] with n zeros in every m consecutive inputs of a row."""
    return _groups(W, R, n, m)


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


def _groups_case(c: int, n: int, m: int) -> tuple[Tensor, Tensor, int, int]:
    return normal(8, c, seed=c), inverse_factor(_hessian(c, c)), n, m


def _early_masks(*case):
    """Every mask comes from the original weights. Choose a group's mask when the loop reaches it,
    from the weights as they are by then."""
    return _groups(*case, early=True)


def _n_kept(*case):
    """You kept n of m. Here n counts the zeros, as in the papers; NVIDIA's N:M counts what stays,
    and 2:4 hides the difference."""
    return _groups(*case, keep=True)


def _off_scale(*case):
    """The score is w^2 / R_jj^2: with |w| / R_jj^2 the weight and its column are not on the same
    footing."""
    return _groups(*case, power=3)


def _unscaled(*case):
    """You compared the weights without their columns' R_jj: that is magnitude, with a repair."""
    return _groups(*case, scaled=False)


def _error_dropped(*case):
    """The mask is right, and the errors of the pruned weights went nowhere: push them to the
    columns on the right."""
    return _groups(*case, push=False)


def _by_columns(*case):
    """The weights of a column compete. In n:m those of a row within its group do."""
    return _groups(*case, down=True)


def _as_row_and_price(mine: tuple, expected: tuple) -> Figure:
    pair = [torch.cat([row, torch.as_tensor(price)[None]]) for row, price in (mine, expected)]
    return viz.beside(*pair, "the new row, and the price at its end")


EXERCISES = {
    "04.1": Exercise(
        obs_step,
        tuple(map(_step_case, range(3))),
        mistakes(
            _step_added,
            _step_not_divided,
            _price_without_repair,
            _others_stay,
            _row_of_hessian,
            _price_not_squared,
        ),
        right=(_step_by_least_squares,),
        kind="warm-up",
        minutes=4,
        rtol=1e-3,
        draw=_as_row_and_price,
        quiet=True,
    ),
    "04.2": Exercise(
        inverse_factor,
        ((_hessian(4, 7),), (_hessian(6, 8),)),
        mistakes(
            _lower_factor, _factor_of_hessian, _inverse_of_lower, _inverse_of_upper, _inverse_alone
        ),
        right=(_factor_flipped,),
        minutes=4,
        rtol=1e-3,
        draw="R",
        quiet=True,
    ),
    "04.3": Exercise(
        push_errors,
        (_push_case(3, 4, 5, 1), _push_case(4, 6, 4, 0), _push_case(5, 5, 6, 3)),
        mistakes(
            _push_the_kept,
            _push_all,
            _push_not_divided,
            _push_added,
            _push_without_column,
            _push_nothing,
            _push_into_a_copy,
            _push_silently,
        ),
        right=(_push_whole_rows,),
        minutes=6,
        rtol=1e-3,
        trial=_try_push,
        draw=_after_push,
        quiet=True,
    ),
    "04.4": Exercise(
        block_mask,
        (_block_case(6, 4, 4, 8), _block_case(7, 3, 6, 9), _block_case(8, 5, 2, 0)),
        mistakes(
            _block_by_magnitude,
            _block_multiplied,
            _block_off_scale,
            _block_by_rows,
            _block_inverted,
            _block_one_too_many,
            _block_all_gone,
        ),
        right=(_mask_by_rank,),
        minutes=4,
        draw="the mask, 1 = kept",
        quiet=True,
    ),
    "04.5": Exercise(
        sparsegpt,
        (_whole_case(9, 4, 8, 0.5, 3), _whole_case(10, 5, 8, 0.4, 4)),
        mistakes(
            _masks_too_early,
            _one_mask,
            _no_lazy_update,
            _pushed_twice,
            _by_factor_of_hessian,
            _old_weights,
            _first_block_alone,
        ),
        right=(_all_columns_at_once,),
        minutes=7,
        rtol=1e-3,
        draw="the pruned weight",
        quiet=True,
    ),
    "04.6": Exercise(
        sparsegpt_groups,
        (_groups_case(8, 2, 4), _groups_case(12, 1, 4)),
        mistakes(_early_masks, _n_kept, _off_scale, _unscaled, _error_dropped, _by_columns),
        kind="stretch",
        minutes=12,
        rtol=1e-3,
        draw="the pruned weight",
        quiet=True,
    ),
}
