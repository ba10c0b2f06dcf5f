"""The exercises of notebook 02."""

import itertools

import torch
from torch import Tensor

from .checking import Exercise, mistakes


def _layer(seed: int, r: int, c: int, tokens: int = 24) -> tuple[Tensor, Tensor]:
    """A weight [r, c] and the Gram matrix [c, c] of inputs that differ in loudness and share a
    mean."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(c, tokens, generator=draw) + 0.7
    x *= torch.linspace(0.5, 3, c)[torch.randperm(c, generator=draw), None]
    return torch.randn(r, c, generator=draw), x @ x.T


# 02.1: the error from the Gram matrix
def output_error(weight, pruned, gram):
    """The squared error of the outputs, from W and W' [r, c] and G = X X^T [c, c]."""
    change = weight - pruned
    return ((change @ gram) * change).sum()


def _error_by_trace(weight, pruned, gram):
    return torch.einsum("ij,jk,ik->", weight - pruned, gram, weight - pruned)


def _all_pairs_of_rows(weight, pruned, gram):
    """D G D^T is an r x r matrix, and you added all of it: off its diagonal stand products of two
    different rows, which no output contains. Take the trace."""
    change = weight - pruned
    return (change @ gram @ change.T).sum()


def _diagonal_error(weight, pruned, gram):
    """You used the diagonal of G alone. Two changed weights of a row also meet in the off-diagonal
    entries; that shortcut is notebook 03."""
    return ((weight - pruned).square() * gram.diagonal()).sum()


def _of_what_stays(weight, pruned, gram):
    """That is the energy of the outputs of W', of what stays. The error belongs to the difference D
    = W - W'."""
    return ((pruned @ gram) * pruned).sum()


def _with_root(weight, pruned, gram):
    """You took the square root: the squared error is asked for."""
    return output_error(weight, pruned, gram).sqrt()


def _relative(weight, pruned, gram):
    """You divided by the energy of the dense outputs: the error itself is asked for, not the
    relative one."""
    return output_error(weight, pruned, gram) / output_error(weight, 0 * weight, gram)


def _pruned_layer(seed: int, r: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
    weight, gram = _layer(seed, r, c)
    return weight, weight * (weight.abs() > 0.6), gram


# 02.2: the best mask of a row
def best_mask(row, gram, zeros):
    """The mask [c] of a row with the smallest error, of all that prune so many weights."""
    best, least = None, float("inf")
    for pruned in itertools.combinations(range(len(row)), zeros):
        mask = torch.ones(len(row), dtype=torch.bool)
        mask[list(pruned)] = False
        change = row * ~mask
        error = (change @ gram @ change).item()
        if error < least:
            best, least = mask, error
    return best


def _best_mask_of_all(row, gram, zeros):
    masks = torch.tensor(list(itertools.product([False, True], repeat=len(row))))
    masks = masks[(~masks).sum(1) == zeros]
    change = row * ~masks
    return masks[((change @ gram) * change).sum(1).argmin()]


def _row_case(seed: int, c: int, zeros: int) -> tuple[Tensor, Tensor, int]:
    weight, gram = _layer(seed, 1, c)
    return weight[0], gram, zeros


def _lowest(scores: Tensor, zeros: int) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool).scatter(0, scores.argsort()[:zeros], False)


def _mask_inverted(row, gram, zeros):
    """Your mask is inverted: True means kept."""
    return ~best_mask(row, gram, zeros)


def _by_magnitude(row, gram, zeros):
    """These are the smallest weights, that is magnitude: the Gram matrix does not occur in it."""
    return _lowest(row.abs(), zeros)


def _by_diagonal(row, gram, zeros):
    """You used the diagonal of G alone, so each weight is priced as if it went alone. Try the whole
    d G d^T."""
    return _lowest(row.square() * gram.diagonal(), zeros)


def _zeros_for_kept(row, gram, zeros):
    """You kept as many weights as should become zero: `zeros` counts those that go."""
    return best_mask(row, gram, len(row) - zeros)


def _worst_mask(row, gram, zeros):
    """You found the worst mask: look for the smallest error."""
    return best_mask(row, -gram, zeros)


# 02.3: the best kept weights
def refit_row(row, mask, gram):
    """The kept weights that come closest to the row's dense outputs; zeros elsewhere, [c]."""
    keep = mask.nonzero()[:, 0]
    new = torch.zeros_like(row)
    new[keep] = torch.linalg.solve(gram[keep][:, keep], gram[keep] @ row)
    return new


def _refit_by_correction(row, mask, gram):
    new = row * mask
    new[mask] += torch.linalg.solve(gram[mask][:, mask], gram[mask][:, ~mask] @ row[~mask])
    return new


def _nothing_moves(row, mask, gram):
    """Nothing moved: you solved for all weights and then applied the mask, or used only the kept
    weights' own outputs. The kept weights must also give what the pruned ones gave: the right side
    is the full G[K, :] w."""
    return torch.linalg.solve(gram, gram @ row) * mask


def _wrong_sign(row, mask, gram):
    """The correction has the wrong sign: the kept weights take over what the pruned ones did, w_K +
    ..."""
    return 2 * row * mask - refit_row(row, mask, gram)


def _one_at_a_time(row, mask, gram):
    """You repaired each kept weight as if it were the only one, so they all repair the same error.
    They need one system with the matrix G[K, K]."""
    return (row + (gram @ (row * ~mask)) / gram.diagonal()) * mask


def _other_half(row, mask, gram):
    """You refitted the pruned weights and zeroed the kept ones: True in the mask means kept."""
    return refit_row(row, ~mask, gram)


def _pruned_stay(row, mask, gram):
    """The pruned weights are still there: set them to zero."""
    return torch.where(mask, refit_row(row, mask, gram), row)


def _row(seed: int, c: int, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    weight, gram = _layer(seed, 1, c)
    return weight[0], torch.randperm(c, generator=torch.Generator().manual_seed(seed)) < kept, gram


# 02.4: a running mean over batches
def mean_gram(batches):
    """The mean of X X^T over all sequences, [c, c], from batches [k, tokens, c]."""
    gram, seen = 0, 0
    for batch in batches:
        x, new = batch.flatten(0, 1).T, len(batch)
        gram = gram * seen / (seen + new) + x @ x.T / (seen + new)
        seen += new
    return gram


def _gram_at_once(batches):
    x = torch.cat(batches)
    return x.flatten(0, 1).T @ x.flatten(0, 1) / len(x)


def _never_added(batches):
    """The Gram matrix is still zero: the sum is computed and thrown away. Assign it."""
    return torch.zeros(batches[0].shape[-1], batches[0].shape[-1])


def _only_the_last(batches):
    """Only the last batch is left: you replaced the old mean in place of adding to it."""
    x = batches[-1].flatten(0, 1)
    return x.T @ x / sum(map(len, batches))


def _not_rescaled(batches):
    """The old mean keeps its full weight when a batch is added. Scale it by seen / (seen + new)
    first."""
    gram, seen = 0, 0
    for batch in batches:
        x = batch.flatten(0, 1)
        seen += len(batch)
        gram = gram + x.T @ x / seen
    return gram


def _counted_too_early(batches):
    """You counted the batch before you scaled the old mean, so the old mean weighs too much."""
    gram, seen = 0, 0
    for batch in batches:
        x = batch.flatten(0, 1)
        seen += len(batch)
        gram = gram * seen / (seen + len(batch)) + x.T @ x / seen
    return gram


def _the_sum(batches):
    """That is the sum over all sequences; their mean is asked for."""
    return _gram_at_once(batches) * sum(map(len, batches))


def _batches(seed: int, sizes: tuple[int, ...], c: int) -> tuple[list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return ([torch.randn(size, 7, c, generator=draw) for size in sizes],)


# 02.5: what a mask costs after the best refit
def price(row, mask, gram):
    """What a mask costs after the best refit, without refitting."""
    inverse = torch.linalg.inv(gram)
    pruned = row[~mask]
    return pruned @ torch.linalg.solve(inverse[~mask][:, ~mask], pruned)


def _price_of_the_refit(row, mask, gram):
    change = row - refit_row(row, mask, gram)
    return change @ gram @ change


def _price_without_refit(row, mask, gram):
    """That is the error before the refit, w_P G_PP w_P^T."""
    return row[~mask] @ gram[~mask][:, ~mask] @ row[~mask]


def _price_not_inverted(row, mask, gram):
    """You took the block [G^-1]_PP and did not invert it again."""
    return row[~mask] @ torch.linalg.inv(gram)[~mask][:, ~mask] @ row[~mask]


def _price_of_the_block(row, mask, gram):
    """You inverted G_PP. Invert G first, then take the block, then invert the block: the order
    matters."""
    return row[~mask] @ torch.linalg.inv(gram[~mask][:, ~mask]) @ row[~mask]


def _price_one_by_one(row, mask, gram):
    """You added the prices of single weights. They are right one by one; two weights that go
    together share kept weights that could repair them."""
    return (row.square() / torch.linalg.inv(gram).diagonal())[~mask].sum()


EXERCISES = {
    "02.1": Exercise(
        output_error,
        (_pruned_layer(1, 3, 5), _pruned_layer(2, 4, 4), _pruned_layer(3, 1, 6)),
        mistakes(_all_pairs_of_rows, _diagonal_error, _of_what_stays, _with_root, _relative),
        right=(_error_by_trace,),
        kind="warm-up",
        minutes=5,
    ),
    "02.2": Exercise(
        best_mask,
        (_row_case(4, 6, 4), _row_case(6, 8, 3), _row_case(13, 7, 4), _row_case(28, 6, 2)),
        mistakes(_mask_inverted, _by_magnitude, _by_diagonal, _zeros_for_kept, _worst_mask),
        right=(_best_mask_of_all,),
        minutes=10,
    ),
    "02.3": Exercise(
        refit_row,
        (_row(8, 5, 3), _row(9, 6, 2), _row(10, 7, 5)),
        mistakes(_nothing_moves, _wrong_sign, _one_at_a_time, _other_half, _pruned_stay),
        right=(_refit_by_correction,),
        minutes=10,
    ),
    "02.4": Exercise(
        mean_gram,
        (_batches(11, (2, 3, 1), 4), _batches(12, (1, 1, 1, 1), 3)),
        mistakes(_never_added, _only_the_last, _not_rescaled, _counted_too_early, _the_sum),
        right=(_gram_at_once,),
        kind="find-the-bug",
        minutes=5,
    ),
    "02.5": Exercise(
        price,
        (_row(13, 5, 3), _row(14, 6, 2), _row(15, 7, 4)),
        mistakes(_price_without_refit, _price_not_inverted, _price_of_the_block, _price_one_by_one),
        right=(_price_of_the_refit,),
        kind="stretch",
        minutes=15,
    ),
}
