"""The exercises of notebook 01."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .checking import Exercise


def _normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(seed))


# 01.1 the perplexity of some probabilities
def _perplexity(probabilities):  # [n], of the tokens that came
    return math.exp(-probabilities.log().mean().item())


# 01.2 the mean loss of each window
def _window_losses(logits, ids):  # [k, n, V], [k, n] -> [k]
    said = logits[:, :-1].log_softmax(-1)  # what was said at 1 ... n - 1 about 2 ... n
    return -said.gather(-1, ids[:, 1:, None])[..., 0].mean(1)


def _by_cross_entropy(logits, ids):
    return torch.stack(
        [F.cross_entropy(row[:-1], target[1:]) for row, target in zip(logits, ids, strict=True)]
    )


def _same_place(logits, ids):
    return -logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0].mean(1)


def _backwards(logits, ids):
    return -logits[:, 1:].log_softmax(-1).gather(-1, ids[:, :-1, None])[..., 0].mean(1)


def _divided_by_n(logits, ids):
    return _window_losses(logits, ids) * (ids.shape[1] - 1) / ids.shape[1]


def _unnormalised(logits, ids):
    return -logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].mean(1)


# 01.3 a paired comparison
def _paired(dense, pruned):  # [k], [k] -> (mean, standard error)
    difference = pruned - dense
    return difference.mean().item(), difference.std().item() / math.sqrt(len(difference))


def _unpaired(dense, pruned):
    return (pruned - dense).mean().item(), math.sqrt(
        (pruned.var() + dense.var()).item() / len(dense)
    )


def _spread(dense, pruned):
    return (pruned - dense).mean().item(), (pruned - dense).std().item()


def _divided_by_k(dense, pruned):
    difference = pruned - dense
    return difference.mean().item(), difference.std(correction=0).item() / math.sqrt(
        len(difference)
    )


def _perplexities(dense, pruned):
    return math.exp(pruned.mean()) - math.exp(dense.mean()), _paired(dense, pruned)[1]


# 01.4 the published magnitude rule
def _mask(weight, sparsity):  # [r, c] -> bool [r, c], True = kept
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[weight.abs().flatten().argsort(stable=True)[: int(sparsity * weight.numel())]] = False
    return mask.view_as(weight)


def _by_counting(weight, sparsity):
    size = weight.abs().flatten().tolist()
    order = sorted(range(len(size)), key=lambda place: (size[place], place))
    gone = {*order[: int(sparsity * len(size))]}
    return torch.tensor([place not in gone for place in range(len(size))]).view_as(weight)


def _published(weight, sparsity):
    threshold = weight.abs().flatten().sort().values[int(weight.numel() * sparsity)]
    return weight.abs() > threshold


def _one_index_less(weight, sparsity):
    threshold = weight.abs().flatten().sort().values[int(weight.numel() * sparsity) - 1]
    return weight.abs() > threshold


def _strictly_less(weight, sparsity):
    threshold = weight.abs().flatten().sort().values[int(weight.numel() * sparsity)]
    return weight.abs() >= threshold


def _signed(weight, sparsity):
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[weight.flatten().argsort(stable=True)[: int(sparsity * weight.numel())]] = False
    return mask.view_as(weight)


TIED = (
    4 * _normal(6, 8, seed=5)
).round() / 4  # few different values, as in a weight of low precision


# 01.5 how many windows a comparison needs
def _windows_needed(dense, pruned, z):  # [k], [k] -> int
    difference = pruned - dense
    return math.ceil((z * difference.std().item() / difference.mean().item()) ** 2)


def _needed_unpaired(dense, pruned, z):
    return math.ceil(
        z**2 * (dense.var() + pruned.var()).item() / (pruned - dense).mean().item() ** 2
    )


def _not_squared(dense, pruned, z):
    difference = pruned - dense
    return math.ceil(abs(z * difference.std().item() / difference.mean().item()))


def _from_the_error(dense, pruned, z):
    mean, stderr = _paired(dense, pruned)
    return math.ceil((z * stderr / mean) ** 2)


def _rounded_down(dense, pruned, z):
    difference = pruned - dense
    return math.floor((z * difference.std().item() / difference.mean().item()) ** 2)


LOSSES = 4 + 0.4 * _normal(12, seed=7)
PAIRS = (
    (LOSSES, LOSSES + 0.1 + 0.05 * _normal(12, seed=8)),
    (LOSSES[:5], LOSSES[:5] + 0.02 * _normal(5, seed=9)),
    (LOSSES, LOSSES + 0.3 + 0.2 * _normal(12, seed=10)),
)
EXERCISES = {
    "01.1": Exercise(
        _perplexity,
        ((torch.tensor([0.5, 0.125, 0.5, 0.125]),), (torch.tensor([0.9, 0.02, 0.3]),)),
        {
            "that is the mean of 1/p: one rare token rules it; perplexity is the geometric "
            "mean, exp of the mean of -log p": (lambda p: (1 / p).mean().item()),
            "that is 1 over the mean probability: average the logarithms, not the probabilities": (
                lambda p: 1 / p.mean().item()
            ),
            "exp and log belong together: with log2 the power is of 2": lambda p: math.exp(
                -p.log2().mean().item()
            ),
            "the product of all 1/p grows with the length of the text: take its n-th root, by a "
            "mean in place of a sum": (lambda p: 1 / p.prod().item()),
            "that is the mean loss in nats: perplexity is its exponential": (
                lambda p: -p.log().mean().item()
            ),
        },
        right=(
            lambda p: (1 / p).prod().item() ** (1 / len(p)),
            lambda p: 2 ** -p.log2().mean().item(),
        ),
        kind="warm-up",
        minutes=3,
    ),
    "01.2": Exercise(
        _window_losses,
        ((_normal(3, 5, 7), _ids(3, 5)), (3 * _normal(1, 9, 7, seed=2), _ids(1, 9, seed=3))),
        {
            "the logits at a place speak about the next token: shift one of the two, logits[:, "
            ":-1] and ids[:, 1:]": (_same_place),
            "shifted the wrong way: the logits at place t - 1 predict the token at t, not the "
            "one before": (_backwards),
            "n tokens make n - 1 predictions: nothing predicts the first token, so divide by n "
            "- 1": (_divided_by_n),
            "logits are not log-probabilities: take log_softmax over the vocabulary first": (
                _unnormalised
            ),
            "one number a window is asked for, [k]: average over the positions and not over the "
            "windows": (lambda logits, ids: _window_losses(logits, ids).mean()),
        },
        right=(_by_cross_entropy,),
        kind="core",
        minutes=8,
    ),
    "01.3": Exercise(
        _paired,
        PAIRS,
        {
            "that is the error of two separate measurements: both models read the same windows, "
            "so take the standard deviation of the differences": (_unpaired),
            "that is how much single windows scatter: their mean is sharper by the square root "
            "of their number": (_spread),
            "the mean is estimated from the same windows: divide by k - 1, as std() does by "
            "default": (_divided_by_k),
            "subtract the losses, not the perplexities: a factor of the perplexity is a "
            "difference of the losses": (_perplexities),
        },
        right=(
            lambda dense, pruned: tuple(
                x.item()
                for x in ((pruned - dense).mean(), ((pruned - dense).var() / len(dense)).sqrt())
            ),
        ),
        kind="core",
        minutes=6,
    ),
    "01.4": Exercise(
        _mask,
        ((_normal(6, 8, seed=4), 0.5), (TIED, 0.5), (TIED, 0.7), (_normal(3, 5, seed=6), 0.25)),
        {
            "this is the published rule itself: the value at index floor(n s) is the first that "
            "should stay, and <= takes it and everything that ties with it": (_published),
            "right without ties; where several weights tie at the threshold, <= still takes all "
            "of them: count, do not compare": (_one_index_less),
            "right without ties; where several weights tie at the threshold, >= keeps all of "
            "them and zeros too few: count, do not compare": (_strictly_less),
            "the sign must not matter: order by weight.abs()": _signed,
            "the mask is inverted: True says that a weight is kept": lambda weight, sparsity: (
                ~_mask(weight, sparsity)
            ),
        },
        right=(_by_counting,),
        kind="find-the-bug",
        minutes=8,
    ),
    "01.5": Exercise(
        _windows_needed,
        ((*PAIRS[0], 3.0), (*PAIRS[2], 3.0), (*PAIRS[2], 5.0)),
        {
            "that is for two models on different windows: on the same windows only the "
            "differences scatter": (_needed_unpaired),
            "the standard error falls with the square root of the number of windows: square the "
            "ratio": (_not_squared),
            "start from the standard deviation of single differences; the standard error of "
            "these k windows has 1 / sqrt(k) in it already": (_from_the_error),
            "rounded down the error is still a little too large: round up": _rounded_down,
        },
        kind="stretch",
        minutes=10,
    ),
}
