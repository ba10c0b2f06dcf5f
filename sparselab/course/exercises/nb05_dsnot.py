"""The exercises of notebook 05."""

import torch
from torch import Tensor

from .checking import Exercise


def _row(seed: int, inputs: int, tokens: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """One row of weights [c], which of them are pruned [c], inputs with means [c, N]."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(inputs, tokens, generator=draw) * (
        0.5 + 2 * torch.rand(inputs, 1, generator=draw)
    )
    x += torch.randn(inputs, 1, generator=draw)
    w = torch.randn(inputs, generator=draw)
    return (
        w,
        torch.zeros(inputs, dtype=torch.bool).scatter(
            0, torch.randperm(inputs, generator=draw)[: inputs // 2], True
        ),
        x,
    )


# 05.1: the expected error of every row
def expected_errors(weight, pruned, mean):
    return (weight * mean * pruned).sum(1)


def _by_product(weight, pruned, mean):
    return torch.where(pruned, weight, 0) @ mean


def _matrix(seed: int, rows: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, inputs, generator=draw),
        torch.rand(rows, inputs, generator=draw) < 0.6,
        torch.randn(inputs, generator=draw),
    )


# 05.2: one swap of DSnoT
def next_swap(w, pruned, mean, variance, norms):
    effect = w * mean
    side = effect * effect[pruned].sum().sign()
    key = (side / variance).masked_fill(~pruned | (side <= 0), -torch.inf)
    score = (w.abs() * norms).masked_fill(pruned | (side >= 0), torch.inf)
    return key.argmax().item(), score.argmin().item()


def _next_swap_by_lists(w, pruned, mean, variance, norms):
    effect = (w * mean).tolist()
    sign = 1 if sum(e for e, gone in zip(effect, pruned, strict=True) if gone) > 0 else -1
    grow = [j for j in range(len(w)) if pruned[j] and sign * effect[j] > 0]
    prune = [j for j in range(len(w)) if not pruned[j] and sign * effect[j] < 0]
    return (
        max(grow, key=lambda j: sign * effect[j] / variance[j].item()),
        min(prune, key=lambda j: (w[j].abs() * norms[j]).item()),
    )


def _swap_with(power=1.0, mirror=True, any_sign=False, by_effect=False, by_magnitude=False):
    """The same with one thing done wrong."""

    def swap(w, pruned, mean, variance, norms):
        effect = w * mean
        side = effect * (effect[pruned].sum().sign() if mirror else 1)
        key = (side / variance**power).masked_fill(~pruned | (side <= 0), -torch.inf)
        score = side if by_effect else w.abs() if by_magnitude else w.abs() * norms
        score = score.masked_fill(pruned if any_sign else pruned | (side >= 0), torch.inf)
        return key.argmax().item(), score.argmin().item()

    return swap


def _swap_turned(*arguments):
    return next_swap(*arguments)[::-1]


def _swap_case(seed: int) -> tuple[Tensor, ...]:
    w, pruned, x = _row(seed, 16)
    return w, pruned, x.sum(1), x.var(1, unbiased=False), x.norm(dim=1)


# 05.3: what a swap does to the squared error
def swap_change(w, pruned, gram, p, g):
    u = gram @ (w * pruned)
    return (
        2 * w[p] * u[p]
        + w[p] ** 2 * gram[p, p]
        - 2 * w[g] * u[g]
        + w[g] ** 2 * gram[g, g]
        - 2 * w[p] * w[g] * gram[p, g]
    )


def _swap_anew(w, pruned, gram, p, g):
    before = w * pruned
    after = before.clone()
    after[p], after[g] = w[p], 0
    return after @ gram @ after - before @ gram @ before


def _change_with(own=1, both=-2, regrow=-1, of_kept=False):
    def change(w, pruned, gram, p, g):
        u = gram @ (w * (~pruned if of_kept else pruned))
        return (
            2 * w[p] * u[p]
            + own * w[p] ** 2 * gram[p, p]
            + regrow * 2 * w[g] * u[g]
            + own * w[g] ** 2 * gram[g, g]
            + both * w[p] * w[g] * gram[p, g]
        )

    return change


def _change_case(seed: int) -> tuple:
    w, pruned, x = _row(seed, 12)
    return (
        w,
        pruned,
        x @ x.T,
        (~pruned).nonzero()[seed % 5, 0].item(),
        pruned.nonzero()[seed % 4, 0].item(),
    )


# 05.4: find the bug: the order in which weights are regrown
def grow_order(effect, variance, pruned):
    order = (effect / variance).argsort(descending=True).tolist()
    return [j for j in order if pruned[j] and effect[j] > 0 and variance[j] > 0]


def _grow_order_sorted(effect, variance, pruned):
    candidates = (pruned & (effect > 0) & (variance > 0)).nonzero()[:, 0]
    return candidates[(effect / variance)[candidates].argsort(descending=True)].tolist()


def _published_order(effect, variance, pruned):
    return torch.where(pruned, effect / variance, 0).argsort(descending=True).tolist()


def _order_without_nan(effect, variance, pruned):
    return (
        torch.where(pruned, effect / variance, 0)
        .nan_to_num()
        .argsort(descending=True, stable=True)
        .tolist()
    )


def _order_of_pruned(effect, variance, pruned):
    return [j for j in _published_order(effect, variance, pruned) if pruned[j]]


def _order_of_live(effect, variance, pruned):
    return [j for j in _published_order(effect, variance, pruned) if pruned[j] and variance[j] > 0]


def _order_ascending(effect, variance, pruned):
    return grow_order(effect, variance, pruned)[::-1]


def _order_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    w, pruned, x = _row(seed, 14)
    x[[2, 9]] = 0  # inputs that never fire
    return w * x.sum(1), x.var(1, unbiased=False), pruned | (torch.arange(14) == 2)


# 05.5: the best swap within groups of m
def best_group_swap(w, pruned, gram, m):
    u, own = gram @ (w * pruned), w.square() * gram.diagonal()
    table = (2 * w * u + own)[:, None] + (own - 2 * w * u)[None] - 2 * torch.outer(w, w) * gram
    group = torch.arange(len(w)) // m
    table = table.masked_fill(
        pruned[:, None] | ~pruned[None] | (group[:, None] != group[None]), torch.inf
    )
    return divmod(table.argmin().item(), len(w)) if table.min() < 0 else None


def _group_swap_by_loops(w, pruned, gram, m):
    pairs = [
        (p, g)
        for p in range(len(w))
        for g in range(len(w))
        if p // m == g // m and pruned[g] and not pruned[p]
    ]
    change, best = min((swap_change(w, pruned, gram, p, g).item(), (p, g)) for p, g in pairs)
    return best if change < 0 else None


def _group_swap_with(groups=True, stop=True, diagonal=False):
    def swap(w, pruned, gram, m):
        if diagonal:
            gram = torch.diag(gram.diagonal())
        pairs = [
            (p, g)
            for p in range(len(w))
            for g in range(len(w))
            if (not groups or p // m == g // m) and pruned[g] and not pruned[p]
        ]
        change, best = min((swap_change(w, pruned, gram, p, g).item(), (p, g)) for p, g in pairs)
        return best if change < 0 or not stop else None

    return swap


def _group_swap_turned(*arguments):
    found = best_group_swap(*arguments)
    return found and found[::-1]


def _group_case(seed: int, cycles: int = 0) -> tuple:
    """A row with two zeros in every four, after so many of the best swaps."""
    w, _, x = _row(seed, 12)
    gram = x @ x.T
    lowest = (w.abs() * x.norm(dim=1)).view(3, 4).argsort(1)[:, :2]
    pruned = torch.zeros(3, 4, dtype=torch.bool).scatter(1, lowest, True).view(-1)
    for _ in range(cycles):
        if found := best_group_swap(w, pruned, gram, 4):
            pruned[found[0]], pruned[found[1]] = True, False
    return w, pruned, gram, 4


EXERCISES = {
    "05.1": Exercise(
        expected_errors,
        (_matrix(0, 3, 5), _matrix(1, 4, 7)),
        {
            "that sums what is kept; the error is what the pruned weights used to give": (
                lambda weight, pruned, mean: (weight * mean * ~pruned).sum(1)
            ),
            "the terms keep their signs: without them nothing can cancel, which is the point": (
                lambda weight, pruned, mean: (weight * mean * pruned).abs().sum(1)
            ),
            "e itself may be negative; its sign tells which weights to swap, so do not drop it": (
                lambda weight, pruned, mean: (weight * mean * pruned).sum(1).abs()
            ),
            "add the terms up, do not average them: an output is a sum over its inputs": (
                lambda weight, pruned, mean: (weight * mean * pruned).sum(1) / pruned.sum(1)
            ),
            "one number for each row, so sum over the inputs, the last dimension": (
                lambda weight, pruned, mean: (weight * mean * pruned).sum(0)
            ),
        },
        (_by_product,),
        kind="warm-up",
        minutes=3,
    ),
    "05.2": Exercise(
        next_swap,
        tuple(map(_swap_case, range(12))),
        {
            "the growing key divides the effect by the variance of the input, equation (5)": (
                _swap_with(power=0.0)
            ),
            "divide by the variance, not by its root, equation (5)": _swap_with(power=0.5),
            "where e is negative all signs turn around: multiply the effects by sign(e) first": (
                _swap_with(mirror=False)
            ),
            "only a kept weight whose effect has the other sign than e may be pruned, equation "
            "(6)": _swap_with(any_sign=True),
            "prune the lowest Wanda score, not the effect that helps e most: that weight may be "
            "an important one": _swap_with(by_effect=True),
            "the pruning score is Wanda's: the magnitude times the norm of the input": _swap_with(
                by_magnitude=True
            ),
            "the weight to regrow comes first, then the one to prune": _swap_turned,
        },
        (_next_swap_by_lists,),
        minutes=8,
    ),
    "05.3": Exercise(
        swap_change,
        tuple(map(_change_case, range(6))),
        {
            "the two weights meet in G_pg: the term with both of them is missing, equation (8)": (
                _change_with(both=0)
            ),
            "regrowing takes w_g out of d, so the term with both weights is negative": _change_with(
                both=2
            ),
            "the two weights meet twice, above and below the diagonal of G: a factor 2 is "
            "missing": _change_with(both=-1),
            "these are the first-order terms only; swaps are not small: add the squares w^2 G_jj": (
                _change_with(own=0, both=0)
            ),
            "regrowing takes w_g out of d: its linear term is negative": _change_with(regrow=1),
            "u = G d, d the pruned weights, what the row misses, not the kept ones": _change_with(
                of_kept=True
            ),
        },
        (_swap_anew,),
        minutes=8,
        rtol=1e-3,
    ),
    "05.4": Exercise(
        grow_order,
        tuple(map(_order_case, range(6))),
        {
            "this is still the published order: look at what 0 / 0 gives, and where it is sorted": (
                _published_order
            ),
            "the dead inputs no longer come first, but kept weights stand in the list as zeros: "
            "one of them would be 'regrown', and the row would lose a weight for nothing": (
                _order_without_nan
            ),
            "kept weights are gone from the list, but 0 / 0 is NaN, and argsort puts NaN above "
            "everything": (_order_of_pruned),
            "weights with a negative effect would raise e; the list must end before them": (
                _order_of_live
            ),
            "the largest key is regrown first: this order is turned around": _order_ascending,
        },
        (_grow_order_sorted,),
        kind="find-the-bug",
        minutes=8,
    ),
    "05.5": Exercise(
        best_group_swap,
        (*(_group_case(seed) for seed in range(4)), *(_group_case(seed, 30) for seed in range(2))),
        {
            "p and g must stand in the same group of m inputs, or the pattern is broken": (
                _group_swap_with(groups=False)
            ),
            "where no swap lowers E the answer is None; a swap that raises E is not made": (
                _group_swap_with(stop=False)
            ),
            "this uses the diagonal of G alone, as Wanda does; the errors of two weights meet "
            "off the diagonal": _group_swap_with(diagonal=True),
            "the weight to prune comes first, then the one to regrow": _group_swap_turned,
        },
        (_group_swap_by_loops,),
        kind="stretch",
        minutes=12,
    ),
}
