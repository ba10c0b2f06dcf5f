"""The exercises of notebook 05."""

import torch
from torch import Tensor

from .checking import Exercise, mistakes


def _row(seed: int, inputs: int, tokens: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """One row of weights [c], which of them are pruned [c], inputs with means [c, N]."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(inputs, tokens, generator=draw)
    x *= 0.5 + 2 * torch.rand(inputs, 1, generator=draw)
    x += torch.randn(inputs, 1, generator=draw)
    w, pruned = torch.randn(inputs, generator=draw), torch.zeros(inputs, dtype=torch.bool)
    pruned[torch.randperm(inputs, generator=draw)[: inputs // 2]] = True
    return w, pruned, x


# 05.1: the expected error of every row
def expected_errors(weight, pruned, mean):
    """What the pruned weights of every row gave on average, [r]."""
    return (weight * mean * pruned).sum(1)


def _by_product(weight, pruned, mean):
    return torch.where(pruned, weight, 0) @ mean


def _matrix(seed: int, rows: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, inputs, generator=draw)
    pruned = torch.rand(rows, inputs, generator=draw) < 0.6
    return weight, pruned, torch.randn(inputs, generator=draw)


def _of_the_kept(weight, pruned, mean):
    """that sums what is kept; the error is what the pruned weights used to give"""
    return (weight * mean * ~pruned).sum(1)


def _of_absolute_terms(weight, pruned, mean):
    """the terms keep their signs: without them nothing can cancel, which is the point"""
    return (weight * mean * pruned).abs().sum(1)


def _absolute_errors(weight, pruned, mean):
    """e itself may be negative; its sign tells which weights to swap, so do not drop it"""
    return (weight * mean * pruned).sum(1).abs()


def _mean_of_terms(weight, pruned, mean):
    """add the terms up, do not average them: an output is a sum over its inputs"""
    return (weight * mean * pruned).sum(1) / pruned.sum(1)


def _by_input(weight, pruned, mean):
    """one number for each row, so sum over the inputs, the last dimension"""
    return (weight * mean * pruned).sum(0)


# 05.2: one swap of DSnoT
def next_swap(w, pruned, mean, variance, norms):
    """The weight that DSnoT regrows in a row, and the one that it prunes for it."""
    effect = w * mean
    side = effect * effect[pruned].sum().sign()
    key = (side / variance).masked_fill(~pruned | (side <= 0), -torch.inf)
    score = (w.abs() * norms).masked_fill(pruned | (side >= 0), torch.inf)
    return key.argmax().item(), score.argmin().item()


def _next_swap_by_lists(w, pruned, mean, variance, norms):
    side = w * mean
    side = side * side[pruned].sum().sign()
    grow = (pruned & (side > 0)).nonzero()[:, 0].tolist()
    prune = (~pruned & (side < 0)).nonzero()[:, 0].tolist()
    first = max(grow, key=lambda j: (side[j] / variance[j]).item())
    return first, min(prune, key=lambda j: (w[j].abs() * norms[j]).item())


def _swap_with(w, pruned, mean, variance, norms, *, power=1.0, mirror=True, any_sign=False):
    """The same with one thing done wrong."""
    effect = w * mean
    side = effect * (effect[pruned].sum().sign() if mirror else 1)
    key = (side / variance**power).masked_fill(~pruned | (side <= 0), -torch.inf)
    score = (w.abs() * norms).masked_fill(pruned if any_sign else pruned | (side >= 0), torch.inf)
    return key.argmax().item(), score.argmin().item()


def _swap_turned(*arguments):
    """the weight to regrow comes first, then the one to prune"""
    return next_swap(*arguments)[::-1]


def _swap_case(seed: int) -> tuple[Tensor, ...]:
    w, pruned, x = _row(seed, 16)
    return w, pruned, x.sum(1), x.var(1, unbiased=False), x.norm(dim=1)


def _effect_alone(*case):
    """the growing key divides the effect by the variance of the input, equation (5)"""
    return _swap_with(*case, power=0.0)


def _by_root(*case):
    """divide by the variance, not by its root, equation (5)"""
    return _swap_with(*case, power=0.5)


def _signs_kept(*case):
    """where e is negative all signs turn around: multiply the effects by sign(e) first"""
    return _swap_with(*case, mirror=False)


def _any_sign(*case):
    """only a kept weight whose effect has the other sign than e may be pruned, equation (6)"""
    return _swap_with(*case, any_sign=True)


def _most_helpful(w, pruned, mean, variance, norms):
    """prune the lowest Wanda score, not the effect that helps e most: that weight may be an
    important one"""
    effect = w * mean
    side = (effect * effect[pruned].sum().sign()).masked_fill(pruned, torch.inf)
    return next_swap(w, pruned, mean, variance, norms)[0], side.argmin().item()


def _magnitude(w, pruned, mean, variance, norms):
    """the pruning score is Wanda's: the magnitude times the norm of the input"""
    return next_swap(w, pruned, mean, variance, torch.ones_like(norms))


# 05.3: what a swap does to the squared error
def swap_change(w, pruned, gram, p, g):
    """By how much the squared error changes when p is pruned and g is regrown."""
    u = gram @ (w * pruned)
    of_p = 2 * w[p] * u[p] + w[p] ** 2 * gram[p, p]
    of_g = -2 * w[g] * u[g] + w[g] ** 2 * gram[g, g]
    return of_p + of_g - 2 * w[p] * w[g] * gram[p, g]


def _swap_anew(w, pruned, gram, p, g):
    before = w * pruned
    after = before.clone()
    after[p], after[g] = w[p], 0
    return after @ gram @ after - before @ gram @ before


def _change_with(w, pruned, gram, p, g, *, own=1, both=-2, regrow=-2):
    """The same with other factors."""
    u = gram @ (w * pruned)
    of_p = 2 * w[p] * u[p] + own * w[p] ** 2 * gram[p, p]
    of_g = regrow * w[g] * u[g] + own * w[g] ** 2 * gram[g, g]
    return of_p + of_g + both * w[p] * w[g] * gram[p, g]


def _change_case(seed: int) -> tuple:
    w, pruned, x = _row(seed, 12)
    p, g = (~pruned).nonzero()[seed % 5, 0].item(), pruned.nonzero()[seed % 4, 0].item()
    return w, pruned, x @ x.T, p, g


def _never_met(*case):
    """the two weights meet in G_pg: the term with both of them is missing, equation (8)"""
    return _change_with(*case, both=0)


def _met_with_plus(*case):
    """regrowing takes w_g out of d, so the term with both weights is negative"""
    return _change_with(*case, both=2)


def _met_once(*case):
    """the two weights meet twice, above and below the diagonal of G: a factor 2 is missing"""
    return _change_with(*case, both=-1)


def _first_order(*case):
    """these are the first-order terms only; swaps are not small: add the squares w^2 G_jj"""
    return _change_with(*case, own=0, both=0)


def _regrown_with_plus(*case):
    """regrowing takes w_g out of d: its linear term is negative"""
    return _change_with(*case, regrow=2)


def _of_the_rest(w, pruned, *rest):
    """u = G d, d the pruned weights, what the row misses, not the kept ones"""
    return swap_change(w, ~pruned, *rest)


# 05.4: find the bug: the order in which weights are regrown
def grow_order(effect, variance, pruned):
    """The pruned weights that may be regrown, the largest effect / variance first."""
    order = (effect / variance).argsort(descending=True).tolist()
    return [j for j in order if pruned[j] and effect[j] > 0 and variance[j] > 0]


def _grow_order_sorted(effect, variance, pruned):
    candidates = (pruned & (effect > 0) & (variance > 0)).nonzero()[:, 0]
    return candidates[(effect / variance)[candidates].argsort(descending=True)].tolist()


def _published_order(effect, variance, pruned):
    """this is still the published order: look at what 0 / 0 gives, and where it is sorted"""
    return torch.where(pruned, effect / variance, 0).argsort(descending=True).tolist()


def _order_without_nan(effect, variance, pruned):
    """the dead inputs no longer come first, but kept weights stand in the list as zeros: one of
    them would be 'regrown', and the row would lose a weight for nothing"""
    keys = torch.where(pruned, effect / variance, 0).nan_to_num()
    return keys.argsort(descending=True, stable=True).tolist()


def _order_of_pruned(effect, variance, pruned):
    """kept weights are gone from the list, but 0 / 0 is NaN, and argsort puts NaN above
    everything"""
    return [j for j in _published_order(effect, variance, pruned) if pruned[j]]


def _order_of_live(effect, variance, pruned):
    """weights with a negative effect would raise e; the list must end before them"""
    return [j for j in _published_order(effect, variance, pruned) if pruned[j] and variance[j] > 0]


def _order_ascending(effect, variance, pruned):
    """the largest key is regrown first: this order is turned around"""
    return grow_order(effect, variance, pruned)[::-1]


def _order_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    w, pruned, x = _row(seed, 14)
    x[[2, 9]] = 0  # inputs that never fire
    return w * x.sum(1), x.var(1, unbiased=False), pruned | (torch.arange(14) == 2)


# 05.5: the best swap within groups of m
def best_group_swap(w, pruned, gram, m):
    """The swap (p, g) within a group of m that lowers the error most; None where none does."""
    table = _changes(w, pruned, gram, m)
    return _place(table) if table.min() < 0 else None


def _changes(w, pruned, gram, m):  # [c, c], of E when p is pruned and g is regrown
    u, own = gram @ (w * pruned), w.square() * gram.diagonal()
    table = (2 * w * u + own)[:, None] + (own - 2 * w * u)[None] - 2 * torch.outer(w, w) * gram
    group = torch.arange(len(w)) // m
    forbidden = pruned[:, None] | ~pruned | (group[:, None] != group)
    return table.masked_fill(forbidden, torch.inf)


def _place(table):
    return divmod(table.argmin().item(), len(table))


def _group_swap_by_loops(w, pruned, gram, m):
    best, least = None, 0.0
    for p in (~pruned).nonzero()[:, 0].tolist():
        for g in pruned.nonzero()[:, 0].tolist():
            change = swap_change(w, pruned, gram, p, g).item()
            if p // m == g // m and change < least:
                best, least = (p, g), change
    return best


def _group_swap_turned(*arguments):
    """the weight to prune comes first, then the one to regrow"""
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


def _across_groups(w, pruned, gram, m):
    """p and g must stand in the same group of m inputs, or the pattern is broken"""
    return best_group_swap(w, pruned, gram, len(w))


def _never_none(w, pruned, gram, m):
    """where no swap lowers E the answer is None; a swap that raises E is not made"""
    return _place(_changes(w, pruned, gram, m))


def _diagonal_alone(w, pruned, gram, m):
    """this uses the diagonal of G alone, as Wanda does; the errors of two weights meet off the
    diagonal"""
    return best_group_swap(w, pruned, torch.diag(gram.diagonal()), m)


EXERCISES = {
    "05.1": Exercise(
        expected_errors,
        (_matrix(0, 3, 5), _matrix(1, 4, 7)),
        mistakes(_of_the_kept, _of_absolute_terms, _absolute_errors, _mean_of_terms, _by_input),
        (_by_product,),
        kind="warm-up",
        minutes=3,
    ),
    "05.2": Exercise(
        next_swap,
        tuple(map(_swap_case, range(12))),
        mistakes(
            _effect_alone, _by_root, _signs_kept, _any_sign, _most_helpful, _magnitude, _swap_turned
        ),
        (_next_swap_by_lists,),
        minutes=8,
    ),
    "05.3": Exercise(
        swap_change,
        tuple(map(_change_case, range(6))),
        mistakes(
            _never_met, _met_with_plus, _met_once, _first_order, _regrown_with_plus, _of_the_rest
        ),
        (_swap_anew,),
        minutes=8,
        rtol=1e-3,
    ),
    "05.4": Exercise(
        grow_order,
        tuple(map(_order_case, range(6))),
        mistakes(
            _published_order, _order_without_nan, _order_of_pruned, _order_of_live, _order_ascending
        ),
        (_grow_order_sorted,),
        kind="find-the-bug",
        minutes=8,
    ),
    "05.5": Exercise(
        best_group_swap,
        (*map(_group_case, range(4)), _group_case(0, 30), _group_case(1, 30)),
        mistakes(_across_groups, _never_none, _diagonal_alone, _group_swap_turned),
        (_group_swap_by_loops,),
        kind="stretch",
        minutes=12,
    ),
}
