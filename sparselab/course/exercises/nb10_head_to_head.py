"""The exercises of notebook 10."""

import math
from itertools import combinations

import torch

from .checking import Exercise, mistakes, normal


# 10.1: the difference of two recorded rows
def gap_of_rows(a, error_a, b, error_b):
    """By how much a's excess loss is above b's, and the largest error that this can have."""
    return a - b, error_a + error_b


def _gap_if_independent(a, error_a, b, error_b):
    """The root of the sum of squares holds for independent errors, and nobody said that these are.
    The sum holds for all."""
    return a - b, (error_a**2 + error_b**2) ** 0.5


def _errors_subtracted(a, error_a, b, error_b):
    """Errors are not subtracted from each other: that would hold only if both models erred alike in
    every window. Add them up."""
    return a - b, abs(error_a - error_b)


def _error_of_first(a, error_a, b, error_b):
    """Both rows have an error, and the difference has a share of each: add them up."""
    return a - b, error_a


def _gap_turned(a, error_a, b, error_b):
    """The sign is the other way round: the gap is a minus b, below 0 where a loses less."""
    return b - a, error_a + error_b


def _two_errors(a, error_a, b, error_b):
    """That is twice the error. Return the error itself: the factor 2 belongs to the rule that uses
    it."""
    return a - b, 2 * (error_a + error_b)


# 10.2: in how many cells each method is ahead of each other one
def cells_won(excess, error):
    """The number of cells [m, m] in which method a (row) is ahead of method b (column), from excess
    losses and their errors [m, cells]."""
    gap, doubt = gap_of_rows(excess[:, None], error[:, None], excess, error)
    return (gap < -2 * doubt).sum(-1)


def _won_by_loop(excess, error):
    won = torch.zeros(len(excess), len(excess), dtype=torch.long)
    for a in range(len(excess)):
        for b in range(len(excess)):
            for x, dx, y, dy in zip(excess[a], error[a], excess[b], error[b], strict=True):
                won[a, b] += int(y - x > 2 * (dx + dy))
    return won


def _won_by_larger(excess, error):
    """The other way round: an excess loss is a loss, and the lower one wins. Row a is ahead where
    the gap a - b is below zero."""
    return cells_won(-excess, error)


def _won_by_one_error(excess, error):
    """One error is not enough: about a third of all differences that are only chance reach it. Ask
    for two."""
    return cells_won(excess, error / 2)


def _won_without_error(excess, error):
    """A difference without its error is not a result: count a cell only if the gap is larger than
    two of its errors."""
    return cells_won(excess, torch.zeros_like(error))


def _won_by_either(excess, error):
    """With the sign forgotten both methods win the same cells. Ask who is ahead: leave out abs()
    and look for gaps below zero."""
    won = cells_won(excess, error)
    return won + won.T


def _won_by_mean(excess, error):
    """That compares the means over all cells. Compare in each cell first, and then count."""
    cells = excess.shape[1]
    return cells * cells_won(excess.mean(1, keepdim=True), error.mean(1, keepdim=True))


# 10.3: pairs that can be shown with either winner
def either_winner(won):
    """The pairs [a, b], a < b, of which each method is ahead in a cell at least; won: [m, m]."""
    return ((won > 0) & (won.T > 0)).triu(1).nonzero().tolist()


def _either_by_loop(won):
    pairs = combinations(range(len(won)), 2)
    return [(a, b) for a, b in pairs if won[a, b] > 0 and won[b, a] > 0]


def _either_twice(won):
    """Each pair is there twice, as (a, b) and as (b, a): keep those with a < b."""
    return ((won > 0) & (won.T > 0)).nonzero().tolist()


def _either_of_them(won):
    """In such a pair each of the two must win somewhere: that is `and`, not `or`."""
    return ((won > 0) | (won.T > 0)).triu(1).nonzero().tolist()


def _either_at_par(won):
    """That asks for equal numbers of wins. One win on each side is enough for two headlines."""
    return ((won == won.T) & (won > 0)).triu(1).nonzero().tolist()


def _either_not_all(won):
    """A cell that a does not win is not yet won by b: it may be open. Look at what b wins,
    won[b, a]."""
    return ((won > 0) & (won < won.max())).triu(1).nonzero().tolist()


# 10.4: many comparisons at once
def holm(z, level):
    """Which of n comparisons survive Holm's rule, bool [n], from differences in units of their
    errors, z [n]."""
    p = torch.erfc(z.abs() / math.sqrt(2))
    order = p.argsort()
    passed = p[order] <= level / torch.arange(len(z), 0, -1)
    kept = torch.zeros(len(z), dtype=torch.bool)
    kept[order] = passed.cumprod(0).bool()
    return kept


def _holm_step_by_step(z, level):
    p, kept = torch.erfc(z.abs() / math.sqrt(2)), torch.zeros(len(z), dtype=torch.bool)
    for done, place in enumerate(p.argsort()):
        if p[place] > level / (len(p) - done):
            break
        kept[place] = True
    return kept


def _uncorrected(z, level):
    """That is the level of one test: among so many comparisons some pass by chance."""
    return torch.erfc(z.abs() / math.sqrt(2)) <= level


def _bonferroni(z, level):
    """That is Bonferroni, all p against level / n. Holm gains by dividing by the number that is
    still left."""
    return torch.erfc(z.abs() / math.sqrt(2)) <= level / len(z)


def _one_sided(z, level):
    """Either method may be the better one: count both tails, p = erfc(|z| / sqrt(2))."""
    halved = torch.erfc(z / math.sqrt(2)).clamp(1e-7, 1.9) / 4
    return holm(torch.special.ndtri(1 - halved), level)


def _without_stopping(z, level):
    """Stop at the first that fails: nothing with a larger p may pass after it."""
    p = torch.erfc(z.abs() / math.sqrt(2))
    kept = torch.zeros(len(z), dtype=torch.bool)
    order = p.argsort()
    kept[order] = p[order] <= level / torch.arange(len(z), 0, -1)
    return kept


def _in_sorted_order(z, level):
    """The answers stand in the order of the sorted p-values: put them back into the order of z,
    kept[order] = passed."""
    return holm(z, level)[z.abs().argsort(descending=True)]


# 10.5: several draws of the calibration windows
def over_draws(gaps, errors):
    """The mean of a gap over draws [S], and its error from draws and windows; errors: those that
    each gap has from the windows [S]."""
    between = gaps.std() / math.sqrt(len(gaps))
    return gaps.mean(), (between**2 + errors.mean() ** 2).sqrt()


def _draws_by_hand(gaps, errors):
    mean = gaps.mean().item()
    variance = sum((gap.item() - mean) ** 2 for gap in gaps) / (len(gaps) - 1)
    return mean, math.hypot(math.sqrt(variance / len(gaps)), errors.mean().item())


def _draws_alone(gaps, errors):
    """The windows are missing. All draws are judged by the same windows, so other windows could
    move all gaps together, and the draws do not show that."""
    return gaps.mean(), gaps.std() / math.sqrt(len(gaps))


def _windows_alone(gaps, errors):
    """The draws are missing: add the error of the mean over draws, by the root of the sum of
    squares."""
    return gaps.mean(), errors.mean()


def _windows_shrunk(gaps, errors):
    """More draws do not bring more windows: the error from the windows is the same for all draws,
    and the mean does not shrink it. Divide only the scatter of the draws by the root of S."""
    between = gaps.std() / math.sqrt(len(gaps))
    return gaps.mean(), (between**2 + errors.mean() ** 2 / len(gaps)).sqrt()


def _spread_of_draws(gaps, errors):
    """That is how much single draws scatter. The error of their mean is smaller by the root of
    S."""
    return gaps.mean(), (gaps.var() + errors.mean() ** 2).sqrt()


def _errors_added(gaps, errors):
    """Draws and windows have nothing to do with each other, so their errors are independent: take
    the root of the sum of squares, not the sum."""
    return gaps.mean(), gaps.std() / math.sqrt(len(gaps)) + errors.mean()


def _divided_by_draws(gaps, errors):
    """The mean is estimated from the same few draws: divide by S - 1 inside the standard deviation,
    as std() does by default."""
    between = gaps.std(correction=0) / math.sqrt(len(gaps))
    return gaps.mean(), (between**2 + errors.mean() ** 2).sqrt()


# 10.6: the best of k
def best_of(results, k):
    """The expected lowest of k different results, drawn at random from a list."""
    total, n = 0, len(results)
    for place, value in enumerate(sorted(results)):
        total += value * math.comb(n - place - 1, k - 1)  # the others are higher ones
    return total / math.comb(n, k)


def _by_listing(results, k):
    lowest = [min(chosen) for chosen in combinations(results, k)]
    return sum(lowest) / len(lowest)


def _with_replacement(results, k):
    """Drawn with replacement the same result may come twice: these are k different ones."""
    total, n = 0, len(results)
    for place, value in enumerate(sorted(results)):
        total += value * (((n - place) / n) ** k - ((n - place - 1) / n) ** k)
    return total


def _highest(results, k):
    """Lower is better for a perplexity: that is the expected worst."""
    return -best_of([-value for value in results], k)


def _best_of_all(results, k):
    """That is the best of all: who tries k of them does not always hit it."""
    return min(results)


def _mean(results, k):
    """That is what an honest report shows, the mean. The best of k is lower."""
    return sum(results) / len(results)


# 10.7: the sparsity of a model of which some blocks were left out
def model_sparsity(sizes, pruned):
    """The share of zeros in a model: the weights of every block, and {block: its sparsity}."""
    return sum(sizes[block] * sparsity for block, sparsity in pruned.items()) / sum(sizes)


def _label(sizes, pruned):
    """That is the label of the table: it forgets the blocks that were not touched, whose weights
    are all there."""
    return sum(pruned.values()) / len(pruned)


def _of_the_pruned(sizes, pruned):
    """Weighted well, but over the pruned blocks only: divide by the weights of the whole model."""
    return model_sparsity(sizes, pruned) * sum(sizes) / sum(sizes[block] for block in pruned)


def _unweighted(sizes, pruned):
    """Blocks of different size count by their weights: sum the zeros, then divide."""
    return sum(pruned.values()) / len(sizes)


ROWS = (
    (0.210, 0.008, 0.067, 0.003),
    (0.05, 0.01, 0.03, 0.02),
    (
        torch.tensor([0.3, 0.1]),
        torch.tensor([0.02, 0.03]),
        *torch.tensor([[0.5, 0.1], [0.01, 0.02]]),
    ),
)


def _methods(seed: int, methods: int, cells: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Excess losses and errors: some gaps are clear, some lie between one error and two."""
    excess = 0.2 + 0.03 * normal(methods, cells, seed=seed)
    excess += 0.04 * torch.arange(methods)[:, None]
    return excess, 0.008 + 0.004 * normal(methods, cells, seed=seed + 1).abs()


WON = (
    torch.tensor([[0, 3, 0, 5], [1, 0, 2, 0], [0, 2, 0, 0], [0, 4, 6, 0]]),
    torch.tensor([[0, 2, 1], [2, 0, 0], [4, 7, 0]]),
)
Z = torch.tensor([0.3, -2.1, 4.0, 2.45, -2.6, 1.2, 2.75])
CLOSE = torch.tensor([2.2, 2.0, -1.97, 3.1])
LATE = torch.tensor([2.6, 2.1, -2.2, 2.3, 2.0, 2.05])
DRAWS = (
    (torch.tensor([0.10, 0.12, 0.17]), torch.tensor([0.02, 0.03, 0.02])),
    (torch.tensor([-0.024, -0.010, -0.031, -0.020]), torch.tensor([0.004, 0.003, 0.005, 0.006])),
)
RUNS = [87.9, 86.1, 89.4, 90.2, 87.0, 88.8]
MODELS = (
    ([10, 10, 10, 10], {0: 0.7, 1: 0.7}),
    ([30, 10, 10, 20], {0: 0.7, 1: 0.8}),
    ([8, 4, 4], {2: 0.5}),
)
EXERCISES = {
    "10.1": Exercise(
        gap_of_rows,
        ROWS,
        mistakes(
            _gap_if_independent, _errors_subtracted, _error_of_first, _gap_turned, _two_errors
        ),
        kind="warm-up",
        minutes=3,
        quiet=True,
    ),
    "10.2": Exercise(
        cells_won,
        (_methods(0, 4, 9), _methods(5, 3, 6)),
        mistakes(
            _won_by_larger, _won_by_one_error, _won_without_error, _won_by_either, _won_by_mean
        ),
        right=(_won_by_loop,),
        minutes=6,
        draw="cells in which the row is ahead of the column",
        quiet=True,
    ),
    "10.3": Exercise(
        either_winner,
        tuple((won,) for won in WON),
        mistakes(_either_twice, _either_of_them, _either_at_par, _either_not_all),
        right=(_either_by_loop,),
        minutes=4,
        quiet=True,
    ),
    "10.4": Exercise(
        holm,
        ((Z, 0.05), (CLOSE, 0.05), (LATE, 0.05), (Z, 0.2)),
        mistakes(_uncorrected, _bonferroni, _one_sided, _without_stopping, _in_sorted_order),
        right=(_holm_step_by_step,),
        minutes=8,
        quiet=True,
    ),
    "10.5": Exercise(
        over_draws,
        DRAWS,
        mistakes(
            _draws_alone,
            _windows_alone,
            _windows_shrunk,
            _spread_of_draws,
            _errors_added,
            _divided_by_draws,
        ),
        right=(_draws_by_hand,),
        minutes=5,
        quiet=True,
    ),
    "10.6": Exercise(
        best_of,
        ((RUNS, 1), (RUNS, 2), (RUNS, 4), ([3.0, 1.0, 2.0], 2)),
        mistakes(_best_of_all, _mean, _with_replacement, _highest),
        right=(_by_listing,),
        kind="stretch",
        minutes=8,
        quiet=True,
    ),
    "10.7": Exercise(
        model_sparsity,
        MODELS,
        mistakes(_label, _of_the_pruned, _unweighted),
        kind="find-the-bug",
        minutes=4,
        quiet=True,
    ),
}
