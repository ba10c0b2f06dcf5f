"""The exercises of notebook 13."""

import math

import torch

from .checking import Exercise


# 13.1 the bytes of a packed matrix
def _packed_bytes(
    rows, columns, zeros, bits
):  # kept values of so many bits, one bit a weight for the mask
    return (rows * columns - zeros) * bits // 8 + math.ceil(rows * columns / 8)


# 13.2 OWL's shares
def _owl_shares(
    outliers, target, spread
):  # [blocks] -> [blocks], mean target, farthest block `spread` away
    centred = outliers - outliers.mean()
    return target - spread * centred / centred.abs().max()


def _published(outliers, target, spread):
    stretched = 2 * spread * (outliers - outliers.min()) / (outliers.max() - outliers.min())
    return target - (stretched - stretched.mean())


# 13.3 momentum under a mask
def _train(weight, mask, velocity, gradients, rate):  # [r, c] x 3, [steps, r, c] -> [r, c]
    weight = weight * mask
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient
        weight = (weight - rate * velocity) * mask
    return weight


def _mask_gradients(weight, mask, velocity, gradients, rate):
    weight = weight * mask
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient * mask
        weight = weight - rate * velocity
    return weight


def _mask_both(weight, mask, velocity, gradients, rate):
    weight, velocity = weight * mask, velocity * mask
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient * mask
        weight = weight - rate * velocity
    return weight


def _mask_first(weight, mask, velocity, gradients, rate):
    weight = weight * mask
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient
        weight = weight - rate * velocity
    return weight


def _no_momentum(weight, mask, velocity, gradients, rate):
    weight = weight * mask
    for gradient in gradients:
        weight = (weight - rate * gradient) * mask
    return weight


# 13.4 a merge that keeps the zeros
def _merge(weight, mask, b, a, scale):  # [r, c] x 2, [r, k], [k, c] -> [r, c]
    return (weight + scale * b @ a) * mask


# 13.5 a budget spent by price
def _spend(
    prices, widths, budget
):  # [segments] x 2 -> how much of each segment is taken, [segments]
    taken = torch.zeros_like(widths)
    for place in prices.argsort(stable=True):
        taken[place] = min(widths[place].item(), budget)
        budget -= taken[place].item()
    return taken


def _all_or_nothing(prices, widths, budget):
    taken = torch.zeros_like(widths)
    for place in prices.argsort(stable=True):
        if widths[place] <= budget:
            taken[place] = widths[place]
            budget -= widths[place].item()
    return taken


def _by_cumsum(prices, widths, budget):
    order = prices.argsort(stable=True)
    before = widths[order].cumsum(0) - widths[order]
    taken = torch.zeros_like(widths)
    taken[order] = torch.minimum((budget - before).clamp(min=0), widths[order])
    return taken


def _cases(number, make):
    generator = torch.Generator().manual_seed(number)
    return tuple(make(generator) for _ in range(3))


def _training_case(generator):
    weight, velocity = (torch.randn(3, 4, generator=generator) for _ in range(2))
    mask = (torch.rand(3, 4, generator=generator) > 0.5).float()
    return weight, mask, velocity, torch.randn(4, 3, 4, generator=generator), 0.1


def _merge_case(generator):
    mask = (torch.rand(4, 6, generator=generator) > 0.6).float()
    weight = torch.randn(4, 6, generator=generator) * mask
    return (
        weight,
        mask,
        torch.randn(4, 2, generator=generator),
        torch.randn(2, 6, generator=generator),
        2.0,
    )


def _budget_case(generator):
    prices, widths = torch.rand(7, generator=generator), torch.rand(7, generator=generator) + 0.5
    return prices, widths, 0.6 * widths.sum().item()


EXERCISES = {
    "13.1": Exercise(
        _packed_bytes,
        ((256, 1024, 183500, 16), (5, 7, 20, 32), (3, 3, 0, 16)),
        {
            "that is the size of the kept values alone; what says where they stand?": (
                lambda rows, columns, zeros, bits: (rows * columns - zeros) * bits // 8
            ),
            "the mask has one bit for every weight, also for those that are gone": (
                lambda rows, columns, zeros, bits: (
                    (n := rows * columns - zeros) * bits // 8 + math.ceil(n / 8)
                )
            ),
            "those are bits, not bytes; eight of them are one byte": (
                lambda rows, columns, zeros, bits: (rows * columns - zeros) * bits + rows * columns
            ),
            "the zeros are what is left out, the others are stored": (
                lambda rows, columns, zeros, bits: zeros * bits // 8 + math.ceil(rows * columns / 8)
            ),
        },
        kind="warm-up",
        minutes=3,
    ),
    "13.2": Exercise(
        _owl_shares,
        (
            (torch.tensor([0.0, 1, 5]), 0.7, 0.09),
            (torch.tensor([2.0, 3, 4, 3]), 0.6, 0.1),
            (torch.tensor([0.1, 0.9, 0.2, 0.3, 0.1]), 0.8, 0.05),
        ),
        {
            "more outliers must mean fewer zeros: look at the sign": (
                lambda outliers, target, spread: 2 * target - _owl_shares(outliers, target, spread)
            ),
            "stretching to a range of twice the spread and centring, as the published code "
            "does, lets a block go too far": (_published),
            "the mean over the blocks is not the target: subtract the mean of the outlier "
            "shares first": (
                lambda outliers, target, spread: target - spread * outliers / outliers.abs().max()
            ),
            "the shares of the outliers must be scaled, so that the farthest block is `spread` "
            "away": (
                lambda outliers, target, spread: target - spread * (outliers - outliers.mean())
            ),
        },
        kind="core",
        minutes=6,
    ),
    "13.3": Exercise(
        _train,
        _cases(3, _training_case),
        {
            "the mask on the gradients is too late: the velocity from before the pruning still "
            "moves the pruned weights": (_mask_gradients),
            "the mask is applied once, and the first step fills the zeros": _mask_first,
            "the velocity is gone: momentum is part of the training that you are to repair": (
                _no_momentum
            ),
            "the mask is the wrong way round: 1 stands for a weight that is kept": (
                lambda weight, mask, *rest: _train(weight, 1 - mask, *rest)
            ),
        },
        right=(_mask_both,),
        kind="find-the-bug",
        minutes=7,
    ),
    "13.4": Exercise(
        _merge,
        _cases(4, _merge_case),
        {
            "this fills the zeros: a product of rank k is nowhere zero": (
                lambda weight, mask, b, a, scale: weight + scale * b @ a
            ),
            "the product must be scaled, by alpha / rank": (
                lambda weight, mask, b, a, scale: (weight + b @ a) * mask
            ),
            "the adapters are lost: what they learnt at the places that are kept belongs to the "
            "result": (lambda weight, mask, b, a, scale: weight * mask),
            "the mask is the wrong way round: 1 stands for a weight that is kept": (
                lambda weight, mask, b, a, scale: weight + scale * b @ a * (1 - mask)
            ),
        },
        right=(lambda weight, mask, b, a, scale: weight + scale * (b @ a) * mask,),
        kind="core",
        minutes=4,
    ),
    "13.5": Exercise(
        _spend,
        _cases(5, _budget_case),
        {
            "the last segment that is touched is taken in part, so that the whole budget is "
            "spent": (_all_or_nothing),
            "the dearest segments went first: begin with the lowest price": (
                lambda prices, widths, budget: _spend(-prices, widths, budget)
            ),
            "every segment got the same share: that is the uniform allocation, prices play no "
            "part in it": (lambda prices, widths, budget: widths * budget / widths.sum()),
            "the widths are sorted, the prices should be": lambda prices, widths, budget: _spend(
                widths, widths, budget
            ),
        },
        right=(_by_cumsum,),
        kind="stretch",
        minutes=8,
    ),
}
