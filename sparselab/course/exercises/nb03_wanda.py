"""The exercises of notebook 03."""

import math

import torch
from torch import Tensor

from .checking import Exercise


def _draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# 03.1: the score
def wanda_score(weight, x):
    return weight.abs() * x.square().sum(0).sqrt()


def _square_case(seed: int, r: int, c: int) -> tuple[Tensor, Tensor]:
    """As many tokens as inputs, so that the wrong axis gives a number and not an error; loudness
    differs by input."""
    draw = _draw(seed)
    return torch.randn(r, c, generator=draw), (
        torch.randn(c, c, generator=draw) + 0.3
    ) * torch.linspace(0.5, 4, c)


# 03.2: the mask
def wanda_mask(scores, sparsity):
    zeros = math.floor(sparsity * scores.shape[1] + 1e-6)
    pruned = scores.argsort(dim=1, stable=True)[:, :zeros]
    return torch.ones_like(scores, dtype=torch.bool).scatter(1, pruned, False)


def _mask_by_threshold(scores, sparsity):
    """The first score that stays is the threshold; with 0 zeros it is the lowest of all."""
    zeros = int(sparsity * scores.shape[1] + 1e-6)
    return scores >= scores.kthvalue(zeros + 1, dim=1, keepdim=True).values


def _all_where_none(scores, sparsity):
    zeros = int(sparsity * scores.shape[1] + 1e-6)
    return scores > scores.sort(dim=1).values[:, zeros - 1, None]  # place -1 is the highest score


def _over_the_matrix(scores, sparsity):
    return wanda_mask(scores.reshape(1, -1), sparsity).view_as(scores)


def _over_columns(scores, sparsity):
    return wanda_mask(scores.T.contiguous(), sparsity).T


def _one_too_many(scores, sparsity):
    place = math.floor(sparsity * scores.shape[1] + 1e-6)
    return scores > scores.sort(dim=1).values[:, place : place + 1]


def _rounded_up(scores, sparsity):
    return wanda_mask(scores, math.ceil(sparsity * scores.shape[1] - 1e-6) / scores.shape[1])


def _scores(seed: int, r: int, c: int, sparsity: float) -> tuple[Tensor, float]:
    return torch.rand(r, c, generator=_draw(seed)) * torch.linspace(1, 3, r)[:, None], sparsity


# 03.3: running norms in half precision
def running_norms(batches):
    square, seen = 0, 0
    for batch in batches:
        new = len(batch)
        square = square * seen / (seen + new) + batch.float().square().sum((0, 1)) / (seen + new)
        seen += new
    return square.sqrt()


def _norms_at_once(batches):
    x = torch.cat([batch.flatten(0, 1) for batch in batches]).double()
    return (x.square().sum(0) / sum(map(len, batches))).sqrt().float()


def _half_squares(batches):
    square, seen = 0, 0
    for batch in batches:
        new = len(batch)
        square = square * seen / (seen + new) + batch.square().sum((0, 1)).float() / (seen + new)
        seen += new
    return square.sqrt()


def _mean_of_norms(batches):
    total = sum(batch.float().flatten(0, 1).norm(dim=0) for batch in batches)
    return total / sum(map(len, batches))


def _without_root(batches):
    return running_norms(batches).square()


def _old_not_rescaled(batches):
    square, seen = 0, 0
    for batch in batches:
        seen += len(batch)
        square = square + batch.float().square().sum((0, 1)) / seen
    return square.sqrt()


def _per_token(batches):
    return running_norms(batches) / batches[0].shape[1] ** 0.5


def _loud_batches(seed: int, sizes: tuple[int, ...], c: int) -> tuple[list[Tensor]]:
    """float16, and the last input so loud that its square is beyond float16."""
    scale = torch.ones(c)
    scale[-1] = 400
    return (
        [(torch.randn(size, 6, c, generator=_draw(seed + size)) * scale).half() for size in sizes],
    )


# 03.4: groups
def nm_mask(scores, n, m):
    groups = scores.reshape(len(scores), -1, m)
    pruned = groups.argsort(dim=2)[:, :, :n]
    return torch.ones_like(groups, dtype=torch.bool).scatter(2, pruned, False).reshape(scores.shape)


def _nm_by_loop(scores, n, m):
    mask = torch.ones_like(scores, dtype=torch.bool)
    for start in range(0, scores.shape[1], m):
        lowest = scores[:, start : start + m].topk(n, dim=1, largest=False).indices + start
        mask.scatter_(1, lowest, False)
    return mask


def _along_outputs(scores, n, m):
    return nm_mask(scores.T.contiguous(), n, m).T


def _strided(scores, n, m):
    groups = scores.reshape(len(scores), m, -1)
    pruned = groups.argsort(dim=1)[:, :n]
    return torch.ones_like(groups, dtype=torch.bool).scatter(1, pruned, False).reshape(scores.shape)


# 03.5: centred inputs
def centred_prune(weight, x, zeros):
    mean = x.mean(0)
    scores = weight.abs() * (x - mean).square().sum(0).sqrt()
    mask = torch.ones_like(weight, dtype=torch.bool).scatter(
        1, scores.argsort(dim=1)[:, :zeros], False
    )
    return mask, (weight * ~mask) @ mean


def _centred_by_variance(weight, x, zeros):
    scores = weight.square() * x.double().var(0)
    pruned = torch.zeros_like(weight, dtype=torch.bool).scatter(
        1, scores.topk(zeros, largest=False).indices, True
    )
    return ~pruned, weight.masked_fill(~pruned, 0) @ x.mean(0)


def _not_centred(weight, x, zeros):
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask.scatter_(1, wanda_score(weight, x).argsort(dim=1)[:, :zeros], False)
    return mask, (weight * ~mask) @ x.mean(0)


def _shift_of_the_kept(weight, x, zeros):
    mask, _ = centred_prune(weight, x, zeros)
    return mask, (weight * mask) @ x.mean(0)


def _shift_negative(weight, x, zeros):
    mask, shift = centred_prune(weight, x, zeros)
    return mask, -shift


def _shift_of_sums(weight, x, zeros):
    mask, shift = centred_prune(weight, x, zeros)
    return mask, shift * len(x)


def _mean_over_inputs(weight, x, zeros):
    scores = weight.abs() * (x - x.mean(1, keepdim=True)).square().sum(0).sqrt()
    mask = torch.ones_like(weight, dtype=torch.bool).scatter(
        1, scores.argsort(dim=1)[:, :zeros], False
    )
    return mask, (weight * ~mask) @ x.mean(0)


def _shifted(seed: int, r: int, c: int, zeros: int) -> tuple[Tensor, Tensor, int]:
    """Inputs with different means and spreads; the loudest has a large mean and hardly varies."""
    draw = _draw(seed)
    spread, mean = torch.linspace(0.2, 2, c), torch.linspace(3, -1, c)
    return (
        torch.randn(r, c, generator=draw),
        torch.randn(20, c, generator=draw) * spread + mean,
        zeros,
    )


EXERCISES = {
    "03.1": Exercise(
        wanda_score,
        (_square_case(1, 3, 5), _square_case(2, 4, 6)),
        {
            "The square root is missing: the score is |w| times the norm, not times its square. "
            "Without the root loud inputs count twice.": (
                lambda weight, x: weight.abs() * x.square().sum(0)
            ),
            "The norm runs over the wrong axis: each input has one norm, over all tokens. Here "
            "x is [tokens, inputs].": (lambda weight, x: weight.abs() * x.square().sum(1).sqrt()),
            "A negative weight matters as much as a positive one: take the absolute value.": (
                lambda weight, x: weight * x.square().sum(0).sqrt()
            ),
            "That is the mean input: positive and negative inputs cancel, though each of them "
            "makes an output.": (lambda weight, x: weight.abs() * x.mean(0).abs()),
            "You summed absolute values, the 1-norm. Equation (2) has squares, so it is the "
            "2-norm.": (lambda weight, x: weight.abs() * x.abs().sum(0)),
        },
        right=(lambda weight, x: weight.abs() * x.norm(dim=0),),
        kind="warm-up",
        minutes=5,
    ),
    "03.2": Exercise(
        wanda_mask,
        (
            _scores(3, 4, 8, 0.5),
            _scores(4, 3, 10, 0.25),
            _scores(5, 5, 7, 0.6),
            _scores(13, 2, 4, 0.2),
        ),
        {
            "You compare over the whole matrix, as torchao's Wanda did. Wanda compares within "
            "each output row: sort along dim=1.": (_over_the_matrix),
            "You compare within each column, over the outputs. A row of the weight is one "
            "output: sort along dim=1.": (_over_columns),
            "Your mask is inverted: True means kept, and the lowest scores go.": (
                lambda scores, sparsity: ~wanda_mask(scores, sparsity)
            ),
            "One weight too many goes in every row: the sorted score at place k is the first "
            "that stays, so `<=` takes it along. SparseGPT's code has this fault.": (_one_too_many),
            "Where the count is 0 no weight may go, and all go: place zeros - 1 is then -1, "
            "which is the highest score.": (_all_where_none),
            "You rounded the count up. The convention is the floor: 2 zeros of 10 at sparsity "
            "0.25.": (_rounded_up),
            "The highest scores went; prune the lowest.": lambda scores, sparsity: wanda_mask(
                -scores, sparsity
            ),
        },
        right=(_mask_by_threshold,),
        kind="find-the-bug",
        minutes=5,
    ),
    "03.3": Exercise(
        running_norms,
        (_loud_batches(6, (2, 3, 1), 4), _loud_batches(7, (1, 2), 3)),
        {
            "The loud input became infinite: its square is beyond 65504, the largest float16. "
            "Convert to float32 before you square.": (_half_squares),
            "You added up norms. Norms do not add; squares do. Sum the squares over all batches "
            "and take one root at the end.": (_mean_of_norms),
            "The root at the end is missing: these are squares.": _without_root,
            "The old mean keeps its full weight when a batch is added. Scale it by seen / (seen "
            "+ new) first.": (_old_not_rescaled),
            "You divided by the number of tokens. The published code divides by the number of "
            "sequences; the mask is the same, the number is not.": (_per_token),
        },
        right=(_norms_at_once,),
        kind="find-the-bug",
        minutes=10,
        rtol=1e-3,
    ),
    "03.4": Exercise(
        nm_mask,
        (
            (torch.rand(4, 8, generator=_draw(8)), 2, 4),
            (torch.rand(8, 8, generator=_draw(9)), 3, 4),
            (torch.rand(8, 16, generator=_draw(10)), 4, 8),
        ),
        {
            "Your groups run along the outputs. A group is m consecutive inputs of one row.": (
                _along_outputs
            ),
            "Your groups are spread out: reshape to [r, c / m, m], so that neighbours stay "
            "together.": (_strided),
            "You kept n of m. Here n counts the zeros, as in the papers; NVIDIA's N:M counts "
            "what stays, and 2:4 hides the difference.": lambda scores, n, m: nm_mask(
                scores, m - n, m
            ),
            "You pruned the highest scores of each group.": lambda scores, n, m: nm_mask(
                -scores, n, m
            ),
            "Your mask is inverted: True means kept.": lambda scores, n, m: ~nm_mask(scores, n, m),
        },
        right=(_nm_by_loop,),
        kind="core",
        minutes=10,
    ),
    "03.5": Exercise(
        centred_prune,
        (_shifted(11, 3, 6, 3), _shifted(12, 4, 8, 5)),
        {
            "The mask is Wanda's own: the score must use the inputs after their mean is taken "
            "away, because the bias takes care of the mean.": (_not_centred),
            "You computed the mean output of the kept weights. The bias must replace what the "
            "pruned ones gave.": (_shift_of_the_kept),
            "The sign is wrong: what the pruned weights gave on average is added to the bias.": (
                _shift_negative
            ),
            "You used the sum over the tokens; the bias is added once for each token, so it "
            "needs the mean.": (_shift_of_sums),
            "You subtracted the mean over the inputs of a token. Each input has its own mean, "
            "over the tokens: dim=0.": (_mean_over_inputs),
        },
        right=(_centred_by_variance,),
        kind="stretch",
        minutes=15,
    ),
}
