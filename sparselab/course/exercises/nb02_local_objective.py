"""The exercises of notebook 02."""

import itertools

import torch
from torch import Tensor

from .checking import Exercise


def _layer(seed: int, r: int, c: int, tokens: int = 24) -> tuple[Tensor, Tensor]:
    """A weight [r, c] and the Gram matrix [c, c] of inputs that differ in loudness and share a
    mean."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(c, tokens, generator=draw) + 0.7
    x *= torch.linspace(0.5, 3, c)[torch.randperm(c, generator=draw), None]
    return torch.randn(r, c, generator=draw), x @ x.T


# 02.1: the error from the Gram matrix
def output_error(weight, pruned, gram):
    change = weight - pruned
    return ((change @ gram) * change).sum()


def _error_by_trace(weight, pruned, gram):
    return torch.einsum("ij,jk,ik->", weight - pruned, gram, weight - pruned)


def _all_pairs_of_rows(weight, pruned, gram):
    change = weight - pruned
    return (change @ gram @ change.T).sum()


def _diagonal_error(weight, pruned, gram):
    return ((weight - pruned).square() * gram.diagonal()).sum()


def _of_what_stays(weight, pruned, gram):
    return ((pruned @ gram) * pruned).sum()


def _with_root(weight, pruned, gram):
    return output_error(weight, pruned, gram).sqrt()


def _relative(weight, pruned, gram):
    return output_error(weight, pruned, gram) / output_error(weight, 0 * weight, gram)


def _pruned_layer(seed: int, r: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
    weight, gram = _layer(seed, r, c)
    return weight, weight * (weight.abs() > 0.6), gram


# 02.2: the best mask of a row
def best_mask(row, gram, zeros):
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


def _lowest(scores: Tensor, zeros: int) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool).scatter(0, scores.argsort()[:zeros], False)


# 02.3: the best kept weights
def refit_row(row, mask, gram):
    keep = mask.nonzero()[:, 0]
    new = torch.zeros_like(row)
    new[keep] = torch.linalg.solve(gram[keep][:, keep], gram[keep] @ row)
    return new


def _refit_by_correction(row, mask, gram):
    new = row * mask
    new[mask] += torch.linalg.solve(gram[mask][:, mask], gram[mask][:, ~mask] @ row[~mask])
    return new


def _nothing_moves(row, mask, gram):
    return torch.linalg.solve(gram, gram @ row) * mask


def _wrong_sign(row, mask, gram):
    return 2 * row * mask - refit_row(row, mask, gram)


def _one_at_a_time(row, mask, gram):
    return (row + (gram @ (row * ~mask)) / gram.diagonal()) * mask


def _other_half(row, mask, gram):
    return refit_row(row, ~mask, gram)


def _pruned_stay(row, mask, gram):
    return torch.where(mask, refit_row(row, mask, gram), row)


def _row(seed: int, c: int, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    weight, gram = _layer(seed, 1, c)
    return weight[0], torch.randperm(c, generator=torch.Generator().manual_seed(seed)) < kept, gram


# 02.4: a running mean over batches
def mean_gram(batches):
    gram, seen = 0, 0
    for batch in batches:
        x, new = batch.flatten(0, 1).T, len(batch)
        gram = gram * seen / (seen + new) + x @ x.T / (seen + new)
        seen += new
    return gram


def _gram_at_once(batches):
    x = torch.cat([batch.flatten(0, 1) for batch in batches])
    return x.T @ x / sum(map(len, batches))


def _never_added(batches):
    return torch.zeros(batches[0].shape[-1], batches[0].shape[-1])


def _only_the_last(batches):
    return batches[-1].flatten(0, 1).T @ batches[-1].flatten(0, 1) / sum(map(len, batches))


def _not_rescaled(batches):
    gram, seen = 0, 0
    for batch in batches:
        seen += len(batch)
        gram = gram + batch.flatten(0, 1).T @ batch.flatten(0, 1) / seen
    return gram


def _counted_too_early(batches):
    gram, seen = 0, 0
    for batch in batches:
        seen += len(batch)
        gram = (
            gram * seen / (seen + len(batch)) + batch.flatten(0, 1).T @ batch.flatten(0, 1) / seen
        )
    return gram


def _the_sum(batches):
    return _gram_at_once(batches) * sum(map(len, batches))


def _batches(seed: int, sizes: tuple[int, ...], c: int) -> tuple[list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return ([torch.randn(size, 7, c, generator=draw) for size in sizes],)


# 02.5: what a mask costs after the best refit
def price(row, mask, gram):
    inverse = torch.linalg.inv(gram)
    pruned = row[~mask]
    return pruned @ torch.linalg.solve(inverse[~mask][:, ~mask], pruned)


def _price_of_the_refit(row, mask, gram):
    change = row - refit_row(row, mask, gram)
    return change @ gram @ change


def _price_without_refit(row, mask, gram):
    return row[~mask] @ gram[~mask][:, ~mask] @ row[~mask]


def _price_not_inverted(row, mask, gram):
    return row[~mask] @ torch.linalg.inv(gram)[~mask][:, ~mask] @ row[~mask]


def _price_of_the_block(row, mask, gram):
    return row[~mask] @ torch.linalg.inv(gram[~mask][:, ~mask]) @ row[~mask]


def _price_one_by_one(row, mask, gram):
    return (row.square() / torch.linalg.inv(gram).diagonal())[~mask].sum()


EXERCISES = {
    "02.1": Exercise(
        output_error,
        (_pruned_layer(1, 3, 5), _pruned_layer(2, 4, 4), _pruned_layer(3, 1, 6)),
        {
            "D G D^T is an r x r matrix, and you added all of it: off its diagonal stand "
            "products of two different rows, which no output contains. Take the trace.": (
                _all_pairs_of_rows
            ),
            "You used the diagonal of G alone. Two changed weights of a row also meet in the "
            "off-diagonal entries; that shortcut is notebook 03.": (_diagonal_error),
            "That is the energy of the outputs of W', of what stays. The error belongs to the "
            "difference D = W - W'.": (_of_what_stays),
            "You took the square root: the squared error is asked for.": _with_root,
            "You divided by the energy of the dense outputs: the error itself is asked for, not "
            "the relative one.": (_relative),
        },
        right=(_error_by_trace,),
        kind="warm-up",
        minutes=5,
    ),
    "02.2": Exercise(
        best_mask,
        tuple(
            (_layer(seed, 1, c)[0][0], _layer(seed, 1, c)[1], zeros)
            for seed, c, zeros in ((4, 6, 4), (6, 8, 3), (13, 7, 4), (28, 6, 2))
        ),
        {
            "Your mask is inverted: True means kept.": lambda row, gram, zeros: (
                ~best_mask(row, gram, zeros)
            ),
            "These are the smallest weights, that is magnitude: the Gram matrix does not occur "
            "in it.": lambda row, gram, zeros: _lowest(row.abs(), zeros),
            "You used the diagonal of G alone, so each weight is priced as if it went alone. "
            "Try the whole d G d^T.": lambda row, gram, zeros: _lowest(
                row.square() * gram.diagonal(), zeros
            ),
            "You kept as many weights as should become zero: `zeros` counts those that go.": (
                lambda row, gram, zeros: best_mask(row, gram, len(row) - zeros)
            ),
            "You found the worst mask: look for the smallest error.": lambda row, gram, zeros: (
                best_mask(row, -gram, zeros)
            ),
        },
        right=(_best_mask_of_all,),
        kind="core",
        minutes=10,
    ),
    "02.3": Exercise(
        refit_row,
        (_row(8, 5, 3), _row(9, 6, 2), _row(10, 7, 5)),
        {
            "Nothing moved: you solved for all weights and then applied the mask, or used only "
            "the kept weights' own outputs. The kept weights must also give what the pruned "
            "ones gave: the right side is the full G[K, :] w.": (_nothing_moves),
            "The correction has the wrong sign: the kept weights take over what the pruned ones "
            "did, w_K + ...": (_wrong_sign),
            "You repaired each kept weight as if it were the only one, so they all repair the "
            "same error. They need one system with the matrix G[K, K].": (_one_at_a_time),
            "You refitted the pruned weights and zeroed the kept ones: True in the mask means "
            "kept.": (_other_half),
            "The pruned weights are still there: set them to zero.": _pruned_stay,
        },
        right=(_refit_by_correction,),
        kind="core",
        minutes=10,
    ),
    "02.4": Exercise(
        mean_gram,
        (_batches(11, (2, 3, 1), 4), _batches(12, (1, 1, 1, 1), 3)),
        {
            "The Gram matrix is still zero: the sum is computed and thrown away. Assign it.": (
                _never_added
            ),
            "Only the last batch is left: you replaced the old mean in place of adding to it.": (
                _only_the_last
            ),
            "The old mean keeps its full weight when a batch is added. Scale it by seen / (seen "
            "+ new) first.": (_not_rescaled),
            "You counted the batch before you scaled the old mean, so the old mean weighs too "
            "much.": (_counted_too_early),
            "That is the sum over all sequences; their mean is asked for.": _the_sum,
        },
        right=(_gram_at_once,),
        kind="find-the-bug",
        minutes=5,
    ),
    "02.5": Exercise(
        price,
        (_row(13, 5, 3), _row(14, 6, 2), _row(15, 7, 4)),
        {
            "That is the error before the refit, w_P G_PP w_P^T.": _price_without_refit,
            "You took the block [G^-1]_PP and did not invert it again.": _price_not_inverted,
            "You inverted G_PP. Invert G first, then take the block, then invert the block: the "
            "order matters.": (_price_of_the_block),
            "You added the prices of single weights. They are right one by one; two weights "
            "that go together share kept weights that could repair them.": (_price_one_by_one),
        },
        right=(_price_of_the_refit,),
        kind="stretch",
        minutes=15,
    ),
}
