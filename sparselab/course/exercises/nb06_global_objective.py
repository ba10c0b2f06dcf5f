"""The exercises of notebook 06."""

import torch
from torch import Tensor

from .checking import Exercise


def _draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# 06.1: what a mask costs, by the diagonal of the curvature
def _rise(weights, curvatures, masks):
    return sum(
        (0.5 * f * w**2)[~mask].sum().item()
        for w, f, mask in zip(weights, curvatures, masks, strict=True)
    )


def _rise_by_products(weights, curvatures, masks):
    """The same, with changes written out: to prune a weight is to change it by -w."""
    changes = [torch.where(mask, 0.0, -w) for w, mask in zip(weights, masks, strict=True)]
    return (
        float(
            sum((f * change.square()).sum() for f, change in zip(curvatures, changes, strict=True))
        )
        / 2
    )


def _priced(price):
    return lambda weights, curvatures, masks: sum(
        price(w, f)[~mask].sum().item()
        for w, f, mask in zip(weights, curvatures, masks, strict=True)
    )


_WEIGHTS = [_draw(2, 3, seed=1), _draw(4, 2, seed=2, scale=5)]
_CURVATURES = [_draw(2, 3, seed=3).square(), 0.01 * _draw(4, 2, seed=4).square()]
_MASKS = [_draw(2, 3, seed=5) > 0, _draw(4, 2, seed=6) > 0]
RISE = Exercise(
    _rise,
    (
        (_WEIGHTS, _CURVATURES, _MASKS),
        (_WEIGHTS, _CURVATURES, [~mask for mask in _MASKS]),
        (_WEIGHTS[1:], _CURVATURES[1:], _MASKS[1:]),
    ),
    wrong={
        "you add the prices of the weights that are kept. A mask is True where a weight is "
        "kept: pruned is ~mask.": lambda weights, curvatures, masks: _rise(
            weights, curvatures, [~mask for mask in masks]
        ),
        "the factor 1/2 of the second-order term is missing: think of Taylor's formula.": _priced(
            lambda w, f: f * w**2
        ),
        "the weight enters squared: the change is -w, and it stands on both sides of the matrix.": (
            _priced(lambda w, f: 0.5 * f * w.abs())
        ),
        "that is the price of magnitude pruning. Where is the curvature?": _priced(
            lambda w, f: 0.5 * w**2
        ),
    },
    right=(_rise_by_products,),
    kind="warm-up",
    minutes=4,
)


# 06.2: two errors and what they make of each other
def _split(weight, new, hidden, new_hidden):
    passed, own = weight @ (hidden - new_hidden), (weight - new) @ new_hidden
    return (passed**2).sum().item(), (own**2).sum().item(), 2 * (passed * own).sum().item()


def _split_by_total(weight, new, hidden, new_hidden):
    """The same: the third is what the first two lack of the whole."""
    passed, own = weight @ (hidden - new_hidden), (weight - new) @ new_hidden
    first, second, whole = (part.square().sum().item() for part in (passed, own, passed + own))
    return first, second, whole - first - second


def _split_dense_input(weight, new, hidden, new_hidden):
    passed, own = weight @ (hidden - new_hidden), (weight - new) @ hidden
    return (passed**2).sum().item(), (own**2).sum().item(), 2 * (passed * own).sum().item()


def _split_pruned_weight(weight, new, hidden, new_hidden):
    passed, own = new @ (hidden - new_hidden), (weight - new) @ new_hidden
    return (passed**2).sum().item(), (own**2).sum().item(), 2 * (passed * own).sum().item()


def _split_once(weight, new, hidden, new_hidden):
    first, second, third = _split(weight, new, hidden, new_hidden)
    return first, second, third / 2


def _split_absolute(weight, new, hidden, new_hidden):
    first, second, third = _split(weight, new, hidden, new_hidden)
    return first, second, abs(third)


def _pair_case(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight, hidden = _draw(3, 4, seed=seed), _draw(4, 8, seed=seed + 1).relu()
    return (
        weight,
        weight * (_draw(3, 4, seed=seed + 2) > 0),
        hidden,
        (hidden + 0.5 * _draw(4, 8, seed=seed + 3)).relu(),
    )


_PAIRS = [_pair_case(seed) for seed in (10, 20, 30, 40, 50, 60)]
SPLIT = Exercise(
    _split,
    tuple(_PAIRS),
    wrong={
        "the second layer's own error is made on the inputs that it really gets, those of the "
        "pruned first layer: with the dense ones the three do not add up to the whole.": (
            _split_dense_input
        ),
        "what the first layer hands on goes through the dense second layer, or the change of "
        "the second is counted twice: the three do not add up to the whole.": (
            _split_pruned_weight
        ),
        "the square of a sum has twice the product in it: the factor 2 of the third term is "
        "missing.": (_split_once),
        "the third term has a sign, and the sign is the point: negative means that the errors "
        "cancel.": (_split_absolute),
    },
    right=(_split_by_total,),
    kind="core",
    minutes=6,
)


# 06.3: bytes of training a whole model
def _training_bytes(parameters, saved_per_window, windows):
    return parameters * (2 + 2 + 4 + 4 + 4) + saved_per_window * windows


def _training_bytes_in_words(parameters, saved_per_window, windows):
    weights, gradients, copy, moments = (
        2 * parameters,
        2 * parameters,
        4 * parameters,
        2 * 4 * parameters,
    )
    return weights + gradients + copy + moments + windows * saved_per_window


TRAINING = Exercise(
    _training_bytes,
    ((7_000_000, 30_000_000, 1), (13_015_864_320, 22_000_000_000, 1), (1_000_000, 5_000_000, 8)),
    wrong={
        "Adam keeps two numbers a parameter, the mean of the gradients and that of their "
        "squares: one is missing.": (
            lambda parameters, saved, windows: parameters * (2 + 2 + 4 + 4) + saved * windows
        ),
        "the gradients are missing: two bytes a parameter.": (
            lambda parameters, saved, windows: parameters * (2 + 4 + 4 + 4) + saved * windows
        ),
        "fp16 takes two bytes, not four: weights and gradients are too large, the rest is right.": (
            lambda parameters, saved, windows: parameters * (4 + 4 + 4 + 4 + 4) + saved * windows
        ),
        "the activations of every window are kept until the backward pass: they grow with the "
        "number of windows.": (
            lambda parameters, saved, windows: parameters * (2 + 2 + 4 + 4 + 4) + saved
        ),
        "the result is wanted in bytes, and this is in bits.": (
            lambda parameters, saved, windows: (
                8 * (parameters * (2 + 2 + 4 + 4 + 4) + saved * windows)
            )
        ),
    },
    right=(_training_bytes_in_words,),
    kind="core",
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


def _gradual_by_ranks(weight, sparsity, ramp):
    """The same, from each weight's rank."""
    ranks = weight.abs().flatten().argsort().argsort().view_as(weight)
    shares = (sparsity * (1 - (1 - step / ramp) ** 3) for step in range(1, ramp + 1))
    return [ranks >= int(share * weight.numel() + 1e-6) for share in shares]


def _gradual_with(share):
    """A schedule share(sparsity, step / ramp) in place of the right one."""

    def masks(weight, sparsity, ramp):
        ranks = weight.abs().flatten().argsort().argsort().view_as(weight)
        return [
            ranks >= int(share(sparsity, step, ramp) * weight.numel() + 1e-6)
            for step in range(1, ramp + 1)
        ]

    return masks


GRADUAL = Exercise(
    _gradual,
    ((_draw(4, 6, seed=70), 0.75, 6), (_draw(5, 8, seed=71), 0.6, 5)),
    wrong={
        "every step prunes the final share: `now` is computed and never used, as in the "
        "published code.": _gradual_with(lambda sparsity, step, ramp: sparsity),
        "the share falls from step to step: it must begin near 0 and end at the final sparsity.": (
            _gradual_with(lambda sparsity, step, ramp: sparsity * (1 - (step - 1) / ramp) ** 3)
        ),
        "the last mask is not yet at the final sparsity: the steps count from 1 to ramp.": (
            _gradual_with(
                lambda sparsity, step, ramp: sparsity * (1 - (1 - (step - 1) / ramp) ** 3)
            )
        ),
        "a straight line from 0 to the final share: the schedule is cubic, quick at first and "
        "slow at the end.": _gradual_with(lambda sparsity, step, ramp: sparsity * step / ramp),
    },
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
    return 0.5 * (logits.softmax(-1) * change**2).sum(-1).mean()


def _variance(logits, change):
    return 2 * _half_variance(logits, change)


def _uniform_variance(logits, change):
    return 0.5 * change.var(-1, unbiased=False).mean()


def _summed(logits, change):
    return _half_variance(logits, change) * len(logits)


HALF_VARIANCE = Exercise(
    _half_variance,
    (
        (_draw(5, 7, seed=80, scale=2), _draw(5, 7, seed=81)),
        (_draw(3, 9, seed=82), 1 + 0.1 * _draw(3, 9, seed=83)),
    ),
    wrong={
        "a constant added to all logits of a token changes nothing, but it changes your number: "
        "take the mean off first.": (_second_moment),
        "the factor 1/2 of the second-order term is missing.": _variance,
        "every word counts the same in your variance: words that the model never says must "
        "weigh nothing. Weight by p.": (_uniform_variance),
        "the result is per token: take the mean over the tokens, not the sum.": _summed,
    },
    right=(_half_variance_by_moments,),
    kind="stretch",
    minutes=10,
)
EXERCISES = {"06.1": RISE, "06.2": SPLIT, "06.3": TRAINING, "06.4": GRADUAL, "06.5": HALF_VARIANCE}
