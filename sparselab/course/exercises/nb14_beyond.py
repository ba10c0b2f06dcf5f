"""The exercises of notebook 14."""

import math

import torch

from .checking import Exercise, mistakes


# 14.1 the bytes of a packed matrix
# kept values of so many bits, one bit a weight for the mask
def _packed_bytes(rows, columns, zeros, bits):
    return (rows * columns - zeros) * bits // 8 + math.ceil(rows * columns / 8)


def _values_alone(rows, columns, zeros, bits):
    """that is the size of the kept values alone; what says where they stand?"""
    return (rows * columns - zeros) * bits // 8


def _mask_of_the_kept(rows, columns, zeros, bits):
    """the mask has one bit for every weight, also for those that are gone"""
    kept = rows * columns - zeros
    return kept * bits // 8 + math.ceil(kept / 8)


def _bits(rows, columns, zeros, bits):
    """those are bits, not bytes; eight of them are one byte"""
    return (rows * columns - zeros) * bits + rows * columns


def _zeros_stored(rows, columns, zeros, bits):
    """the zeros are what is left out, the others are stored"""
    return zeros * bits // 8 + math.ceil(rows * columns / 8)


# 14.2 OWL's shares
# [blocks] -> [blocks], mean target, farthest block `spread` away
def _owl_shares(outliers, target, spread):
    centred = outliers - outliers.mean()
    return target - spread * centred / centred.abs().max()


def _published(outliers, target, spread):
    """stretching to a range of twice the spread and centring, as the published code does, lets a
    block go too far"""
    stretched = 2 * spread * (outliers - outliers.min()) / (outliers.max() - outliers.min())
    return target - (stretched - stretched.mean())


def _more_for_outliers(outliers, target, spread):
    """more outliers must mean fewer zeros: look at the sign"""
    return 2 * target - _owl_shares(outliers, target, spread)


def _mean_off_target(outliers, target, spread):
    """the mean over the blocks is not the target: subtract the mean of the outlier shares first"""
    return target - spread * outliers / outliers.abs().max()


def _not_scaled(outliers, target, spread):
    """the shares of the outliers must be scaled, so that the farthest block is `spread` away"""
    return target - spread * (outliers - outliers.mean())


# 14.3 momentum under a mask
def _train(weight, mask, velocity, gradients, rate):  # [r, c] x 3, [steps, r, c] -> [r, c]
    weight = weight * mask
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient
        weight = (weight - rate * velocity) * mask
    return weight


def _mask_gradients(weight, mask, velocity, gradients, rate):
    """the mask on the gradients is too late: the velocity from before the pruning still moves the
    pruned weights"""
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
    """the mask is applied once, and the first step fills the zeros"""
    weight = weight * mask
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient
        weight = weight - rate * velocity
    return weight


def _no_momentum(weight, mask, velocity, gradients, rate):
    """the velocity is gone: momentum is part of the training that you are to repair"""
    weight = weight * mask
    for gradient in gradients:
        weight = (weight - rate * gradient) * mask
    return weight


def _mask_turned(weight, mask, *rest):
    """the mask is the wrong way round: 1 stands for a weight that is kept"""
    return _train(weight, 1 - mask, *rest)


# 14.4 a merge that keeps the zeros
def _merge(weight, mask, b, a, scale):  # [r, c] x 2, [r, k], [k, c] -> [r, c]
    return (weight + scale * b @ a) * mask


def _merge_masked(weight, mask, b, a, scale):
    return weight + scale * (b @ a) * mask


def _zeros_filled(weight, mask, b, a, scale):
    """this fills the zeros: a product of rank k is nowhere zero"""
    return weight + scale * b @ a


def _scale_forgotten(weight, mask, b, a, scale):
    """the product must be scaled, by alpha / rank"""
    return (weight + b @ a) * mask


def _adapters_lost(weight, mask, b, a, scale):
    """the adapters are lost: what they learnt at the places that are kept belongs to the result"""
    return weight * mask


def _merged_where_pruned(weight, mask, b, a, scale):
    """the mask is the wrong way round: 1 stands for a weight that is kept"""
    return weight + scale * b @ a * (1 - mask)


# 14.5 a budget spent by price
# [segments] x 2 -> how much of each segment is taken, [segments]
def _spend(prices, widths, budget):
    taken = torch.zeros_like(widths)
    for place in prices.argsort(stable=True):
        taken[place] = min(widths[place].item(), budget)
        budget -= taken[place].item()
    return taken


def _all_or_nothing(prices, widths, budget):
    """the last segment that is touched is taken in part, so that the whole budget is spent"""
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
    return make(generator), make(generator), make(generator)


def _training_case(generator):
    weight, velocity = (
        torch.randn(3, 4, generator=generator),
        torch.randn(3, 4, generator=generator),
    )
    mask = (torch.rand(3, 4, generator=generator) > 0.5).float()
    return weight, mask, velocity, torch.randn(4, 3, 4, generator=generator), 0.1


def _merge_case(generator):
    mask = (torch.rand(4, 6, generator=generator) > 0.6).float()
    weight = torch.randn(4, 6, generator=generator) * mask
    b, a = torch.randn(4, 2, generator=generator), torch.randn(2, 6, generator=generator)
    return weight, mask, b, a, 2.0


def _budget_case(generator):
    prices, widths = torch.rand(7, generator=generator), torch.rand(7, generator=generator) + 0.5
    return prices, widths, 0.6 * widths.sum().item()


def _dearest_first(prices, widths, budget):
    """the dearest segments went first: begin with the lowest price"""
    return _spend(-prices, widths, budget)


def _same_share(prices, widths, budget):
    """every segment got the same share: that is the uniform allocation, prices play no part in
    it"""
    return widths * budget / widths.sum()


def _by_width(prices, widths, budget):
    """the widths are sorted, the prices should be"""
    return _spend(widths, widths, budget)


EXERCISES = {
    "14.1": Exercise(
        _packed_bytes,
        ((256, 1024, 183500, 16), (5, 7, 20, 32), (3, 3, 0, 16)),
        mistakes(_values_alone, _mask_of_the_kept, _bits, _zeros_stored),
        kind="warm-up",
        minutes=3,
    ),
    "14.2": Exercise(
        _owl_shares,
        (
            (torch.tensor([0.0, 1, 5]), 0.7, 0.09),
            (torch.tensor([2.0, 3, 4, 3]), 0.6, 0.1),
            (torch.tensor([0.1, 0.9, 0.2, 0.3, 0.1]), 0.8, 0.05),
        ),
        mistakes(_more_for_outliers, _published, _mean_off_target, _not_scaled),
        minutes=6,
    ),
    "14.3": Exercise(
        _train,
        _cases(3, _training_case),
        mistakes(_mask_gradients, _mask_first, _no_momentum, _mask_turned),
        right=(_mask_both,),
        kind="find-the-bug",
        minutes=7,
    ),
    "14.4": Exercise(
        _merge,
        _cases(4, _merge_case),
        mistakes(_zeros_filled, _scale_forgotten, _adapters_lost, _merged_where_pruned),
        right=(_merge_masked,),
        minutes=4,
    ),
    "14.5": Exercise(
        _spend,
        _cases(5, _budget_case),
        mistakes(_all_or_nothing, _dearest_first, _same_share, _by_width),
        right=(_by_cumsum,),
        kind="stretch",
        minutes=8,
    ),
}
