"""The exercises of notebook 09."""

import math
from itertools import combinations

import torch

from .checking import Exercise


# 09.1 the excess as a share of another method's
def _share(dense, base, perplexity):
    return math.log(perplexity / dense) / math.log(base / dense)


# 09.2 what a table with two errors allows to say
def _duel(a, error_a, b, error_b):  # excess losses and their errors -> "a", "b" or "open"
    if abs(a - b) <= 2 * (error_a + error_b):
        return "open"
    return "a" if a < b else "b"


def _independent(a, error_a, b, error_b):
    return "open" if abs(a - b) <= 2 * math.hypot(error_a, error_b) else "a" if a < b else "b"


def _touching(a, error_a, b, error_b):
    return "open" if abs(a - b) <= error_a + error_b else "a" if a < b else "b"


def _larger_error(a, error_a, b, error_b):
    return "open" if abs(a - b) <= 2 * max(error_a, error_b) else "a" if a < b else "b"


def _largest_wins(a, error_a, b, error_b):
    return {"a": "b", "b": "a", "open": "open"}[_duel(a, error_a, b, error_b)]


# 09.3 the sparsity of a model of which some blocks were left out
def _of_model(sizes, pruned):  # weights of every block; {block: its sparsity}
    return sum(sizes[block] * sparsity for block, sparsity in pruned.items()) / sum(sizes)


def _label(sizes, pruned):
    return sum(pruned.values()) / len(pruned)


def _of_the_pruned(sizes, pruned):
    return sum(sizes[block] * sparsity for block, sparsity in pruned.items()) / sum(
        sizes[block] for block in pruned
    )


def _unweighted(sizes, pruned):
    return sum(pruned.values()) / len(sizes)


# 09.4 the best of k
def _best_of(results, k):  # expected lowest of k different ones, drawn at random
    results, n = sorted(results), len(results)
    return sum(
        value * math.comb(n - place - 1, k - 1) for place, value in enumerate(results)
    ) / math.comb(n, k)


def _by_listing(results, k):
    lowest = [min(chosen) for chosen in combinations(results, k)]
    return sum(lowest) / len(lowest)


def _with_replacement(results, k):
    results, n = sorted(results), len(results)
    return sum(
        value * (((n - place) / n) ** k - ((n - place - 1) / n) ** k)
        for place, value in enumerate(results)
    )


def _highest(results, k):
    return -_best_of([-value for value in results], k)


# 09.5 many comparisons at once
def _survivors(z, level):  # [n] -> bool [n], Holm's step-down rule
    p = torch.erfc(z.abs() / math.sqrt(2))
    order = p.argsort()
    passed = p[order] <= level / torch.arange(len(z), 0, -1)
    kept = torch.zeros(len(z), dtype=torch.bool)
    kept[order] = passed.cumprod(0).bool()
    return kept


def _step_by_step(z, level):
    p = [math.erfc(abs(value) / math.sqrt(2)) for value in z.tolist()]
    kept = [False] * len(p)
    for left, place in zip(
        range(len(p), 0, -1), sorted(range(len(p)), key=p.__getitem__), strict=True
    ):
        if p[place] > level / left:
            break
        kept[place] = True
    return torch.tensor(kept)


def _uncorrected(z, level):
    return torch.erfc(z.abs() / math.sqrt(2)) <= level


def _bonferroni(z, level):
    return torch.erfc(z.abs() / math.sqrt(2)) <= level / len(z)


def _one_sided(z, level):
    return _survivors(
        torch.special.ndtri(1 - torch.erfc(z / math.sqrt(2)).clamp(1e-7, 1.9) / 4), level
    )


def _without_stopping(z, level):
    p = torch.erfc(z.abs() / math.sqrt(2))
    kept = torch.zeros(len(z), dtype=torch.bool)
    order = p.argsort()
    kept[order] = p[order] <= level / torch.arange(len(z), 0, -1)
    return kept


RUNS = [87.9, 86.1, 89.4, 90.2, 87.0, 88.8]
Z = torch.tensor([0.3, -2.1, 4.0, 2.45, -2.6, 1.2, 2.75])
CLOSE = torch.tensor([2.2, 2.0, -1.97, 3.1])
LATE = torch.tensor([2.6, 2.1, -2.2, 2.3, 2.0, 2.05])
EXERCISES = {
    "09.1": Exercise(
        _share,
        ((78.0, 87.1, 82.2), (40.0, 49.3, 70.4), (206.0, 227.4, 200.0)),
        {
            "that is a ratio of perplexities: subtract the dense model's loss first, log(ppl / "
            "dense), from both": (lambda dense, base, perplexity: perplexity / base),
            "a difference of perplexities is not a loss: take the logarithms, which add up over "
            "tokens": (lambda dense, base, perplexity: (perplexity - dense) / (base - dense)),
            "that forgets the dense model: log(ppl) / log(base) is near 1 for any two models": (
                lambda dense, base, perplexity: math.log(perplexity) / math.log(base)
            ),
            "upside down: the base is what one divides by": (
                lambda dense, base, perplexity: 1 / _share(dense, base, perplexity)
            ),
        },
        right=(
            lambda dense, base, perplexity: (
                (math.log(perplexity) - math.log(dense)) / (math.log(base) - math.log(dense))
            ),
        ),
        kind="warm-up",
        minutes=3,
    ),
    "09.2": Exercise(
        _duel,
        (
            (0.210, 0.008, 0.067, 0.003),
            (0.10, 0.02, 0.05, 0.01),
            (0.50, 0.02, 0.57, 0.02),
            (0.05, 0.01, 0.03, 0.02),
            (0.30, 0.02, 0.355, 0.01),
            (0.30, 0.02, 0.335, 0.01),
            (0.30, 0.02, 0.342, 0.01),
        ),
        {
            "the root of the sum of squares holds for independent errors; nobody said that "
            "these are. The sum always holds": (_independent),
            "bars of one standard error that do not touch are not enough: two standard errors "
            "were asked for": (_touching),
            "both numbers have an error, not only the worse one": _larger_error,
            "an excess loss is a loss: the lower one wins": _largest_wins,
            "a difference without its error is not a result: ask first whether it could be "
            "chance": lambda a, error_a, b, error_b: "a" if a < b else "b",
        },
        kind="core",
        minutes=5,
    ),
    "09.3": Exercise(
        _of_model,
        (
            ([10, 10, 10, 10], {0: 0.7, 1: 0.7}),
            ([30, 10, 10, 20], {0: 0.7, 1: 0.8}),
            ([8, 4, 4], {2: 0.5}),
        ),
        {
            "that is the label of the table: it forgets the blocks that were not touched, whose "
            "weights are all there": (_label),
            "weighted well, but over the pruned blocks only: divide by the weights of the whole "
            "model": (_of_the_pruned),
            "blocks of different size count by their weights: sum the zeros, then divide": (
                _unweighted
            ),
        },
        kind="find-the-bug",
        minutes=5,
    ),
    "09.4": Exercise(
        _best_of,
        ((RUNS, 1), (RUNS, 2), (RUNS, 4), ([3.0, 1.0, 2.0], 2)),
        {
            "that is the best of all: who tries k of them does not always hit it": (
                lambda results, k: min(results)
            ),
            "that is what an honest report shows, the mean; the best of k is lower": (
                lambda results, k: sum(results) / len(results)
            ),
            "drawn with replacement the same result may come twice: these are k different ones": (
                _with_replacement
            ),
            "lower is better for a perplexity: that is the expected worst": _highest,
        },
        right=(_by_listing,),
        kind="core",
        minutes=8,
    ),
    "09.5": Exercise(
        _survivors,
        ((Z, 0.05), (CLOSE, 0.05), (LATE, 0.05), (Z, 0.2)),
        {
            "that is the level of one test: among so many comparisons some pass by chance": (
                _uncorrected
            ),
            "that is Bonferroni, all p against level / n: Holm gains by dividing by the number "
            "that is still left": (_bonferroni),
            "either method may be the better one: count both tails, p = erfc(|z| / sqrt(2))": (
                _one_sided
            ),
            "stop at the first that fails: nothing with a larger p may pass after it": (
                _without_stopping
            ),
        },
        right=(_step_by_step,),
        kind="stretch",
        minutes=12,
    ),
}
