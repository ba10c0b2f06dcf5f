"""The exercises of notebook 12."""

import math

import torch
from matplotlib.figure import Figure

from ... import viz
from .checking import Exercise, mistakes, normal
from .nb11_evaluation import drawn


# 12.2 which weights stay
def kept_by_size(dense, pruned, groups):
    """The share of kept weights in groups of equal number, by their size in the dense matrix."""
    return _kept_in_order(dense.abs(), pruned, groups)


def _kept_in_order(keys, pruned, groups):
    kept = (pruned != 0).flatten()[keys.flatten().argsort()]
    return kept.float().view(groups, -1).mean(1)


def _kept_by_chunks(dense, pruned, groups):
    order = dense.abs().flatten().sort().indices
    return torch.stack(
        [part.float().mean() for part in (pruned.flatten()[order] != 0).chunk(groups)]
    )


def _by_pruned_size(dense, pruned, groups):
    """the groups go by the size in the dense matrix: a repaired weight has another size, and a
    pruned one none"""
    return _kept_in_order(pruned.abs(), pruned, groups)


def _by_signed_size(dense, pruned, groups):
    """size is the absolute value: large negative weights are large"""
    return _kept_in_order(dense, pruned, groups)


def _largest_first(dense, pruned, groups):
    """from the smallest to the largest: that is the other way round"""
    return kept_by_size(dense, pruned, groups).flip(0)


def _share_of_zeros(dense, pruned, groups):
    """that is the share of zeros: kept is the rest"""
    return 1 - kept_by_size(dense, pruned, groups)


def _not_divided(dense, pruned, groups):
    """shares, not numbers of weights: divide by the size of a group"""
    return kept_by_size(dense, pruned, groups) * (dense.numel() // groups)


# 12.4 may two numbers be compared
KEYS = ("model", "dataset", "seqlen", "layers", "windows")
THEIRS = dict(zip(KEYS, ("opt-125m", "wikitext2", 2048, "first half", 140), strict=True))


def differences(ours, theirs):
    """The keys of two rows' protocols that differ, or that one of the two does not say."""
    return _keys(ours, theirs, lambda a, b: a is None or a != b)


def _keys(ours, theirs, differ):
    """The keys whose two values differ, by some rule."""
    return [key for key in KEYS if differ(ours.get(key), theirs.get(key))]


def _not_known_equal(ours, theirs):
    return _keys(ours, theirs, lambda a, b: not (a == b is not None))


def _known_to_both(ours, theirs):
    """a key that one of them does not know is a difference: what is not said is not the same"""
    return _keys(ours, theirs, lambda a, b: a is not None and a != b)


def _unsaid_is_same(ours, theirs):
    """two rows that both do not say it are not the same for that"""
    return _keys(ours, theirs, lambda a, b: a != b)


def _that_agree(ours, theirs):
    """those are the keys that agree"""
    return _keys(ours, theirs, lambda a, b: a is not None and a == b)


def _without_layers(ours, theirs):
    """the layers count too: half of them pruned is another model"""
    return [key for key in differences(ours, theirs) if key != "layers"]


def _first_one(ours, theirs):
    """all differences are asked for, not the first"""
    return differences(ours, theirs)[:1]


# 12.1 which epoch to keep
def epoch_to_keep(epochs):
    """The first epoch with the lowest error, of dictionaries with 'objective' and 'error'."""
    return min(range(len(epochs)), key=lambda k: epochs[k]["error"])


def _epoch_by_index(epochs):
    errors = [row["error"] for row in epochs]
    return errors.index(min(errors))


def _loop(*pairs):
    return [{"objective": objective, "error": error} for objective, error in pairs]


def _last_epoch(epochs):
    """that is the bug: the last epoch need not be the best"""
    return len(epochs) - 1


def _lowest_objective(epochs):
    """the objective is about the auxiliary variables too, which the model does not have: go by the
    error"""
    return min(range(len(epochs)), key=lambda k: epochs[k]["objective"])


def _lowest_error_itself(epochs):
    """that is the lowest error itself: its epoch is asked for"""
    return min(row["error"] for row in epochs)


def _highest_error(epochs):
    """the lowest error, not the highest"""
    return max(range(len(epochs)), key=lambda k: epochs[k]["error"])


def _last_of_equals(epochs):
    """of two equal ones the first: it costs less"""
    return min(reversed(range(len(epochs))), key=lambda k: epochs[k]["error"])


# 12.3 a straight line between two logarithms
def power_law(parameters, losses):
    """c and b of losses = c * parameters^-b, fitted to the logarithms of those above zero."""
    p, x = _positive(parameters, losses)
    height, slope = _line(p.log(), x.log())
    return math.exp(height), -slope


def _positive(parameters, losses):
    p, x = torch.tensor([parameters, losses], dtype=torch.float64)
    return p[x > 0], x[x > 0]


def _line(u, v):
    u_mean, v_mean = u.mean(), v.mean()
    slope = ((u - u_mean) * (v - v_mean)).sum() / ((u - u_mean) ** 2).sum()
    return (v_mean - slope * u_mean).item(), slope.item()


def _power_law_by_solver(parameters, losses):
    p, x = _positive(parameters, losses)
    columns = torch.stack([torch.ones_like(p), p.log()], 1)
    height, slope = torch.linalg.lstsq(columns, x.log()[:, None]).solution[:, 0].tolist()
    return math.exp(height), -slope


def _without_exp(parameters, losses):
    """c, not its logarithm: take the exponential"""
    height, slope = power_law(parameters, losses)
    return math.log(height), slope


def _clamped(parameters, losses):
    """a loss of zero or less has no logarithm: leave the point out, do not replace it"""
    return power_law(parameters, [max(loss, 1e-3) for loss in losses])


def _exponential(parameters, losses):
    """that is an exponential in P: take the logarithm of the parameters too"""
    p, x = _positive(parameters, losses)
    height, slope = _line(p, x.log())
    return math.exp(height), -slope


def _end_points(parameters, losses):
    """two points make a line, but all of them are to count: least squares"""
    p, x = _positive(parameters, losses)
    return power_law(p[[0, -1]].tolist(), x[[0, -1]].tolist())


def _slope_not_turned(parameters, losses):
    """b is the exponent with the minus sign already in the formula: turn the slope round"""
    height, slope = power_law(parameters, losses)
    return height, -slope


DENSE, MASK = normal(4, 10, seed=11), normal(4, 10, seed=12) > 0
OTHER = normal(6, 8, seed=13)


def _try_epochs(answer, epochs):
    """The epoch, and what it was chosen from, for the drawing."""
    return answer(epochs), [row["error"] for row in epochs]


def _epoch_drawn(mine: tuple, expected: tuple) -> Figure:
    """The errors by epoch; a ring where yours is, a cross where the expected one is."""
    (chosen, errors), (best, _) = mine, expected
    with viz.style():
        figure = Figure(figsize=(5, 2.4))
        axis = figure.subplots()
        axis.plot(errors, "o-", color="#999999")
        axis.plot(best, errors[best], "x", color="#0072B2", markersize=12, label="expected")
        if chosen == int(chosen) and 0 <= chosen < len(errors):
            row = int(chosen)
            look = {"color": "#D55E00", "fillstyle": "none", "markersize": 14}
            axis.plot(row, errors[row], "o", label="yours", **look)
        axis.set(xlabel="epoch", ylabel="error", xticks=range(len(errors)))
        axis.margins(y=0.25)
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _keys_drawn(mine: list, expected: list) -> Figure:
    """Which keys are in each list, as crosses in a table."""
    rows = {"yours": mine, "expected": expected}
    cells = torch.tensor([[float(key in keys) for key in KEYS] for keys in rows.values()])
    with viz.style():
        figure = Figure(figsize=(6, 1.9))
        axis = figure.subplots()
        differs = (cells[0] != cells[1]).expand_as(cells)
        look = {"rows": [*rows], "columns": [*KEYS], "digits": 0, "highlight": differs}
        viz.numbers(axis, cells, "1 = in the list of differences", **look)
    return figure


EXERCISES = {
    "12.1": Exercise(
        epoch_to_keep,
        (
            (_loop((5, 0.4), (3, 0.3), (2, 0.35), (1, 0.5)),),
            (_loop((5, 0.4), (3, 0.5), (4, 0.6)),),
            (_loop((5, 0.4), (6, 0.2), (1, 0.2), (2, 0.3)),),
            (_loop((1, 0.3), (2, 0.2)),),
        ),
        mistakes(
            _last_epoch, _lowest_objective, _lowest_error_itself, _highest_error, _last_of_equals
        ),
        right=(_epoch_by_index,),
        kind="find-the-bug",
        minutes=4,
        trial=_try_epochs,
        draw=_epoch_drawn,
        quiet=True,
    ),
    "12.2": Exercise(
        kept_by_size,
        (
            (DENSE, DENSE * MASK * 3 - MASK * normal(4, 10, seed=14), 4),
            (OTHER, OTHER * (OTHER.abs() > 0.6), 6),
        ),
        mistakes(_by_pruned_size, _by_signed_size, _largest_first, _share_of_zeros, _not_divided),
        right=(_kept_by_chunks,),
        minutes=5,
        draw="shares kept, from the smallest weights to the largest",
        quiet=True,
    ),
    "12.3": Exercise(
        power_law,
        (
            ([1.0, 2.0, 4.0, 9.0], [1.0, 0.6, 0.2, 0.1]),
            ([1.3, 2.7, 6.7, 66.0, 175.0], [0.18, 0.08, 0.06, -0.002, 0.01]),
        ),
        mistakes(_without_exp, _slope_not_turned, _clamped, _exponential, _end_points),
        right=(_power_law_by_solver,),
        kind="stretch",
        minutes=8,
        draw=drawn("a line between two logarithms", "c", "b"),
        quiet=True,
    ),
    "12.4": Exercise(
        differences,
        (
            ({**THEIRS}, THEIRS),
            ({**THEIRS, "layers": "all", "seqlen": 4096}, THEIRS),
            ({**THEIRS, "windows": None}, THEIRS),
            ({"model": "opt-125m", "dataset": "c4", "seqlen": 2048}, THEIRS),
            ({**THEIRS, "windows": None}, {**THEIRS, "windows": None}),
        ),
        mistakes(_known_to_both, _unsaid_is_same, _that_agree, _without_layers, _first_one),
        right=(_not_known_equal,),
        minutes=5,
        draw=_keys_drawn,
        quiet=True,
    ),
}
