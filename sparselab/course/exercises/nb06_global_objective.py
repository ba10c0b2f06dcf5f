"""The exercises of notebook 06."""

import torch
from torch import Tensor

from .checking import Exercise, mistakes, normal


# 06.1: what a mask costs, by the diagonal of the curvature
def _rise(weights, curvatures, masks):
    return _priced(weights, curvatures, masks, lambda w, f: 0.5 * f * w**2)


def _priced(weights, curvatures, masks, price):
    """The sum of the prices of all weights that are pruned."""
    total = 0.0
    for w, f, mask in zip(weights, curvatures, masks, strict=True):
        total += price(w, f)[~mask].sum().item()
    return total


def _rise_by_products(weights, curvatures, masks):
    """The same, with changes written out: to prune a weight is to change it by -w."""
    twice = 0.0
    for w, f, mask in zip(weights, curvatures, masks, strict=True):
        change = torch.where(mask, 0.0, -w)
        twice += (f * change.square()).sum().item()
    return twice / 2


def _rise_of_the_kept(weights, curvatures, masks):
    """you add the prices of the weights that are kept. A mask is True where a weight is kept:
    pruned is ~mask."""
    return _rise(weights, curvatures, [~mask for mask in masks])


def _without_half(*case):
    """the factor 1/2 of the second-order term is missing: think of Taylor's formula."""
    return _priced(*case, lambda w, f: f * w**2)


def _not_squared(*case):
    """the weight enters squared: the change is -w, and it stands on both sides of the matrix."""
    return _priced(*case, lambda w, f: 0.5 * f * w.abs())


def _without_curvature(*case):
    """that is the price of magnitude pruning. Where is the curvature?"""
    return _priced(*case, lambda w, f: 0.5 * w**2)


_WEIGHTS = [normal(2, 3, seed=1), normal(4, 2, seed=2, scale=5)]
_CURVATURES = [normal(2, 3, seed=3).square(), 0.01 * normal(4, 2, seed=4).square()]
_MASKS = [normal(2, 3, seed=5) > 0, normal(4, 2, seed=6) > 0]
RISE = Exercise(
    _rise,
    (
        (_WEIGHTS, _CURVATURES, _MASKS),
        (_WEIGHTS, _CURVATURES, [~mask for mask in _MASKS]),
        (_WEIGHTS[1:], _CURVATURES[1:], _MASKS[1:]),
    ),
    mistakes(_rise_of_the_kept, _without_half, _not_squared, _without_curvature),
    right=(_rise_by_products,),
    kind="warm-up",
    minutes=4,
)


# 06.2: two errors and what they make of each other
def _split(weight, new, hidden, new_hidden):
    return _squares(weight @ (hidden - new_hidden), (weight - new) @ new_hidden)


def _squares(passed, own):
    return (passed**2).sum().item(), (own**2).sum().item(), 2 * (passed * own).sum().item()


def _split_by_total(weight, new, hidden, new_hidden):
    """The same: the third is what the first two lack of the whole."""
    passed, own = weight @ (hidden - new_hidden), (weight - new) @ new_hidden
    first, second = passed.square().sum().item(), own.square().sum().item()
    return first, second, (passed + own).square().sum().item() - first - second


def _split_dense_input(weight, new, hidden, new_hidden):
    """the second layer's own error is made on the inputs that it really gets, those of the pruned
    first layer: with the dense ones the three do not add up to the whole."""
    return _squares(weight @ (hidden - new_hidden), (weight - new) @ hidden)


def _split_pruned_weight(weight, new, hidden, new_hidden):
    """what the first layer hands on goes through the dense second layer, or the change of the
    second is counted twice: the three do not add up to the whole."""
    return _squares(new @ (hidden - new_hidden), (weight - new) @ new_hidden)


def _split_once(weight, new, hidden, new_hidden):
    """the square of a sum has twice the product in it: the factor 2 of the third term is
    missing."""
    first, second, third = _split(weight, new, hidden, new_hidden)
    return first, second, third / 2


def _split_absolute(weight, new, hidden, new_hidden):
    """the third term has a sign, and the sign is the point: negative means that the errors
    cancel."""
    first, second, third = _split(weight, new, hidden, new_hidden)
    return first, second, abs(third)


def _pair_case(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight, hidden = normal(3, 4, seed=seed), normal(4, 8, seed=seed + 1).relu()
    new = weight * (normal(3, 4, seed=seed + 2) > 0)
    return weight, new, hidden, (hidden + normal(4, 8, seed=seed + 3, scale=0.5)).relu()


SPLIT = Exercise(
    _split,
    tuple(map(_pair_case, (10, 20, 30, 40, 50, 60))),
    mistakes(_split_dense_input, _split_pruned_weight, _split_once, _split_absolute),
    right=(_split_by_total,),
    minutes=6,
)


# 06.3: bytes of training a whole model
def _training_bytes(parameters, saved_per_window, windows):
    return parameters * (2 + 2 + 4 + 4 + 4) + saved_per_window * windows


def _training_bytes_in_words(parameters, saved_per_window, windows):
    weights, gradients, copy = 2 * parameters, 2 * parameters, 4 * parameters
    moments = 2 * copy
    return weights + gradients + copy + moments + windows * saved_per_window


def _one_moment(parameters, saved, windows):
    """Adam keeps two numbers a parameter, the mean of the gradients and that of their squares: one
    is missing."""
    return parameters * (2 + 2 + 4 + 4) + saved * windows


def _without_gradients(parameters, saved, windows):
    """the gradients are missing: two bytes a parameter."""
    return parameters * (2 + 4 + 4 + 4) + saved * windows


def _four_bytes_for_two(parameters, saved, windows):
    """fp16 takes two bytes, not four: weights and gradients are too large, the rest is right."""
    return parameters * (4 + 4 + 4 + 4 + 4) + saved * windows


def _one_window(parameters, saved, windows):
    """the activations of every window are kept until the backward pass: they grow with the number
    of windows."""
    return parameters * (2 + 2 + 4 + 4 + 4) + saved


def _in_bits(parameters, saved, windows):
    """the result is wanted in bytes, and this is in bits."""
    return 8 * (parameters * (2 + 2 + 4 + 4 + 4) + saved * windows)


TRAINING = Exercise(
    _training_bytes,
    ((7_000_000, 30_000_000, 1), (13_015_864_320, 22_000_000_000, 1), (1_000_000, 5_000_000, 8)),
    mistakes(_one_moment, _without_gradients, _four_bytes_for_two, _one_window, _in_bits),
    right=(_training_bytes_in_words,),
    minutes=5,
)


# 06.4: the gradual mask of a published ADMM
def _gradual(weight, sparsity, ramp):
    masks = []
    for step in range(1, ramp + 1):
        now = sparsity - sparsity * (1 - step / ramp) ** 3
        count = int(now * weight.numel() + 1e-6)
        mask = torch.ones(weight.numel(), dtype=torch.bool)
        mask[weight.abs().flatten().argsort()[:count]] = False
        masks.append(mask.view_as(weight))
    return masks


def _scheduled(weight, sparsity, ramp, share):
    """The masks where share(step) of the sparsity is reached in each step, from the weights'
    ranks."""
    ranks = weight.abs().flatten().argsort().argsort().view_as(weight)
    masks = []
    for step in range(1, ramp + 1):
        masks.append(ranks >= int(sparsity * share(step) * weight.numel() + 1e-6))
    return masks


def _gradual_by_ranks(weight, sparsity, ramp):
    return _scheduled(weight, sparsity, ramp, lambda step: 1 - (1 - step / ramp) ** 3)


def _final_share_at_once(weight, sparsity, ramp):
    """every step prunes the final share: `now` is computed and never used, as in the published
    code."""
    return _scheduled(weight, sparsity, ramp, lambda step: 1)


def _falling_share(weight, sparsity, ramp):
    """the share falls from step to step: it must begin near 0 and end at the final sparsity."""
    return _scheduled(weight, sparsity, ramp, lambda step: (1 - (step - 1) / ramp) ** 3)


def _one_step_late(weight, sparsity, ramp):
    """the last mask is not yet at the final sparsity: the steps count from 1 to ramp."""
    return _scheduled(weight, sparsity, ramp, lambda step: 1 - (1 - (step - 1) / ramp) ** 3)


def _straight_line(weight, sparsity, ramp):
    """a straight line from 0 to the final share: the schedule is cubic, quick at first and slow at
    the end."""
    return _scheduled(weight, sparsity, ramp, lambda step: step / ramp)


GRADUAL = Exercise(
    _gradual,
    ((normal(4, 6, seed=70), 0.75, 6), (normal(5, 8, seed=71), 0.6, 5)),
    mistakes(_final_share_at_once, _falling_share, _one_step_late, _straight_line),
    right=(_gradual_by_ranks,),
    kind="find-the-bug",
    minutes=6,
)


# 06.5: the divergence to second order, from the change of the logits
def _half_variance(logits, change):
    p = logits.softmax(-1)
    mean = (p * change).sum(-1, keepdim=True)
    return 0.5 * (p * (change - mean) ** 2).sum(-1).mean()


def _half_variance_by_moments(logits, change):
    p = logits.softmax(-1)
    return ((p * change**2).sum(-1) - (p * change).sum(-1) ** 2).mean() / 2


def _second_moment(logits, change):
    """a constant added to all logits of a token changes nothing, but it changes your number: take
    the mean off first."""
    return 0.5 * (logits.softmax(-1) * change**2).sum(-1).mean()


def _variance(logits, change):
    """the factor 1/2 of the second-order term is missing."""
    return 2 * _half_variance(logits, change)


def _uniform_variance(logits, change):
    """every word counts the same in your variance: words that the model never says must weigh
    nothing. Weight by p."""
    return 0.5 * change.var(-1, unbiased=False).mean()


def _summed(logits, change):
    """the result is per token: take the mean over the tokens, not the sum."""
    return _half_variance(logits, change) * len(logits)


HALF_VARIANCE = Exercise(
    _half_variance,
    (
        (normal(5, 7, seed=80, scale=2), normal(5, 7, seed=81)),
        (normal(3, 9, seed=82), 1 + 0.1 * normal(3, 9, seed=83)),
    ),
    mistakes(_second_moment, _variance, _uniform_variance, _summed),
    right=(_half_variance_by_moments,),
    kind="stretch",
    minutes=10,
)
EXERCISES = {"06.1": RISE, "06.2": SPLIT, "06.3": TRAINING, "06.4": GRADUAL, "06.5": HALF_VARIANCE}
