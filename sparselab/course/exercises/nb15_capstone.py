"""The exercises of notebook 15."""

import math
import time
from collections.abc import Callable

import torch
from torch import nn

from ...models.architecture import linears_of
from .checking import Exercise, mistakes
from .nb02_local_objective import tiny_opt


# 15.1: how many zeros a model has
def share_of_zeros(model):
    """The share of exact zeros among all weights of the matrices in the blocks, 0 to 1."""
    weights = [linear.weight for linear in linears_of(model).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


def _by_one_long_row(model):
    everything = torch.cat([linear.weight.flatten() for linear in linears_of(model).values()])
    return (everything == 0).double().mean()


def _mean_of_shares(model):
    """That is the mean of the matrices' shares. A large matrix must count more than a small one:
    add up the zeros of all matrices, then divide once."""
    shares = [(linear.weight == 0).double().mean() for linear in linears_of(model).values()]
    return sum(shares) / len(shares)


def _of_all_parameters(model):
    """You counted all parameters. Embeddings, norms and biases are not pruned, and their zeros do
    not count: go through sl.linears_of(model)."""
    return _share(model.parameters())


def _with_biases(model):
    """You counted the biases of the matrices, too. Only weights are pruned."""
    linears = linears_of(model).values()
    return _share(parameter for linear in linears for parameter in linear.parameters())


def _of_all_linears(model):
    """You counted every nn.Linear, and the output head is one. It stays dense: go through
    sl.linears_of(model)."""
    return _share(module.weight for module in model.modules() if isinstance(module, nn.Linear))


def _nearly_zero(model):
    """You counted small weights as zeros. A zero is exactly 0: only then can storage and kernels
    leave it out."""
    return _share(linear.weight.abs() > 1e-6 for linear in linears_of(model).values())


def _what_is_kept(model):
    """That is the share of what is kept. Count the entries that are equal to 0."""
    return 1 - share_of_zeros(model)


def _in_percent(model):
    """That is a percentage. A share goes from 0 to 1."""
    return 100 * share_of_zeros(model)


def _share(tensors) -> float:
    counts = [(tensor.numel(), int(tensor.count_nonzero())) for tensor in tensors]
    return 1 - sum(kept for _, kept in counts) / sum(size for size, _ in counts)


def _try_share(answer: Callable, seed: int) -> float:
    """A tiny OPT whose kinds of matrices have different shares of zeros, some weights nearly zero,
    and a row of zeros in its embedding, which is its output head as well."""
    model, _ = tiny_opt(seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for place, linear in enumerate(linears_of(model).values()):
            chance = torch.rand(linear.weight.shape, generator=draw)
            linear.weight[chance < 0.1 + 0.13 * (place % 6)] = 0
            linear.weight[chance > 0.97] = 1e-9
        model.get_input_embeddings().weight[0] = 0
    return answer(model)


# 15.2: how many windows fit
def windows_within(first, second, seconds):
    """The most windows whose run is expected to take at most so many seconds, from two measured
    runs (windows, seconds), by the straight line through both; 0 where none fits."""
    each = (second[1] - first[1]) / (second[0] - first[0])
    fixed = first[1] - each * first[0]
    return max(0, math.floor((seconds - fixed) / each))


def _by_counting(first, second, seconds):
    slope, windows = (second[1] - first[1]) / (second[0] - first[0]), 0
    while first[1] + slope * (windows + 1 - first[0]) <= seconds:
        windows += 1
    return windows


def _in_proportion(first, second, seconds):
    """You took the time for proportional to the windows. Part of it is the same for any number,
    such as factorising the Hessians: draw the line through both measurements."""
    return math.floor(seconds / first[1] * first[0])


def _without_the_fixed_part(first, second, seconds):
    """You divided by the time of one window and forgot the fixed part, which is spent before the
    first."""
    return math.floor(seconds * (second[0] - first[0]) / (second[1] - first[1]))


def _one_too_many(first, second, seconds):
    """You rounded up, and the last window ends after the time is over."""
    each = (second[1] - first[1]) / (second[0] - first[0])
    return max(0, math.ceil((seconds - first[1]) / each + first[0]))


def _below_zero(first, second, seconds):
    """A number of windows cannot be negative: where not even the fixed part fits, it is 0."""
    each = (second[1] - first[1]) / (second[0] - first[0])
    return math.floor((seconds - first[1]) / each + first[0])


def _no_whole_number(first, second, seconds):
    """Half a window cannot be taken: round down to a whole number."""
    each = (second[1] - first[1]) / (second[0] - first[0])
    return max(0.0, (seconds - first[1]) / each + first[0])


# 15.3: careful until the time is short
def careful_until(careful, quick, seconds, clock=time.monotonic):
    """A plug for the block loop that prunes by `careful` for so many seconds from now on, and then
    by `quick`."""
    end = clock() + seconds

    def prune_layer(W, X):
        return careful(W, X) if clock() < end else quick(W, X)

    return prune_layer


def _careful_from_a_start(careful, quick, seconds, clock):
    start = clock()
    return lambda W, X: (careful if clock() - start < seconds else quick)(W, X)


def _started_anew(careful, quick, seconds, clock):
    """Every matrix gets `careful`. Read the clock when the plug is made, and again inside
    prune_layer for each matrix."""

    def prune_layer(W, X):
        start = clock()
        return careful(W, X) if clock() - start < seconds else quick(W, X)

    return prune_layer


def _clock_from_zero(careful, quick, seconds, clock):
    """You compared the clock itself with `seconds`. A clock does not start at 0: take the
    difference from its first reading."""
    return lambda W, X: (careful if clock() < seconds else quick)(W, X)


def _quick_first(careful, quick, seconds, clock):
    """It begins with `quick` and ends with `careful`: the other way round."""
    return careful_until(quick, careful, seconds, clock)


def _each_time_longer(careful, quick, seconds, clock):
    """The end moves on with each matrix. The time runs from the moment at which the plug is made,
    for all matrices together."""
    end = clock() + seconds

    def prune_layer(W, X):
        nonlocal end
        end += 1
        return careful(W, X) if clock() < end else quick(W, X)

    return prune_layer


def _plug_called(careful, quick, seconds, clock):
    """No plug comes back. Define a function of W and X inside, and return it: the block loop calls
    it for each matrix."""
    plug = None
    return plug


def _try_careful(answer: Callable, seconds: float, start: float) -> list[str]:
    """Which of the two pruned, matrix after matrix: a careful one takes 3 s, a quick one 1."""
    now, used = start, []

    def spend(name: str, time_taken: float) -> Callable:
        def prune_layer(W, X):
            nonlocal now
            now += time_taken
            used.append(name)
            return W

        return prune_layer

    plug = answer(spend("careful", 3), spend("quick", 1), seconds, lambda: now)
    now += 1  # the first block is read
    for _ in range(6):
        plug(torch.ones(2, 2), torch.ones(2, 3)) if callable(plug) else used.append("nothing")
    return used


EXERCISES = {
    "15.1": Exercise(
        share_of_zeros,
        ((1,), (2,)),
        mistakes(
            _mean_of_shares,
            _of_all_parameters,
            _with_biases,
            _of_all_linears,
            _nearly_zero,
            _what_is_kept,
            _in_percent,
        ),
        right=(_by_one_long_row,),
        kind="warm-up",
        minutes=3,
        trial=_try_share,
        quiet=True,
    ),
    "15.2": Exercise(
        windows_within,
        (
            ((16, 139.0), (128, 970.0), 600.0),
            ((8, 300.0), (24, 420.0), 200.0),
            ((10, 50.0), (30, 90.0), 61.0),
        ),
        mistakes(
            _in_proportion, _without_the_fixed_part, _one_too_many, _below_zero, _no_whole_number
        ),
        right=(_by_counting,),
        minutes=5,
        quiet=True,
    ),
    "15.3": Exercise(
        careful_until,
        ((7.0, 100.0), (2.0, 50.0), (40.0, 3.0)),
        mistakes(_started_anew, _clock_from_zero, _quick_first, _each_time_longer, _plug_called),
        right=(_careful_from_a_start,),
        minutes=6,
        trial=_try_careful,
        quiet=True,
    ),
}
