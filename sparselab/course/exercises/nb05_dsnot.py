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


def _rows(seed: int, rows: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight [r, c], which of it is pruned [r, c], inputs with means [c, N], one of them dead."""
    w, pruned, x = zip(*(_row(seed + 50 * row, inputs) for row in range(rows)), strict=True)
    x[0][inputs // 2] = 0
    return torch.stack(w), torch.stack(pruned), x[0]


# 05.1: the expected error of every row
def expected_errors(W, pruned, mean):
    """What the pruned weights of every row gave on average, [r]."""
    return (W * mean * pruned).sum(1)


def _by_product(W, pruned, mean):
    return torch.where(pruned, W, 0) @ mean


def _matrix(seed: int, rows: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, inputs, generator=draw)
    pruned = torch.rand(rows, inputs, generator=draw) < 0.6
    return weight, pruned, torch.randn(inputs, generator=draw)


def _of_the_kept(W, pruned, mean):
    """You summed what is kept. The row misses what the pruned weights used to give."""
    return (W * mean * ~pruned).sum(1)


def _of_absolute_terms(W, pruned, mean):
    """You dropped the signs of the terms. Without them nothing can cancel, which is the point."""
    return (W * mean * pruned).abs().sum(1)


def _absolute_errors(W, pruned, mean):
    """You dropped the sign of e. It tells which weights to swap, so keep it."""
    return (W * mean * pruned).sum(1).abs()


def _mean_of_terms(W, pruned, mean):
    """You averaged the terms. An output is a sum over its inputs, so add them up."""
    return (W * mean * pruned).sum(1) / pruned.sum(1)


def _by_input(W, pruned, mean):
    """You summed over the rows. One number for each row is asked for: sum over the inputs, the last
    dimension."""
    return (W * mean * pruned).sum(0)


# 05.2: the weight that comes back
def grow(e, effect, variance, gone):
    """Of every row, the candidate of the largest |effect| / variance among those whose effect has
    the sign of e, [r]; -1 where there is none."""
    return _grown(e, effect, variance, gone)


def _grown(
    e: Tensor,
    effect: Tensor,
    variance: Tensor,
    gone: Tensor,
    *,
    power: float = 1.0,
    turned: bool = True,
    dead: bool = False,
    none: int | None = -1,
) -> Tensor:
    """`grow`, or the same with one thing done wrong."""
    toward = effect * torch.where(e < 0, -1, 1)[:, None] if turned else effect
    allowed = gone & (toward > 0) & (dead | (variance > 0))
    best, g = (toward / variance**power).masked_fill(~allowed, -torch.inf).max(1)
    return g if none is None else g.where(best > -torch.inf, none)


def _grow_by_rows(e, effect, variance, gone):
    found = []
    for total, row, candidates in zip(e, effect, gone, strict=True):
        keys = {
            j: (row[j].abs() / variance[j]).item()
            for j in range(len(row))
            if candidates[j] and row[j] * total > 0 and variance[j] > 0
        }
        found.append(max(keys, key=keys.get, default=-1))
    return torch.tensor(found)


def _grow_effect_alone(*case):
    """You took the largest effect. Divide it by the variance of the input, equation (5)."""
    return _grown(*case, power=0.0)


def _grow_by_root(*case):
    """You divided by the root of the variance. Equation (5) divides by the variance itself."""
    return _grown(*case, power=0.5)


def _grow_signs_kept(*case):
    """Where e is negative you regrew a weight with a positive effect, which moves e away from zero.
    Multiply the effects by the sign of e first."""
    return _grown(*case, turned=False)


def _grow_dead(e, effect, variance, gone):
    """An input without variance came back. Its effect over its variance is 0 / 0, which is NaN, and
    max and argmax take NaN for the largest number: leave such inputs out."""
    toward = effect * torch.where(e < 0, -1, 1)[:, None]
    best, g = (toward / variance).masked_fill(~gone | (toward < 0), -torch.inf).max(1)
    return g.where((best > -torch.inf) | best.isnan(), -1)


def _grow_a_kept(e, effect, variance, gone):
    """You regrew a weight that is no candidate: only those in `gone` may come back."""
    return grow(e, effect, variance, torch.ones_like(gone))


def _grow_always(*case):
    """Where a row has no candidate left, the answer is -1. The argmax of a row of -inf is 0."""
    return _grown(*case, none=None)


def _grow_case(seed: int, *, empty: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w, pruned, x = _rows(seed, 5, 12)
    effect = w * x.sum(1)
    e = (effect * pruned).sum(1)
    if empty:  # nothing of the first row can come back
        pruned = pruned & ~((torch.arange(5) == 0)[:, None] & (effect * e[:, None] > 0))
    pruned[:, 6] = True  # the dead input
    return e, effect, x.var(1, unbiased=False), pruned


# 05.3: the weight that goes for it
def prune_back(e, effect, score, kept):
    """Of every row, the candidate of the lowest score among those whose effect has the other sign
    than e, [r]; -1 where there is none."""
    against = effect * torch.where(e < 0, -1, 1)[:, None] < 0
    least, p = score.masked_fill(~(kept & against), torch.inf).min(1)
    return p.where(least < torch.inf, -1)


def _prune_by_rows(e, effect, score, kept):
    found = []
    for total, row, scores, candidates in zip(e, effect, score, kept, strict=True):
        allowed = (candidates & (row * total < 0)).nonzero()[:, 0].tolist()
        found.append(min(allowed, key=lambda j, scores=scores: scores[j].item(), default=-1))
    return torch.tensor(found)


def _prune_any_sign(e, effect, score, kept):
    """You pruned a weight whose effect has the sign of e, which moves e away from zero. Only those
    of the other sign may go, equation (6)."""
    least, p = score.masked_fill(~kept, torch.inf).min(1)
    return p.where(least < torch.inf, -1)


def _prune_signs_kept(e, effect, score, kept):
    """Where e is negative the signs turn around: there a weight with a positive effect must go.
    Multiply the effects by the sign of e first."""
    return prune_back(e.abs(), effect, score, kept)


def _prune_most_helpful(e, effect, score, kept):
    """You pruned the weight that helps e most. That one may be important: take the lowest score."""
    return prune_back(e, effect, effect * torch.where(e < 0, -1, 1)[:, None], kept)


def _prune_highest(e, effect, score, kept):
    """You pruned the highest score, the most important weight. The lowest one goes."""
    return prune_back(e, effect, -score, kept)


def _prune_a_pruned(e, effect, score, kept):
    """You pruned a weight that is no candidate: only those in `kept` may go."""
    return prune_back(e, effect, score, torch.ones_like(kept))


def _prune_always(e, effect, score, kept):
    """Where a row has no candidate left, the answer is -1. The argmin of a row of inf is 0."""
    against = effect * torch.where(e < 0, -1, 1)[:, None] < 0
    return score.masked_fill(~(kept & against), torch.inf).argmin(1)


def _prune_case(seed: int, *, empty: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w, pruned, x = _rows(seed, 5, 12)
    effect = w * x.sum(1)
    e = (effect * pruned).sum(1)
    if empty:  # nothing of the second row can go
        pruned = pruned | ((torch.arange(5) == 1)[:, None] & (effect * e[:, None] < 0))
    return e, effect, w.abs() * x.norm(dim=1), ~pruned


# 05.4: swap after swap
def dsnot_mask(W, pruned, mean, variance, score, same_sign=True, cycles=50):
    """DSnoT from a mask of pruned weights [r, c]: the mask after the swaps."""
    return _cycle(W, pruned, mean, variance, score, same_sign, cycles)


def _cycle(
    W: Tensor,
    pruned: Tensor,
    mean: Tensor,
    variance: Tensor,
    score: Tensor,
    same_sign: bool,
    cycles: int,
    *,
    once: bool = True,
    follow: bool = True,
    rest: bool = True,
    together: bool = False,
    threshold: float = 0.1,
) -> Tensor:
    """`dsnot_mask`, or the same with one step spoilt."""
    effect, rows = W * mean, torch.arange(len(W))
    e = expected_errors(W, pruned, mean)
    pruned, gone, kept = pruned.clone(), pruned.clone(), ~pruned
    for _ in range(cycles):
        g, p = grow(e, effect, variance, gone), prune_back(e, effect, score, kept)
        new = e - (effect[rows, g] - effect[rows, p])
        go = (g >= 0) & (p >= 0)
        if rest:
            go &= e.abs() > threshold
        if same_sign:
            go &= new * e > 0
        if not go.any() or (together and not go.all()):
            break
        i = rows[go]
        pruned[i, g[i]], pruned[i, p[i]] = False, True
        gone[i, g[i]], kept[i, p[i]] = False, False
        if not once:
            gone, kept = pruned.clone(), ~pruned
        if follow:
            e = torch.where(go, new, e)
    return pruned


def _cycle_by_rows(W, pruned, mean, variance, score, same_sign=True, cycles=50):
    masks = []
    for w, mask, scores in zip(W, pruned, score, strict=True):
        new, gone, kept = mask.clone(), mask.clone(), ~mask
        for _ in range(cycles):
            e = (w * mean * new).sum()[None]
            g = grow(e, (w * mean)[None], variance, gone[None]).item()
            p = prune_back(e, (w * mean)[None], scores[None], kept[None]).item()
            if g < 0 or p < 0 or e.abs() <= 0.1:
                break
            if same_sign and (e + w[p] * mean[p] - w[g] * mean[g]) * e <= 0:
                break
            new[g], new[p], gone[g], kept[p] = False, True, False, False
        masks.append(new)
    return torch.stack(masks)


def _mask_case(seed: int, same_sign: bool, cycles: int = 50, scale: float = 1.0) -> tuple:
    w, pruned, x = _rows(seed, 6, 16)
    w = scale * w
    return (
        w,
        pruned,
        x.mean(1),
        x.var(1, unbiased=False),
        w.abs() * x.norm(dim=1),
        same_sign,
        cycles,
    )


def _rule_ignored(W, pruned, mean, variance, score, same_sign=True, cycles=50):
    """With same_sign=True a row must rest before a swap that would turn the sign of e around, and
    yours went on."""
    return _cycle(W, pruned, mean, variance, score, False, cycles)


def _rule_always(W, pruned, mean, variance, score, same_sign=True, cycles=50):
    """With same_sign=False a row goes on when the sign of e turns around, and yours rested."""
    return _cycle(W, pruned, mean, variance, score, True, cycles)


def _one_swap(W, pruned, mean, variance, score, same_sign=True, cycles=50):
    """Only one swap was made. Is there a `return` inside the loop?"""
    return _cycle(W, pruned, mean, variance, score, same_sign, min(cycles, 1))


def _moved_twice(*case):
    """A weight moved twice: what was regrown was pruned again, or the other way around. Strike each
    moved weight off its list of candidates, and add none."""
    return _cycle(*case, once=False)


def _old_error(*case):
    """You chose every swap by the expected error of the starting mask. It moves with each swap,
    equation (4)."""
    return _cycle(*case, follow=False)


def _never_rests(*case):
    """A row must rest when |e| is at most 0.1, and yours went on."""
    return _cycle(*case, rest=False)


def _all_rest(*case):
    """You stopped all rows when the first one had to rest. The others go on."""
    return _cycle(*case, together=True)


def _nothing_moved(W, pruned, mean, variance, score, same_sign=True, cycles=50):
    """The mask is the one you began with: write the swaps into a copy of it, and return that."""
    return pruned.clone()


# 05.5: by how much a swap lowers the squared error
def exact_swap_gain(W, u, G, p, g):
    """By how much the squared error of every row falls when its weight p is pruned and its weight g
    is regrown, [r]; u [r, c] = (the pruned weights) @ G."""
    return _gain(W, u, G, p, g)


def _gain(W: Tensor, u: Tensor, G: Tensor, p: Tensor, g: Tensor, *, own=1, both=2, back=2):
    """`exact_swap_gain`, or the same with other factors."""
    i = torch.arange(len(W))
    w_p, w_g = W[i, p], W[i, g]
    regrown = back * w_g * u[i, g] - own * w_g**2 * G[g, g]
    lost = 2 * w_p * u[i, p] + own * w_p**2 * G[p, p]
    return regrown - lost + both * w_p * w_g * G[p, g]


def _gain_anew(W, u, G, p, g):
    i, h = torch.arange(len(W)), torch.zeros_like(W)
    h[i, p] += W[i, p]
    h[i, g] -= W[i, g]
    return -(2 * h * u + h * (h @ G)).sum(1)


def _gain_case(seed: int) -> tuple[Tensor, ...]:
    w, pruned, x = _rows(seed, 5, 12)
    gram = x @ x.T
    p = torch.stack([(~row).nonzero()[seed % 5, 0] for row in pruned])
    g = torch.stack([row.nonzero()[seed % 4, 0] for row in pruned])
    return w, (w * pruned) @ gram, gram, p, g


def _never_met(*case):
    """The two weights meet in G_pg. The term with both of them is missing, equation (8)."""
    return _gain(*case, both=0)


def _met_with_minus(*case):
    """The term with both weights has the wrong sign. Regrowing takes w_g out of d and pruning puts
    w_p in, so their product lowers the error."""
    return _gain(*case, both=-2)


def _met_once(*case):
    """The two weights meet twice, above and below the diagonal of G: a factor 2 is missing."""
    return _gain(*case, both=1)


def _first_order(*case):
    """These are the first-order terms only. Swaps are not small: the squares w^2 G_jj and the term
    with both weights are missing."""
    return _gain(*case, own=0, both=0)


def _regrown_with_minus(*case):
    """The linear term of the regrown weight has the wrong sign. Regrowing takes w_g out of d, so it
    gains 2 w_g u_g."""
    return _gain(*case, back=-2)


def _by_how_much_it_rises(*case):
    """That is by how much the error rises. The gain is positive where the swap helps."""
    return -exact_swap_gain(*case)


def _every_pair(W, u, G, p, g):
    """You indexed all rows with all p: the result must have one number for each row. Use W[i, p]
    with i = torch.arange(len(W))."""
    return 2 * W[:, g] * u[:, g] - W[:, g] ** 2 * G[g, g] - 2 * W[:, p] * u[:, p]


# 05.6: what the bias must add
def mean_shift(W, new, X):
    """What to add to the bias of every output so that its mean is that of W again, [r]."""
    return ((W - new) @ X).mean(1)


def _shift_of_outputs(W, new, X):
    return (W @ X).mean(1) - (new @ X).mean(1)


def _shift_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    w, pruned, x = _rows(seed, 4, 9)
    return w, w * ~pruned, x


def _shift_turned(W, new, X):
    """The sign is wrong: the bias must give what the new weights lack, W X minus W' X."""
    return -mean_shift(W, new, X)


def _shift_summed(W, new, X):
    """You added the tokens up. The bias is added to every token, so take their mean."""
    return ((W - new) @ X).sum(1)


def _shift_by_token(W, new, X):
    """You averaged over the outputs. One number for each output is asked for: the mean over the
    tokens, the last dimension."""
    return ((W - new) @ X).mean(0)


def _shift_of_new(W, new, X):
    """That is the mean of the new outputs. The bias must give the difference to the dense ones."""
    return (new @ X).mean(1)


# 05.7: the best swap within groups of m
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
    best, most, u = None, 0.0, (gram @ (w * pruned))[None]
    for p in (~pruned).nonzero()[:, 0].tolist():
        for g in pruned.nonzero()[:, 0].tolist():
            pair = torch.tensor([p]), torch.tensor([g])
            gain = exact_swap_gain(w[None], u, gram, *pair).item()
            if p // m == g // m and gain > most:
                best, most = (p, g), gain
    return best


def _group_swap_turned(*arguments):
    """You returned (g, p): the weight to prune comes first, then the one to regrow."""
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
    """You swapped across groups. p and g must stand in the same group of m inputs, or the pattern
    is broken."""
    return best_group_swap(w, pruned, gram, len(w))


def _never_none(w, pruned, gram, m):
    """Where no swap lowers E the answer is None: a swap that raises E is not made."""
    return _place(_changes(w, pruned, gram, m))


def _diagonal_alone(w, pruned, gram, m):
    """You used the diagonal of G alone, as Wanda does. The errors of two weights meet off the
    diagonal."""
    return best_group_swap(w, pruned, torch.diag(gram.diagonal()), m)


# Pictures of wrong answers


EXERCISES = {
    "05.1": Exercise(
        expected_errors,
        (_matrix(0, 3, 5), _matrix(1, 4, 7)),
        mistakes(_of_the_kept, _of_absolute_terms, _absolute_errors, _mean_of_terms, _by_input),
        (_by_product,),
        kind="warm-up",
        minutes=2,
        draw="expected errors",
        quiet=True,
    ),
    "05.2": Exercise(
        grow,
        (*map(_grow_case, range(6)), _grow_case(6, empty=True)),
        mistakes(
            _grow_effect_alone,
            _grow_by_root,
            _grow_signs_kept,
            _grow_dead,
            _grow_a_kept,
            _grow_always,
        ),
        (_grow_by_rows,),
        minutes=6,
        draw="the weight's place in each row",
        quiet=True,
    ),
    "05.3": Exercise(
        prune_back,
        (*map(_prune_case, range(6)), _prune_case(6, empty=True)),
        mistakes(
            _prune_any_sign,
            _prune_signs_kept,
            _prune_most_helpful,
            _prune_highest,
            _prune_a_pruned,
            _prune_always,
        ),
        (_prune_by_rows,),
        minutes=3,
        draw="the weight's place in each row",
        quiet=True,
    ),
    "05.4": Exercise(
        dsnot_mask,
        (
            *(_mask_case(seed, True) for seed in range(3)),
            *(_mask_case(seed, False) for seed in range(3, 6)),
            *(_mask_case(seed, False, scale=0.1) for seed in range(6, 9)),
            _mask_case(9, False, cycles=2),
        ),
        mistakes(
            _rule_ignored,
            _rule_always,
            _one_swap,
            _moved_twice,
            _old_error,
            _never_rests,
            _all_rest,
            _nothing_moved,
        ),
        (_cycle_by_rows,),
        minutes=8,
        draw="the mask, 1 = pruned",
        quiet=True,
    ),
    "05.5": Exercise(
        exact_swap_gain,
        tuple(map(_gain_case, range(6))),
        mistakes(
            _never_met,
            _met_with_minus,
            _met_once,
            _first_order,
            _regrown_with_minus,
            _by_how_much_it_rises,
            _every_pair,
        ),
        (_gain_anew,),
        minutes=6,
        rtol=1e-3,
        draw="the gain of each row",
        quiet=True,
    ),
    "05.6": Exercise(
        mean_shift,
        tuple(map(_shift_case, range(3))),
        mistakes(_shift_turned, _shift_summed, _shift_by_token, _shift_of_new),
        (_shift_of_outputs,),
        kind="warm-up",
        minutes=3,
        draw="what the bias adds",
        quiet=True,
    ),
    "05.7": Exercise(
        best_group_swap,
        (*map(_group_case, range(4)), _group_case(0, 30), _group_case(1, 30)),
        mistakes(_across_groups, _never_none, _diagonal_alone, _group_swap_turned),
        (_group_swap_by_loops,),
        kind="stretch",
        minutes=12,
        quiet=True,
    ),
}
