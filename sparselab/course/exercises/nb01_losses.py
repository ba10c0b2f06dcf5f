"""The exercises of notebook 01."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .checking import Exercise, mistakes, normal


def _ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(seed))


# 01.1 the perplexity of some probabilities
def _perplexity(probabilities):  # [n], of the tokens that came
    return math.exp(-probabilities.log().mean().item())


def _mean_inverse(p):
    """that is the mean of 1/p: one rare token rules it; perplexity is the geometric mean, exp of
    the mean of -log p"""
    return (1 / p).mean().item()


def _inverse_mean(p):
    """that is 1 over the mean probability: average the logarithms, not the probabilities"""
    return 1 / p.mean().item()


def _two_for_e(p):
    """exp and log belong together: with log2 the power is of 2"""
    return math.exp(-p.log2().mean().item())


def _product(p):
    """the product of all 1/p grows with the length of the text: take its n-th root, by a mean in
    place of a sum"""
    return 1 / p.prod().item()


def _loss_itself(p):
    """that is the mean loss in nats: perplexity is its exponential"""
    return -p.log().mean().item()


# 01.2 the mean loss of each window
def _window_losses(logits, ids):  # [k, n, V], [k, n] -> [k]
    said = logits[:, :-1].log_softmax(-1)  # what was said at 1 ... n - 1 about 2 ... n
    return -said.gather(-1, ids[:, 1:, None])[..., 0].mean(1)


def _by_cross_entropy(logits, ids):
    said = logits[:, :-1].transpose(1, 2)
    return F.cross_entropy(said, ids[:, 1:], reduction="none").mean(1)


def _same_place(logits, ids):
    """the logits at a place speak about the next token: shift one of the two, logits[:, :-1] and
    ids[:, 1:]"""
    return -logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0].mean(1)


def _backwards(logits, ids):
    """shifted the wrong way: the logits at place t - 1 predict the token at t, not the one
    before"""
    return -logits[:, 1:].log_softmax(-1).gather(-1, ids[:, :-1, None])[..., 0].mean(1)


def _divided_by_n(logits, ids):
    """n tokens make n - 1 predictions: nothing predicts the first token, so divide by n - 1"""
    return _window_losses(logits, ids) * (ids.shape[1] - 1) / ids.shape[1]


def _unnormalised(logits, ids):
    """logits are not log-probabilities: take log_softmax over the vocabulary first"""
    return -logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].mean(1)


def _over_windows_too(logits, ids):
    """one number a window is asked for, [k]: average over the positions and not over the windows"""
    return _window_losses(logits, ids).mean()


# 01.3 a paired comparison
def _paired(dense, pruned):  # [k], [k] -> (mean, standard error)
    difference = pruned - dense
    return difference.mean().item(), difference.std().item() / math.sqrt(len(difference))


def _paired_by_variance(dense, pruned):
    difference = pruned - dense
    return difference.mean().item(), (difference.var() / len(dense)).sqrt().item()


def _unpaired(dense, pruned):
    """that is the error of two separate measurements: both models read the same windows, so take
    the standard deviation of the differences"""
    variance = (pruned.var() + dense.var()).item()
    return (pruned - dense).mean().item(), math.sqrt(variance / len(dense))


def _spread(dense, pruned):
    """that is how much single windows scatter: their mean is sharper by the square root of their
    number"""
    return (pruned - dense).mean().item(), (pruned - dense).std().item()


def _divided_by_k(dense, pruned):
    """the mean is estimated from the same windows: divide by k - 1, as std() does by default"""
    difference = pruned - dense
    spread = difference.std(correction=0).item()
    return difference.mean().item(), spread / math.sqrt(len(difference))


def _perplexities(dense, pruned):
    """subtract the losses, not the perplexities: a factor of the perplexity is a difference of the
    losses"""
    return math.exp(pruned.mean()) - math.exp(dense.mean()), _paired(dense, pruned)[1]


# 01.4 the published magnitude rule
def _mask(weight, sparsity):  # [r, c] -> bool [r, c], True = kept
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
    """this is the published rule itself: the value at index floor(n s) is the first that should
    stay, and <= takes it and everything that ties with it"""
    threshold = weight.abs().flatten().sort().values[int(weight.numel() * sparsity)]
    return weight.abs() > threshold


def _one_index_less(weight, sparsity):
    """right without ties; where several weights tie at the threshold, <= still takes all of them:
    count, do not compare"""
    threshold = weight.abs().flatten().sort().values[int(weight.numel() * sparsity) - 1]
    return weight.abs() > threshold


def _strictly_less(weight, sparsity):
    """right without ties; where several weights tie at the threshold, >= keeps all of them and
    zeros too few: count, do not compare"""
    threshold = weight.abs().flatten().sort().values[int(weight.numel() * sparsity)]
    return weight.abs() >= threshold


def _signed(weight, sparsity):
    """the sign must not matter: order by weight.abs()"""
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[weight.flatten().argsort(stable=True)[: int(sparsity * weight.numel())]] = False
    return mask.view_as(weight)


def _mask_inverted(weight, sparsity):
    """the mask is inverted: True says that a weight is kept"""
    return ~_mask(weight, sparsity)


# Few different values, as in a weight of low precision.
TIED = normal(6, 8, seed=5, scale=4).round() / 4


# 01.5 how many windows a comparison needs
def _windows_needed(dense, pruned, z):  # [k], [k] -> int
    difference = pruned - dense
    return math.ceil((z * difference.std().item() / difference.mean().item()) ** 2)


def _needed_unpaired(dense, pruned, z):
    """that is for two models on different windows: on the same windows only the differences
    scatter"""
    variance = (dense.var() + pruned.var()).item()
    return math.ceil(z**2 * variance / (pruned - dense).mean().item() ** 2)


def _not_squared(dense, pruned, z):
    """the standard error falls with the square root of the number of windows: square the ratio"""
    difference = pruned - dense
    return math.ceil(abs(z * difference.std().item() / difference.mean().item()))


def _from_the_error(dense, pruned, z):
    """start from the standard deviation of single differences; the standard error of these k
    windows has 1 / sqrt(k) in it already"""
    mean, stderr = _paired(dense, pruned)
    return math.ceil((z * stderr / mean) ** 2)


def _rounded_down(dense, pruned, z):
    """rounded down the error is still a little too large: round up"""
    difference = pruned - dense
    return math.floor((z * difference.std().item() / difference.mean().item()) ** 2)


LOSSES = 4 + 0.4 * normal(12, seed=7)
PAIRS = (
    (LOSSES, LOSSES + 0.1 + 0.05 * normal(12, seed=8)),
    (LOSSES[:5], LOSSES[:5] + 0.02 * normal(5, seed=9)),
    (LOSSES, LOSSES + 0.3 + 0.2 * normal(12, seed=10)),
)
EXERCISES = {
    "01.1": Exercise(
        _perplexity,
        ((torch.tensor([0.5, 0.125, 0.5, 0.125]),), (torch.tensor([0.9, 0.02, 0.3]),)),
        mistakes(_mean_inverse, _inverse_mean, _two_for_e, _product, _loss_itself),
        right=(
            lambda p: (1 / p).prod().item() ** (1 / len(p)),
            lambda p: 2 ** -p.log2().mean().item(),
        ),
        kind="warm-up",
        minutes=3,
    ),
    "01.2": Exercise(
        _window_losses,
        ((normal(3, 5, 7, seed=0), _ids(3, 5)), (3 * normal(1, 9, 7, seed=2), _ids(1, 9, seed=3))),
        mistakes(_same_place, _backwards, _divided_by_n, _unnormalised, _over_windows_too),
        right=(_by_cross_entropy,),
        minutes=8,
    ),
    "01.3": Exercise(
        _paired,
        PAIRS,
        mistakes(_unpaired, _spread, _divided_by_k, _perplexities),
        right=(_paired_by_variance,),
        minutes=6,
    ),
    "01.4": Exercise(
        _mask,
        ((normal(6, 8, seed=4), 0.5), (TIED, 0.5), (TIED, 0.7), (normal(3, 5, seed=6), 0.25)),
        mistakes(_published, _one_index_less, _strictly_less, _signed, _mask_inverted),
        right=(_by_counting,),
        kind="find-the-bug",
        minutes=8,
    ),
    "01.5": Exercise(
        _windows_needed,
        ((*PAIRS[0], 3.0), (*PAIRS[2], 3.0), (*PAIRS[2], 5.0)),
        mistakes(_needed_unpaired, _not_squared, _from_the_error, _rounded_down),
        kind="stretch",
        minutes=10,
    ),
}
