"""The exercises of notebook 14."""

import math

import torch
from torch import Tensor

from .checking import Exercise, mistakes, normal


# 14.1: training under a mask
def train_masked(weights, masks, step, steps):
    """Train; what a mask does not name (False) goes back to its start after each step."""
    start = [weight.clone() for weight in weights]
    for _ in range(steps):
        step()
        for weight, mask, old in zip(weights, masks, start, strict=True):
            weight.copy_(torch.where(mask, weight, old))


def _train_by_index(weights, masks, step, steps):
    start = [weight.detach().clone() for weight in weights]
    for _ in range(steps):
        step()
        for weight, mask, old in zip(weights, masks, start, strict=True):
            weight[~mask] = old[~mask]


def _masked_at_the_end(weights, masks, step, steps):
    """You put the weights back only once, at the end. Until then the others learn to work with
    weights that will be gone: put them back after each step."""
    start = [weight.clone() for weight in weights]
    for _ in range(steps):
        step()
    for weight, mask, old in zip(weights, masks, start, strict=True):
        weight.copy_(torch.where(mask, weight, old))


def _set_to_zero(weights, masks, step, steps):
    """You set the weights outside of the mask to 0. They go back to what they were at the start,
    which is 0 only where the model was pruned."""
    for _ in range(steps):
        step()
        for weight, mask in zip(weights, masks, strict=True):
            weight.mul_(mask)


def _other_way_round(weights, masks, step, steps):
    """The mask is the wrong way round: True stands for a weight that learns."""
    train_masked(weights, [~mask for mask in masks], step, steps)


def _put_back_before(weights, masks, step, steps):
    """You put the weights back before the step, so the last step still moves them: do it after."""
    start = [weight.clone() for weight in weights]
    for _ in range(steps):
        for weight, mask, old in zip(weights, masks, start, strict=True):
            weight.copy_(torch.where(mask, weight, old))
        step()


def _moved_along(weights, masks, step, steps):
    """Nothing was put back. If you kept the start as `weights` itself, it moved along with them:
    take a copy of each, with .clone()."""
    for _ in range(steps):
        step()


def _one_step(weights, masks, step, steps):
    """You trained for one step only: repeat it `steps` times."""
    train_masked(weights, masks, step, 1)


@torch.no_grad()
def _trained(answer, first: Tensor, second: Tensor, masks: list[Tensor], steps: int) -> Tensor:
    """Two matrices [3, 3] in a row, trained with momentum; both of them, [6, 3]."""
    weights = [each.clone().requires_grad_() for each in (first, second)]
    optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9)

    def step():
        with torch.enable_grad():
            (weights[1] @ weights[0] - torch.eye(3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    answer(weights, masks, step, steps)
    return torch.cat([weight.detach() for weight in weights])


def _two_matrices(seed: int, pruned: bool) -> tuple:
    first, second = normal(3, 3, seed=seed), normal(3, 3, seed=seed + 1)
    masks = [normal(3, 3, seed=seed + 2) > 0, normal(3, 3, seed=seed + 3) > 0]
    if pruned:
        first, second = first * masks[0], second * masks[1]
    return first, second, masks, 3


# 14.2: repair and adaptation
def gain_parts(P, P_after, D, D_after):
    """The gain of a fine-tuning in nats: what the dense model gains, too, and the rest."""
    adaptation = math.log(D / D_after)
    return adaptation, math.log(P / P_after) - adaptation


def _gap_before_less_gap_after(P, P_after, D, D_after):
    return math.log(D) - math.log(D_after), math.log(P / D) - math.log(P_after / D_after)


def _parts_swapped(P, P_after, D, D_after):
    """The two are in the wrong order: adaptation first, then repair."""
    return gain_parts(P, P_after, D, D_after)[::-1]


def _without_logarithms(P, P_after, D, D_after):
    """Those are differences of perplexities. Losses are compared in nats: take logarithms."""
    return D - D_after, P - P_after - (D - D_after)


def _all_is_repair(P, P_after, D, D_after):
    """That is the whole gain of the pruned model. Repair is what the dense model does not gain:
    subtract the adaptation."""
    return math.log(D / D_after), math.log(P / P_after)


def _gains_negative(P, P_after, D, D_after):
    """The signs are turned: a perplexity that falls is a gain, so before stands over after."""
    adaptation, repair = gain_parts(P, P_after, D, D_after)
    return -adaptation, -repair


# 14.3: the bytes of a packed matrix
def packed_bytes(rows, columns, zeros, bits):
    """Kept values of so many bits, and one bit a weight for the mask, in whole bytes."""
    return (rows * columns - zeros) * bits // 8 + math.ceil(rows * columns / 8)


def _values_alone(rows, columns, zeros, bits):
    """That is the size of the kept values alone; what says where they stand?"""
    return (rows * columns - zeros) * bits // 8


def _mask_of_the_kept(rows, columns, zeros, bits):
    """The mask has one bit for every weight, also for those that are gone."""
    kept = rows * columns - zeros
    return kept * bits // 8 + math.ceil(kept / 8)


def _bits(rows, columns, zeros, bits):
    """Those are bits, not bytes; eight of them are one byte."""
    return (rows * columns - zeros) * bits + rows * columns


def _zeros_stored(rows, columns, zeros, bits):
    """The zeros are what is left out, the others are stored."""
    return zeros * bits // 8 + math.ceil(rows * columns / 8)


# 14.4: OWL's shares
def owl_shares(outliers, target, spread):
    """The zeros of each block [blocks], from its share of outliers: mean target, farthest block
    `spread` away."""
    centred = outliers - outliers.mean()
    return target - spread * centred / centred.abs().max()


def _published(outliers, target, spread):
    """Stretching to a range of twice the spread and centring, as the published code does, lets a
    block go too far."""
    stretched = 2 * spread * (outliers - outliers.min()) / (outliers.max() - outliers.min())
    return target - (stretched - stretched.mean())


def _more_for_outliers(outliers, target, spread):
    """More outliers must mean fewer zeros: look at the sign."""
    return 2 * target - owl_shares(outliers, target, spread)


def _mean_off_target(outliers, target, spread):
    """The mean over the blocks is not the target: subtract the mean of the outlier shares first."""
    return target - spread * outliers / outliers.abs().max()


def _not_scaled(outliers, target, spread):
    """The shares of the outliers must be scaled, so that the farthest block is `spread` away."""
    return target - spread * (outliers - outliers.mean())


# 14.5: a budget spent by price
def spend_budget(prices, widths, budget):
    """How much of each segment is taken, [segments], the cheapest first."""
    taken = torch.zeros_like(widths)
    for place in prices.argsort(stable=True):
        taken[place] = min(widths[place].item(), budget)
        budget -= taken[place].item()
    return taken


def _by_cumsum(prices, widths, budget):
    order = prices.argsort(stable=True)
    before = widths[order].cumsum(0) - widths[order]
    taken = torch.zeros_like(widths)
    taken[order] = torch.minimum((budget - before).clamp(min=0), widths[order])
    return taken


def _all_or_nothing(prices, widths, budget):
    """The last segment that is touched is taken in part, so that the whole budget is spent."""
    taken = torch.zeros_like(widths)
    for place in prices.argsort(stable=True):
        if widths[place] <= budget:
            taken[place] = widths[place]
            budget -= widths[place].item()
    return taken


def _highest_price_first(prices, widths, budget):
    """The segments with the highest prices went first: begin with the lowest price."""
    return spend_budget(-prices, widths, budget)


def _same_share(prices, widths, budget):
    """Every segment got the same share: that is the uniform allocation, prices play no part in
    it."""
    return widths * budget / widths.sum()


def _by_width(prices, widths, budget):
    """The widths are sorted, the prices should be."""
    return spend_budget(widths, widths, budget)


def _budget_case(seed: int) -> tuple[Tensor, Tensor, float]:
    draw = torch.Generator().manual_seed(seed)
    prices, widths = torch.rand(7, generator=draw), torch.rand(7, generator=draw) + 0.5
    return prices, widths, 0.6 * widths.sum().item()


# 14.6: the word that gains most
def most_gained(before, after):
    """The token whose mean probability rises most, from logits [n, V] of two models."""
    return (after.softmax(-1) - before.softmax(-1)).mean(0).argmax().item()


def _by_log_softmax(before, after):
    rise = after.log_softmax(-1).exp().sum(0) - before.log_softmax(-1).exp().sum(0)
    return int(rise.argmax())


def _by_logits(before, after):
    """You compared logits. Their mean can rise most for a token that stays improbable: take the
    softmax of each row first."""
    return int((after - before).mean(0).argmax())


def _most_probable_after(before, after):
    """That is the most probable token of the second model. It may have been that before, too: what
    counts is the rise."""
    return int(after.softmax(-1).mean(0).argmax())


def _fell_most(before, after):
    """That is the token that loses most: subtract the first model from the second."""
    return most_gained(after, before)


def _by_ratio(before, after):
    """You took the ratio of the probabilities. For a token that nobody ever writes, any ratio is
    possible: take the difference."""
    return int((after.softmax(-1).mean(0) / before.softmax(-1).mean(0)).argmax())


def _two_models() -> tuple[Tensor, Tensor]:
    """Logits [6, 5]. Of the tokens 0 to 4: always probable; rises; falls; rare, and its logit rises
    most; rarer, and at one place no longer."""
    before = torch.tensor([5.0, 2.0, 4.0, -9.0, -14.0]) + normal(6, 5, seed=1, scale=0.2)
    change = torch.tensor([0.4, 2.6, -2.0, 9.0, 0.0]).repeat(6, 1)
    change[0, 4] = 15.0
    return before, before + change + normal(6, 5, seed=2, scale=0.2)


# 14.7: a merge that keeps the zeros
def merge(weight, mask, b, a, scale):
    """LoRA's product added to a pruned weight [r, c], where the mask is 1."""
    return (weight + scale * b @ a) * mask


def _merge_masked(weight, mask, b, a, scale):
    return weight + scale * (b @ a) * mask


def _zeros_filled(weight, mask, b, a, scale):
    """This fills the zeros: a product of rank k is nowhere zero."""
    return weight + scale * b @ a


def _scale_forgotten(weight, mask, b, a, scale):
    """The product must be scaled, by alpha / rank."""
    return (weight + b @ a) * mask


def _adapters_lost(weight, mask, b, a, scale):
    """The adapters are lost: what they learnt at the places that are kept belongs to the result."""
    return weight * mask


def _merged_where_pruned(weight, mask, b, a, scale):
    """The mask is the wrong way round: 1 stands for a weight that is kept."""
    return weight + scale * b @ a * (1 - mask)


def _merge_case(seed: int) -> tuple:
    mask = (normal(4, 6, seed=seed) > 0.3).float()
    b, a = normal(4, 2, seed=seed + 1), normal(2, 6, seed=seed + 2)
    return normal(4, 6, seed=seed + 3) * mask, mask, b, a, 2.0


# 14.8: momentum under a mask
def train_momentum(weight, mask, velocity, gradients, rate):
    """Gradient steps with momentum that keep the zeros, from a velocity that is not zero."""
    weight = weight * mask
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient
        weight = (weight - rate * velocity) * mask
    return weight


def _mask_gradients(weight, mask, velocity, gradients, rate):
    """The mask on the gradients is too late: the velocity from before the pruning still moves the
    pruned weights."""
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
    """The mask is applied once, and the first step fills the zeros."""
    weight = weight * mask
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient
        weight = weight - rate * velocity
    return weight


def _no_momentum(weight, mask, velocity, gradients, rate):
    """The velocity is gone: momentum is part of the training that you are to repair."""
    weight = weight * mask
    for gradient in gradients:
        weight = (weight - rate * gradient) * mask
    return weight


def _mask_turned(weight, mask, *rest):
    """The mask is the wrong way round: 1 stands for a weight that is kept."""
    return train_momentum(weight, 1 - mask, *rest)


def _momentum_case(seed: int) -> tuple:
    mask = (normal(3, 4, seed=seed) > 0).float()
    weight, velocity = normal(3, 4, seed=seed + 1), normal(3, 4, seed=seed + 2)
    return weight, mask, velocity, normal(4, 3, 4, seed=seed + 3), 0.1


EXERCISES = {
    "14.1": Exercise(
        train_masked,
        (_two_matrices(1, pruned=True), _two_matrices(11, pruned=False)),
        mistakes(
            _masked_at_the_end,
            _set_to_zero,
            _other_way_round,
            _put_back_before,
            _moved_along,
            _one_step,
        ),
        right=(_train_by_index,),
        minutes=6,
        trial=_trained,
        draw="two matrices after three steps",
        quiet=True,
    ),
    "14.2": Exercise(
        gain_parts,
        ((80.0, 60.0, 50.0, 45.0), (131.0, 91.0, 73.0, 69.0), (30.0, 31.0, 20.0, 25.0)),
        mistakes(_parts_swapped, _without_logarithms, _all_is_repair, _gains_negative),
        right=(_gap_before_less_gap_after,),
        kind="warm-up",
        minutes=3,
        quiet=True,
    ),
    "14.3": Exercise(
        packed_bytes,
        ((256, 1024, 183500, 16), (5, 7, 20, 32), (3, 3, 0, 16)),
        mistakes(_values_alone, _mask_of_the_kept, _bits, _zeros_stored),
        kind="warm-up",
        minutes=3,
        quiet=True,
    ),
    "14.4": Exercise(
        owl_shares,
        (
            (torch.tensor([0.0, 1, 5]), 0.7, 0.09),
            (torch.tensor([2.0, 3, 4, 3]), 0.6, 0.1),
            (torch.tensor([0.1, 0.9, 0.2, 0.3, 0.1]), 0.8, 0.05),
        ),
        mistakes(_more_for_outliers, _published, _mean_off_target, _not_scaled),
        minutes=5,
        draw="shares of zeros",
        quiet=True,
    ),
    "14.5": Exercise(
        spend_budget,
        (_budget_case(5), _budget_case(6), _budget_case(7)),
        mistakes(_all_or_nothing, _highest_price_first, _same_share, _by_width),
        right=(_by_cumsum,),
        minutes=7,
        draw="taken of each segment",
        quiet=True,
    ),
    "14.6": Exercise(
        most_gained,
        (_two_models(),),
        mistakes(_by_logits, _most_probable_after, _fell_most, _by_ratio),
        right=(_by_log_softmax,),
        minutes=4,
        quiet=True,
    ),
    "14.7": Exercise(
        merge,
        (_merge_case(4), _merge_case(14)),
        mistakes(_zeros_filled, _scale_forgotten, _adapters_lost, _merged_where_pruned),
        right=(_merge_masked,),
        kind="stretch",
        minutes=4,
        draw="the merged weight",
        quiet=True,
    ),
    "14.8": Exercise(
        train_momentum,
        (_momentum_case(3), _momentum_case(13)),
        mistakes(_mask_gradients, _mask_first, _no_momentum, _mask_turned),
        right=(_mask_both,),
        kind="find-the-bug",
        minutes=7,
        draw="the weight after the training",
        quiet=True,
    ),
}
