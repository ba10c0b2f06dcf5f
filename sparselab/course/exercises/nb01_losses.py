"""The exercises of notebook 01."""

import math

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from ... import viz
from .checking import Exercise, mistakes, normal


def _ids(length: int, seed: int) -> Tensor:
    return torch.randint(0, 7, (length,), generator=torch.Generator().manual_seed(seed))


# 01.1: the mean loss of a window
def window_loss(logits, ids):
    """The mean loss of one window, from its logits [n, V] and tokens [n]."""
    said = logits[:-1].log_softmax(-1)  # what was said at 0 ... n - 2 about 1 ... n - 1
    return -said.gather(-1, ids[1:, None]).mean()


def _by_cross_entropy(logits, ids):
    return F.cross_entropy(logits[:-1], ids[1:])


def _place_by_place(logits, ids):
    losses = [torch.logsumexp(logits[t - 1], 0) - logits[t - 1][ids[t]] for t in range(1, len(ids))]
    return sum(losses).item() / len(losses)


def _same_place(logits, ids):
    """The logits at a place speak about the next token. Shift one of the two: logits[:-1] and
    ids[1:]."""
    return -logits.log_softmax(-1).gather(-1, ids[:, None]).mean()


def _backwards(logits, ids):
    """You shifted the wrong way: the logits at place t - 1 predict the token at t, not the one
    before."""
    return -logits[1:].log_softmax(-1).gather(-1, ids[:-1, None]).mean()


def _divided_by_n(logits, ids):
    """n tokens make n - 1 predictions, because nothing predicts the first one: divide by n - 1."""
    return window_loss(logits, ids) * (len(ids) - 1) / len(ids)


def _summed(logits, ids):
    """You added the losses up: take their mean, or a long window looks worse than a short one."""
    return window_loss(logits, ids) * (len(ids) - 1)


def _unnormalised(logits, ids):
    """Logits are not log-probabilities: take log_softmax over the vocabulary first."""
    return -logits[:-1].gather(-1, ids[1:, None]).mean()


def _over_places(logits, ids):
    """Your softmax runs over the places of the window. It belongs over the vocabulary, the last
    dimension."""
    return -logits[:-1].log_softmax(0).gather(-1, ids[1:, None]).mean()


def _sign_forgotten(logits, ids):
    """The sign is missing: a loss is minus the logarithm of a probability, and never negative."""
    return -window_loss(logits, ids)


def _already_perplexity(logits, ids):
    """That is the perplexity of the window: leave the exponential out here. It comes after the mean
    over all windows."""
    return window_loss(logits, ids).exp()


# 01.2: the perplexity and its standard error
def my_perplexity(losses):
    """Perplexity and its standard error, from the mean losses [K] of the windows."""
    perplexity = math.exp(losses.mean().item())
    return perplexity, perplexity * losses.std().item() / math.sqrt(len(losses))


def _perplexity_by_variance(losses):
    perplexity = losses.mean().exp()
    return perplexity, perplexity * (losses.var() / len(losses)).sqrt()


def _mean_of_perplexities(losses):
    """You took the exponential of each window and then the mean, so that one hard window rules it:
    average the losses first."""
    return losses.exp().mean().item(), my_perplexity(losses)[1]


def _error_in_nats(losses):
    """That is the error of the mean loss, in nats. For the error of the perplexity multiply by the
    perplexity, the slope of exp."""
    return my_perplexity(losses)[0], losses.std().item() / math.sqrt(len(losses))


def _spread_of_windows(losses):
    """That is how much single windows scatter. Their mean is sharper by the square root of their
    number."""
    perplexity = my_perplexity(losses)[0]
    return perplexity, perplexity * losses.std().item()


def _divided_by_windows(losses):
    """The standard error falls with the square root of the number of windows, not with their
    number."""
    perplexity = my_perplexity(losses)[0]
    return perplexity, perplexity * losses.std().item() / len(losses)


def _windows_not_less_one(losses):
    """The mean is estimated from the same windows: divide by K - 1, as std() does by default."""
    perplexity, error = my_perplexity(losses)
    return perplexity, error * math.sqrt((len(losses) - 1) / len(losses))


def _loss_for_perplexity(losses):
    """That is the mean loss in nats: the perplexity is its exponential."""
    return losses.mean().item(), my_perplexity(losses)[1]


# 01.3: the published magnitude rule
def keep_largest(weight, sparsity):
    """The mask [r, c] of the weights that stay, True = kept; of equal ones the first goes."""
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[weight.abs().flatten().argsort(stable=True)[: int(sparsity * weight.numel())]] = False
    return mask.view_as(weight)


def _by_counting(weight, sparsity):
    size = weight.abs().flatten().tolist()
    order = sorted(range(len(size)), key=lambda place: (size[place], place))
    kept = torch.zeros(len(size), dtype=torch.bool)
    kept[order[int(sparsity * len(size)) :]] = True
    return kept.view_as(weight)


def _published(weight, sparsity):
    """This is the published rule itself. The value at index floor(n s) is the first that should
    stay, and <= takes it and everything that ties with it."""
    threshold = weight.abs().flatten().sort().values[int(weight.numel() * sparsity)]
    return weight.abs() > threshold


def _one_index_less(weight, sparsity):
    """This is right without ties. Where several weights tie at the threshold, <= still takes all of
    them: count, do not compare."""
    threshold = weight.abs().flatten().sort().values[int(weight.numel() * sparsity) - 1]
    return weight.abs() > threshold


def _strictly_less(weight, sparsity):
    """This is right without ties. Where several weights tie at the threshold, >= keeps all of them
    and zeros too few: count, do not compare."""
    threshold = weight.abs().flatten().sort().values[int(weight.numel() * sparsity)]
    return weight.abs() >= threshold


def _signed(weight, sparsity):
    """The sign must not matter: order by weight.abs()."""
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[weight.flatten().argsort(stable=True)[: int(sparsity * weight.numel())]] = False
    return mask.view_as(weight)


def _mask_inverted(weight, sparsity):
    """Your mask is inverted: True means kept."""
    return ~keep_largest(weight, sparsity)


def _by_row(weight, sparsity):
    """You took the same number from each row. Here all weights of the matrix compete; lesson 03
    compares within rows."""
    order = weight.abs().argsort(dim=1, stable=True)[:, : int(sparsity * weight.shape[1])]
    return torch.ones_like(weight, dtype=torch.bool).scatter(1, order, False)


# Few different values, as in a weight of low precision.
TIED = normal(6, 8, seed=5, scale=4).round() / 4


# 01.4: a paired comparison
def paired_change(dense, pruned):
    """The mean difference of two models' window losses [K], and its standard error."""
    d = pruned - dense
    return d.mean().item(), d.std().item() / math.sqrt(len(d))


def _paired_by_variance(dense, pruned):
    d = pruned - dense
    return d.mean(), (d.var() / len(dense)).sqrt()


def _unpaired(dense, pruned):
    """That is the error of two separate measurements. Both models read the same windows, so take
    the standard deviation of the differences."""
    variance = (pruned.var() + dense.var()).item()
    return (pruned - dense).mean().item(), math.sqrt(variance / len(dense))


def _difference_of_errors(dense, pruned):
    """Errors are not subtracted from each other: take the differences of the windows first, then
    their standard deviation."""
    errors = [losses.std().item() / math.sqrt(len(losses)) for losses in (dense, pruned)]
    return (pruned - dense).mean().item(), abs(errors[1] - errors[0])


def _spread(dense, pruned):
    """That is how much single windows scatter. Their mean is sharper by the square root of their
    number."""
    return (pruned - dense).mean().item(), (pruned - dense).std().item()


def _divided_by_k(dense, pruned):
    """The mean is estimated from the same windows: divide by K - 1, as std() does by default."""
    d = pruned - dense
    return d.mean().item(), d.std(correction=0).item() / math.sqrt(len(d))


def _dense_minus_pruned(dense, pruned):
    """The sign is the other way round: what pruning costs is pruned minus dense."""
    mean, error = paired_change(dense, pruned)
    return -mean, error


def _perplexities(dense, pruned):
    """Subtract the losses, not the perplexities: a factor of the perplexity is a difference of the
    losses."""
    return math.exp(pruned.mean()) - math.exp(dense.mean()), paired_change(dense, pruned)[1]


# 01.5: how many windows a comparison needs
def windows_needed(dense, pruned, z):
    """How many windows put the difference z standard errors from zero."""
    d = pruned - dense
    return math.ceil((z * d.std().item() / d.mean().item()) ** 2)


def _needed_unpaired(dense, pruned, z):
    """That is for two models on different windows. On the same windows only the differences
    scatter."""
    variance = (dense.var() + pruned.var()).item()
    return math.ceil(z**2 * variance / (pruned - dense).mean().item() ** 2)


def _not_squared(dense, pruned, z):
    """The standard error falls with the square root of the number of windows: square the ratio."""
    d = pruned - dense
    return math.ceil(abs(z * d.std().item() / d.mean().item()))


def _from_the_error(dense, pruned, z):
    """Start from the standard deviation of single differences. The standard error of these K
    windows has 1 / sqrt(K) in it already."""
    mean, error = paired_change(dense, pruned)
    return math.ceil((z * error / mean) ** 2)


def _rounded_down(dense, pruned, z):
    """Rounded down, the error is still a little too large: round up."""
    d = pruned - dense
    return math.floor((z * d.std().item() / d.mean().item()) ** 2)


def _as_error_bars(mine: tuple, expected: tuple) -> Figure:
    """Two values with their errors, one above the other."""
    pairs = {"yours": [*map(float, mine)], "expected": [*map(float, expected)]}
    with viz.style():
        figure = Figure(figsize=(6, 1.8))
        axis = figure.subplots()
        for place, (value, error) in enumerate(pairs.values()):
            axis.errorbar(value, place, xerr=abs(error), fmt="o", color="#0072B2", capsize=5)
        axis.set(yticks=(0, 1), yticklabels=[*pairs], ylim=(1.6, -0.6))
        axis.set_title("value and standard error")
    return figure


LOSSES = 4 + 0.4 * normal(12, seed=7)
PAIRS = (
    (LOSSES, LOSSES + 0.1 + 0.05 * normal(12, seed=8)),
    (LOSSES[:5], LOSSES[:5] + 0.02 * normal(5, seed=9)),
    (LOSSES, LOSSES + 0.3 + 0.2 * normal(12, seed=10)),
)
EXERCISES = {
    "01.1": Exercise(
        window_loss,
        ((normal(5, 7, seed=0), _ids(5, 1)), (3 * normal(9, 7, seed=2), _ids(9, 3))),
        mistakes(
            _same_place,
            _backwards,
            _divided_by_n,
            _summed,
            _unnormalised,
            _over_places,
            _sign_forgotten,
            _already_perplexity,
        ),
        right=(_by_cross_entropy, _place_by_place),
        minutes=8,
        quiet=True,
    ),
    "01.2": Exercise(
        my_perplexity,
        ((LOSSES,), (2 + 0.1 * normal(5, seed=11),)),
        mistakes(
            _mean_of_perplexities,
            _error_in_nats,
            _spread_of_windows,
            _divided_by_windows,
            _windows_not_less_one,
            _loss_for_perplexity,
        ),
        right=(_perplexity_by_variance,),
        minutes=5,
        draw=_as_error_bars,
        quiet=True,
    ),
    "01.3": Exercise(
        keep_largest,
        ((normal(6, 8, seed=4), 0.5), (TIED, 0.5), (TIED, 0.7), (normal(3, 5, seed=6), 0.25)),
        mistakes(_published, _one_index_less, _strictly_less, _signed, _mask_inverted, _by_row),
        right=(_by_counting,),
        kind="find-the-bug",
        minutes=7,
        draw="the mask, 1 = kept",
        quiet=True,
    ),
    "01.4": Exercise(
        paired_change,
        PAIRS,
        mistakes(
            _unpaired,
            _difference_of_errors,
            _spread,
            _divided_by_k,
            _dense_minus_pruned,
            _perplexities,
        ),
        right=(_paired_by_variance,),
        minutes=5,
        draw=_as_error_bars,
        quiet=True,
    ),
    "01.5": Exercise(
        windows_needed,
        ((*PAIRS[0], 3.0), (*PAIRS[2], 3.0), (*PAIRS[2], 5.0)),
        mistakes(_needed_unpaired, _not_squared, _from_the_error, _rounded_down),
        kind="stretch",
        minutes=8,
        quiet=True,
    ),
}
