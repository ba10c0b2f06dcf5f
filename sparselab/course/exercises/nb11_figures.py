"""The exercises of notebook 11."""

import math

import torch

from .checking import Exercise


# 11.1 which weights stay
def _kept_by_size(dense, pruned, groups):
    order = dense.abs().flatten().argsort()
    return (pruned != 0).flatten()[order].float().view(groups, -1).mean(1)


def _kept_in_order(order, pruned, groups):
    return (pruned != 0).flatten()[order.flatten().argsort()].float().view(groups, -1).mean(1)


# 11.2 may two numbers be compared
KEYS = ("model", "dataset", "seqlen", "layers", "windows")
THEIRS = {
    "model": "opt-125m",
    "dataset": "wikitext2",
    "seqlen": 2048,
    "layers": "first half",
    "windows": 140,
}


def _differences(ours, theirs):
    return [key for key in KEYS if ours.get(key) is None or ours.get(key) != theirs.get(key)]


# 11.3 which epoch to keep
def _epoch_to_keep(epochs):
    return min(range(len(epochs)), key=lambda k: epochs[k]["error"])


def _loop(*pairs):
    return [{"objective": objective, "error": error} for objective, error in pairs]


# 11.4 a straight line between two logarithms
def _line(points):
    u, v = (torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True))
    slope = (((u - u.mean()) * (v - v.mean())).sum() / ((u - u.mean()) ** 2).sum()).item()
    return (v.mean() - slope * u.mean()).item(), slope


def _power_law(parameters, losses):
    height, slope = _line(
        [(math.log(p), math.log(x)) for p, x in zip(parameters, losses, strict=True) if x > 0]
    )
    return math.exp(height), -slope


def _without_exp(parameters, losses):
    return math.log(_power_law(parameters, losses)[0]), _power_law(parameters, losses)[1]


def _clamped(parameters, losses):
    height, slope = _line(
        [(math.log(p), math.log(max(x, 1e-3))) for p, x in zip(parameters, losses, strict=True)]
    )
    return math.exp(height), -slope


def _exponential(parameters, losses):
    height, slope = _line(
        [(p, math.log(x)) for p, x in zip(parameters, losses, strict=True) if x > 0]
    )
    return math.exp(height), -slope


def _end_points(parameters, losses):
    (p, x), *_, (q, y) = [point for point in zip(parameters, losses, strict=True) if point[1] > 0]
    slope = math.log(y / x) / math.log(q / p)
    return x / p**slope, -slope


def _steady(*shape, seed=11):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DENSE, MASK = _steady(4, 10), _steady(4, 10, seed=12) > 0
OTHER = _steady(6, 8, seed=13)
EXERCISES = {
    "11.1": Exercise(
        _kept_by_size,
        (
            (DENSE, DENSE * MASK * 3 - MASK * _steady(4, 10, seed=14), 4),
            (OTHER, OTHER * (OTHER.abs() > 0.6), 6),
        ),
        {
            "the groups go by the size in the dense matrix: a repaired weight has another size, "
            "and a pruned one none": lambda dense, pruned, groups: _kept_in_order(
                pruned.abs(), pruned, groups
            ),
            "size is the absolute value: large negative weights are large": (
                lambda dense, pruned, groups: _kept_in_order(dense, pruned, groups)
            ),
            "from the smallest to the largest: that is the other way round": (
                lambda dense, pruned, groups: _kept_by_size(dense, pruned, groups).flip(0)
            ),
            "that is the share of zeros: kept is the rest": (
                lambda dense, pruned, groups: 1 - _kept_by_size(dense, pruned, groups)
            ),
            "shares, not numbers of weights: divide by the size of a group": (
                lambda dense, pruned, groups: (
                    _kept_by_size(dense, pruned, groups) * (dense.numel() // groups)
                )
            ),
        },
        right=(
            lambda dense, pruned, groups: torch.stack(
                [
                    part.float().mean()
                    for part in (pruned.flatten()[dense.abs().flatten().sort().indices] != 0).chunk(
                        groups
                    )
                ]
            ),
        ),
        kind="warm-up",
        minutes=5,
    ),
    "11.2": Exercise(
        _differences,
        (
            ({**THEIRS}, THEIRS),
            ({**THEIRS, "layers": "all", "seqlen": 4096}, THEIRS),
            ({**THEIRS, "windows": None}, THEIRS),
            ({"model": "opt-125m", "dataset": "c4", "seqlen": 2048}, THEIRS),
            ({**THEIRS, "windows": None}, {**THEIRS, "windows": None}),
        ),
        {
            "a key that one of them does not know is a difference: what is not said is not the "
            "same": lambda ours, theirs: [
                key
                for key in KEYS
                if key in ours and ours[key] is not None and ours[key] != theirs.get(key)
            ],
            "two rows that both do not say it are not the same for that": lambda ours, theirs: [
                key for key in KEYS if ours.get(key) != theirs.get(key)
            ],
            "those are the keys that agree": lambda ours, theirs: [
                key
                for key in KEYS
                if ours.get(key) is not None and ours.get(key) == theirs.get(key)
            ],
            "the layers count too: half of them pruned is another model": lambda ours, theirs: [
                key for key in _differences(ours, theirs) if key != "layers"
            ],
            "all differences are asked for, not the first": lambda ours, theirs: _differences(
                ours, theirs
            )[:1],
        },
        right=(
            lambda ours, theirs: [
                key
                for key in KEYS
                if not (key in ours and ours[key] == theirs.get(key) is not None)
            ],
        ),
        kind="core",
        minutes=6,
    ),
    "11.3": Exercise(
        _epoch_to_keep,
        (
            (_loop((5, 0.4), (3, 0.3), (2, 0.35), (1, 0.5)),),
            (_loop((5, 0.4), (3, 0.5), (4, 0.6)),),
            (_loop((5, 0.4), (6, 0.2), (1, 0.2), (2, 0.3)),),
            (_loop((1, 0.3), (2, 0.2)),),
        ),
        {
            "that is the bug: the last epoch need not be the best": lambda epochs: len(epochs) - 1,
            "the objective is about the auxiliary variables too, which the model does not have: "
            "go by the error": lambda epochs: min(
                range(len(epochs)), key=lambda k: epochs[k]["objective"]
            ),
            "that is the lowest error itself: its epoch is asked for": lambda epochs: min(
                row["error"] for row in epochs
            ),
            "the lowest error, not the highest": lambda epochs: max(
                range(len(epochs)), key=lambda k: epochs[k]["error"]
            ),
            "of two equal ones the first: it costs less": lambda epochs: min(
                reversed(range(len(epochs))), key=lambda k: epochs[k]["error"]
            ),
        },
        right=(
            lambda epochs: [row["error"] for row in epochs].index(
                min(row["error"] for row in epochs)
            ),
        ),
        kind="find-the-bug",
        minutes=6,
    ),
    "11.4": Exercise(
        _power_law,
        (
            ([1.0, 2.0, 4.0, 9.0], [1.0, 0.6, 0.2, 0.1]),
            ([1.3, 2.7, 6.7, 66.0, 175.0], [0.18, 0.08, 0.06, -0.002, 0.01]),
        ),
        {
            "c, not its logarithm: take the exponential": _without_exp,
            "b is the exponent with the minus sign already in the formula: turn the slope round": (
                lambda parameters, losses: (
                    _power_law(parameters, losses)[0],
                    -_power_law(parameters, losses)[1],
                )
            ),
            "a loss of zero or less has no logarithm: leave the point out, do not replace it": (
                _clamped
            ),
            "that is an exponential in P: take the logarithm of the parameters too": _exponential,
            "two points make a line, but all of them are to count: least squares": _end_points,
        },
        right=(lambda parameters, losses: tuple(_power_law(parameters, losses)),),
        kind="stretch",
        minutes=10,
    ),
}
