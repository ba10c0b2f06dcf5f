"""The exercises of notebook 10."""

import math
from itertools import combinations

import torch

from .checking import Exercise, mistakes


# 10.1 the excess as a share of another method's
def _share(dense, base, perplexity):
    return math.log(perplexity / dense) / math.log(base / dense)


def _share_of_losses(dense, base, perplexity):
    excess = math.log(perplexity) - math.log(dense)
    return excess / (math.log(base) - math.log(dense))


def _ratio(dense, base, perplexity):
    """that is a ratio of perplexities: subtract the dense model's loss first, log(ppl / dense),
    from both"""
    return perplexity / base


def _difference_of_perplexities(dense, base, perplexity):
    """a difference of perplexities is not a loss: take the logarithms, which add up over tokens"""
    return (perplexity - dense) / (base - dense)


def _dense_forgotten(dense, base, perplexity):
    """that forgets the dense model: log(ppl) / log(base) is near 1 for any two models"""
    return math.log(perplexity) / math.log(base)


def _upside_down(dense, base, perplexity):
    """upside down: the base is what one divides by"""
    return 1 / _share(dense, base, perplexity)


# 10.2 what a table with two errors allows to say
def _duel(a, error_a, b, error_b):  # excess losses and their errors -> "a", "b" or "open"
    return _lower(a, b, 2 * (error_a + error_b))


def _lower(a, b, margin):
    if abs(a - b) <= margin:
        return "open"
    return "a" if a < b else "b"


def _independent(a, error_a, b, error_b):
    """the root of the sum of squares holds for independent errors; nobody said that these are. The
    sum always holds"""
    return _lower(a, b, 2 * math.hypot(error_a, error_b))


def _touching(a, error_a, b, error_b):
    """bars of one standard error that do not touch are not enough: two standard errors were asked
    for"""
    return _lower(a, b, error_a + error_b)


def _larger_error(a, error_a, b, error_b):
    """both numbers have an error, not only the worse one"""
    return _lower(a, b, 2 * max(error_a, error_b))


def _largest_wins(a, error_a, b, error_b):
    """an excess loss is a loss: the lower one wins"""
    return _duel(-a, error_a, -b, error_b)


def _without_errors(a, error_a, b, error_b):
    """a difference without its error is not a result: ask first whether it could be chance"""
    return "a" if a < b else "b"


# 10.3 the sparsity of a model of which some blocks were left out
def _of_model(sizes, pruned):  # weights of every block; {block: its sparsity}
    return sum(sizes[block] * sparsity for block, sparsity in pruned.items()) / sum(sizes)


def _label(sizes, pruned):
    """that is the label of the table: it forgets the blocks that were not touched, whose weights
    are all there"""
    return sum(pruned.values()) / len(pruned)


def _of_the_pruned(sizes, pruned):
    """weighted well, but over the pruned blocks only: divide by the weights of the whole model"""
    return _of_model(sizes, pruned) * sum(sizes) / sum(sizes[block] for block in pruned)


def _unweighted(sizes, pruned):
    """blocks of different size count by their weights: sum the zeros, then divide"""
    return sum(pruned.values()) / len(sizes)


# 10.4 the best of k
def _best_of(results, k):  # expected lowest of k different ones, drawn at random
    total, n = 0, len(results)
    for place, value in enumerate(sorted(results)):
        total += value * math.comb(n - place - 1, k - 1)  # the others are higher ones
    return total / math.comb(n, k)


def _by_listing(results, k):
    lowest = [min(chosen) for chosen in combinations(results, k)]
    return sum(lowest) / len(lowest)


def _with_replacement(results, k):
    """drawn with replacement the same result may come twice: these are k different ones"""
    total, n = 0, len(results)
    for place, value in enumerate(sorted(results)):
        total += value * (((n - place) / n) ** k - ((n - place - 1) / n) ** k)
    return total


def _highest(results, k):
    """lower is better for a perplexity: that is the expected worst"""
    return -_best_of([-value for value in results], k)


def _best_of_all(results, k):
    """that is the best of all: who tries k of them does not always hit it"""
    return min(results)


def _mean(results, k):
    """that is what an honest report shows, the mean; the best of k is lower"""
    return sum(results) / len(results)


# 10.5 many comparisons at once
def _survivors(z, level):  # [n] -> bool [n], Holm's step-down rule
    p = torch.erfc(z.abs() / math.sqrt(2))
    order = p.argsort()
    passed = p[order] <= level / torch.arange(len(z), 0, -1)
    kept = torch.zeros(len(z), dtype=torch.bool)
    kept[order] = passed.cumprod(0).bool()
    return kept


def _step_by_step(z, level):
    p, kept = torch.erfc(z.abs() / math.sqrt(2)), torch.zeros(len(z), dtype=torch.bool)
    for done, place in enumerate(p.argsort()):
        if p[place] > level / (len(p) - done):
            break
        kept[place] = True
    return kept


def _uncorrected(z, level):
    """that is the level of one test: among so many comparisons some pass by chance"""
    return torch.erfc(z.abs() / math.sqrt(2)) <= level


def _bonferroni(z, level):
    """that is Bonferroni, all p against level / n: Holm gains by dividing by the number that is
    still left"""
    return torch.erfc(z.abs() / math.sqrt(2)) <= level / len(z)


def _one_sided(z, level):
    """either method may be the better one: count both tails, p = erfc(|z| / sqrt(2))"""
    halved = torch.erfc(z / math.sqrt(2)).clamp(1e-7, 1.9) / 4
    return _survivors(torch.special.ndtri(1 - halved), level)


def _without_stopping(z, level):
    """stop at the first that fails: nothing with a larger p may pass after it"""
    p = torch.erfc(z.abs() / math.sqrt(2))
    kept = torch.zeros(len(z), dtype=torch.bool)
    order = p.argsort()
    kept[order] = p[order] <= level / torch.arange(len(z), 0, -1)
    return kept


DUELS = (
    (0.210, 0.008, 0.067, 0.003),
    (0.10, 0.02, 0.05, 0.01),
    (0.50, 0.02, 0.57, 0.02),
    (0.05, 0.01, 0.03, 0.02),
    (0.30, 0.02, 0.355, 0.01),
    (0.30, 0.02, 0.335, 0.01),
    (0.30, 0.02, 0.342, 0.01),
)
MODELS = (
    ([10, 10, 10, 10], {0: 0.7, 1: 0.7}),
    ([30, 10, 10, 20], {0: 0.7, 1: 0.8}),
    ([8, 4, 4], {2: 0.5}),
)
RUNS = [87.9, 86.1, 89.4, 90.2, 87.0, 88.8]
Z = torch.tensor([0.3, -2.1, 4.0, 2.45, -2.6, 1.2, 2.75])
CLOSE = torch.tensor([2.2, 2.0, -1.97, 3.1])
LATE = torch.tensor([2.6, 2.1, -2.2, 2.3, 2.0, 2.05])
EXERCISES = {
    "10.1": Exercise(
        _share,
        ((78.0, 87.1, 82.2), (40.0, 49.3, 70.4), (206.0, 227.4, 200.0)),
        mistakes(_ratio, _difference_of_perplexities, _dense_forgotten, _upside_down),
        right=(_share_of_losses,),
        kind="warm-up",
        minutes=3,
    ),
    "10.2": Exercise(
        _duel,
        DUELS,
        mistakes(_independent, _touching, _larger_error, _largest_wins, _without_errors),
        minutes=5,
    ),
    "10.3": Exercise(
        _of_model,
        MODELS,
        mistakes(_label, _of_the_pruned, _unweighted),
        kind="find-the-bug",
        minutes=5,
    ),
    "10.4": Exercise(
        _best_of,
        ((RUNS, 1), (RUNS, 2), (RUNS, 4), ([3.0, 1.0, 2.0], 2)),
        mistakes(_best_of_all, _mean, _with_replacement, _highest),
        right=(_by_listing,),
        minutes=8,
    ),
    "10.5": Exercise(
        _survivors,
        ((Z, 0.05), (CLOSE, 0.05), (LATE, 0.05), (Z, 0.2)),
        mistakes(_uncorrected, _bonferroni, _one_sided, _without_stopping),
        right=(_step_by_step,),
        kind="stretch",
        minutes=12,
    ),
}
