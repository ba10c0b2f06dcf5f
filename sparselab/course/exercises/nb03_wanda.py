"""The exercises of notebook 03."""

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ... import viz
from .checking import Exercise, mistakes


def _draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _without_lowest(scores: Tensor, zeros: int, dim: int = 1) -> Tensor:
    """A mask in which so many of the lowest scores along a dimension are pruned."""
    pruned = scores.argsort(dim=dim, stable=True).narrow(dim, 0, zeros)
    return torch.ones_like(scores, dtype=torch.bool).scatter(dim, pruned, False)


# 03.1: the score
def wanda_score(weight, x):
    """|W_ij| ||x_j||_2, from weights [r, c] and inputs [c, N]."""
    return weight.abs() * x.square().sum(1).sqrt()


def _square_case(seed: int, r: int, c: int) -> tuple[Tensor, Tensor]:
    """As many tokens as inputs, so that the wrong axis gives a number and not an error; the norms
    differ by input."""
    draw = _draw(seed)
    weight, x = torch.randn(r, c, generator=draw), torch.randn(c, c, generator=draw) + 0.3
    return weight, x * torch.linspace(0.5, 4, c)[:, None]


def _squared_norms(weight, x):
    """The square root is missing: the score is |w| times the norm, not times its square. Without
    the root, inputs with a large norm count twice."""
    return weight.abs() * x.square().sum(1)


def _norm_of_tokens(weight, x):
    """The norm runs over the wrong axis: each input has one norm, over all tokens. Here x is
    [c, N], a row for each input."""
    return weight.abs() * x.square().sum(0).sqrt()


def _signed_weight(weight, x):
    """A negative weight matters as much as a positive one: take the absolute value."""
    return weight * x.square().sum(1).sqrt()


def _mean_input(weight, x):
    """That is the mean input: positive and negative inputs cancel, though each of them makes an
    output."""
    return weight.abs() * x.mean(1).abs()


def _one_norms(weight, x):
    """You summed absolute values, the 1-norm. Equation (2) has squares, so it is the 2-norm."""
    return weight.abs() * x.abs().sum(1)


def _one_norm_for_all(weight, x):
    """You took one norm of the whole X. A factor that all weights share changes no order: this is
    magnitude. Each input needs its own norm."""
    return weight.abs() * x.norm()


# 03.2: the mask
def wanda_mask(scores, sparsity):
    """A mask [r, c] that prunes the same number of lowest scores in every row."""
    return _without_lowest(scores, math.floor(sparsity * scores.shape[1] + 1e-6))


def _mask_by_threshold(scores, sparsity):
    """The first score that stays is the threshold; with 0 zeros it is the lowest of all."""
    zeros = int(sparsity * scores.shape[1] + 1e-6)
    return scores >= scores.kthvalue(zeros + 1, dim=1, keepdim=True).values


def _all_gone(scores, sparsity):
    """Where the count is 0 no weight may go, and all go: place zeros - 1 is then -1, which is the
    highest score."""
    zeros = int(sparsity * scores.shape[1] + 1e-6)
    return scores > scores.sort(dim=1).values[:, zeros - 1, None]


def _over_all(scores, sparsity):
    """You compare over the whole matrix, as torchao's Wanda did. Wanda compares within each output
    row: sort along dim=1."""
    return wanda_mask(scores.reshape(1, -1), sparsity).view_as(scores)


def _over_columns(scores, sparsity):
    """You compare within each column, over the outputs. A row of the weight is one output: sort
    along dim=1."""
    return wanda_mask(scores.T.contiguous(), sparsity).T


def _one_too_many(scores, sparsity):
    """One weight too many goes in every row: the sorted score at place k is the first that stays,
    so `<=` takes it along. SparseGPT's code has this fault."""
    place = math.floor(sparsity * scores.shape[1] + 1e-6)
    return scores > scores.sort(dim=1).values[:, place : place + 1]


def _rounded_up(scores, sparsity):
    """You rounded the count up. The convention is the floor: 2 zeros of 10 at sparsity 0.25."""
    return wanda_mask(scores, math.ceil(sparsity * scores.shape[1] - 1e-6) / scores.shape[1])


def _inverted(scores, sparsity):
    """Your mask is inverted: True means kept, and the lowest scores go."""
    return ~wanda_mask(scores, sparsity)


def _highest_go(scores, sparsity):
    """The highest scores went; prune the lowest."""
    return wanda_mask(-scores, sparsity)


def _scores(seed: int, r: int, c: int, sparsity: float) -> tuple[Tensor, float]:
    return torch.rand(r, c, generator=_draw(seed)) * torch.linspace(1, 3, r)[:, None], sparsity


# 03.3: groups
def nm_mask(scores, n, m):
    """A mask [r, c] with n zeros in every m consecutive inputs of a row."""
    groups = scores.reshape(len(scores), -1, m)
    return _without_lowest(groups, n, 2).reshape(scores.shape)


def _nm_by_loop(scores, n, m):
    mask = torch.ones_like(scores, dtype=torch.bool)
    for start in range(0, scores.shape[1], m):
        lowest = scores[:, start : start + m].topk(n, dim=1, largest=False).indices + start
        mask.scatter_(1, lowest, False)
    return mask


def _along_outputs(scores, n, m):
    """Your groups run along the outputs. A group is m consecutive inputs of one row."""
    return nm_mask(scores.T.contiguous(), n, m).T


def _strided(scores, n, m):
    """Your groups are spread out: reshape to [r, c / m, m], so that neighbours stay together."""
    groups = scores.reshape(len(scores), m, -1)
    return _without_lowest(groups, n).reshape(scores.shape)


def _no_groups(scores, n, m):
    """You compared within the whole row: the share of zeros is right, but some groups have more
    than n zeros and others fewer."""
    return wanda_mask(scores, n / m)


def _n_kept(scores, n, m):
    """You kept n of m. Here n counts the zeros, as in the papers; NVIDIA's N:M counts what stays,
    and 2:4 hides the difference."""
    return nm_mask(scores, m - n, m)


def _highest_of_groups(scores, n, m):
    """You pruned the highest scores of each group."""
    return nm_mask(-scores, n, m)


def _groups_inverted(scores, n, m):
    """Your mask is inverted: True means kept."""
    return ~nm_mask(scores, n, m)


# 03.4: the norms of inputs in half precision
def input_norms(batches):
    """The norm of every input over all tokens, [c], from batches [..., tokens, c] in float16."""
    squares = 0
    for batch in batches:
        squares = squares + batch.flatten(0, -2).float().square().sum(0)
    return squares.sqrt()


def _norms_at_once(batches):
    x = torch.cat([batch.flatten(0, -2) for batch in batches])
    return x.double().norm(dim=0).float()


def _half_squares(batches):
    """The outlier channel's norm is infinite: its squares are beyond 65504, the largest float16.
    Convert each batch to float32 before you square it."""
    squares = 0
    for batch in batches:
        squares = squares + batch.flatten(0, -2).square().sum(0).float()
    return squares.sqrt()


def _sum_of_norms(batches):
    """You added up norms. Norms do not add; squares do. Sum the squares over all batches and take
    one root at the end."""
    return sum(batch.flatten(0, -2).float().norm(dim=0) for batch in batches)


def _without_root(batches):
    """The root at the end is missing: these are squares."""
    return input_norms(batches).square()


def _last_batch(batches):
    """Only the last batch is left: add each batch's squares to those before it."""
    return input_norms(batches[-1:])


def _per_token(batches):
    """You divided by the number of tokens. That changes no mask, but the norm is asked for: the
    root of the sum."""
    return input_norms(batches) / sum(len(batch.flatten(0, -2)) for batch in batches) ** 0.5


def _outlier_batches(seed: int, sizes: tuple[int, ...], c: int) -> tuple[list[Tensor]]:
    """float16, and the last input so large that its square is beyond float16."""
    scale, batches = torch.ones(c), []
    scale[-1] = 400
    for size in sizes:
        x = torch.randn(size, 6, c, generator=_draw(seed + size))
        batches.append((x * scale).half())
    return (batches,)


# 03.5: centred inputs
def centred_prune(weight, x, zeros):
    """Wanda on centred inputs: the mask [r, c], and what is added to the bias [r]."""
    mean = x.mean(1)
    mask = _without_lowest(wanda_score(weight, x - mean[:, None]), zeros)
    return mask, (weight * ~mask) @ mean


def _centred_by_variance(weight, x, zeros):
    scores = weight.square() * x.double().var(1)
    lowest = scores.topk(zeros, largest=False).indices
    mask = torch.ones_like(weight, dtype=torch.bool).scatter(1, lowest, False)
    return mask, weight.masked_fill(mask, 0) @ x.mean(1)


def _not_centred(weight, x, zeros):
    """The mask is Wanda's own: the score must use the inputs after their mean is taken away,
    because the bias takes care of the mean."""
    mask = _without_lowest(wanda_score(weight, x), zeros)
    return mask, (weight * ~mask) @ x.mean(1)


def _shift_of_the_kept(weight, x, zeros):
    """You computed the mean output of the kept weights. The bias must replace what the pruned ones
    gave."""
    mask, _ = centred_prune(weight, x, zeros)
    return mask, (weight * mask) @ x.mean(1)


def _shift_negative(weight, x, zeros):
    """The sign is wrong: what the pruned weights gave on average is added to the bias."""
    mask, shift = centred_prune(weight, x, zeros)
    return mask, -shift


def _shift_of_sums(weight, x, zeros):
    """You used the sum over the tokens; the bias is added once for each token, so it needs the
    mean."""
    mask, shift = centred_prune(weight, x, zeros)
    return mask, shift * x.shape[1]


def _mean_over_inputs(weight, x, zeros):
    """You subtracted the mean over the inputs of a token. Each input has its own mean, over the
    tokens: dim=1."""
    mask = _without_lowest(wanda_score(weight, x - x.mean(0)), zeros)
    return mask, (weight * ~mask) @ x.mean(1)


def _shifted(seed: int, r: int, c: int, zeros: int) -> tuple[Tensor, Tensor, int]:
    """Inputs with different means and spreads; the one with the largest norm has a large mean and
    hardly varies."""
    draw = _draw(seed)
    weight, x = torch.randn(r, c, generator=draw), torch.randn(c, 20, generator=draw)
    spread, mean = torch.linspace(0.2, 2, c), torch.linspace(3, -1, c)
    return weight, x * spread[:, None] + mean[:, None], zeros


def _as_mask_and_shift(mine: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> Figure:
    """The mask where it differs, else the shift."""
    if torch.equal(mine[0], expected[0]):
        return viz.beside(mine[1], expected[1], "what is added to the bias")
    return viz.beside(mine[0], expected[0], "the mask, 1 = kept")


EXERCISES = {
    "03.1": Exercise(
        wanda_score,
        (_square_case(1, 3, 5), _square_case(2, 4, 6)),
        mistakes(
            _squared_norms,
            _norm_of_tokens,
            _signed_weight,
            _mean_input,
            _one_norms,
            _one_norm_for_all,
        ),
        right=(lambda weight, x: weight.abs() * x.norm(dim=1),),
        kind="warm-up",
        minutes=3,
        draw="the scores",
        quiet=True,
    ),
    "03.2": Exercise(
        wanda_mask,
        tuple(map(_scores, (3, 4, 5, 13), (4, 3, 5, 2), (8, 10, 7, 4), (0.5, 0.25, 0.6, 0.2))),
        mistakes(
            _over_all, _over_columns, _inverted, _one_too_many, _all_gone, _rounded_up, _highest_go
        ),
        right=(_mask_by_threshold,),
        minutes=6,
        draw="the mask, 1 = kept",
        quiet=True,
    ),
    "03.3": Exercise(
        nm_mask,
        (
            (torch.rand(4, 8, generator=_draw(8)), 2, 4),
            (torch.rand(8, 8, generator=_draw(9)), 3, 4),
            (torch.rand(8, 16, generator=_draw(10)), 4, 8),
        ),
        mistakes(
            _along_outputs, _strided, _no_groups, _n_kept, _highest_of_groups, _groups_inverted
        ),
        right=(_nm_by_loop,),
        minutes=6,
        draw="the mask, 1 = kept",
        quiet=True,
    ),
    "03.4": Exercise(
        input_norms,
        (_outlier_batches(6, (2, 3, 1), 4), _outlier_batches(7, (1, 2), 3)),
        mistakes(_half_squares, _sum_of_norms, _without_root, _last_batch, _per_token),
        right=(_norms_at_once,),
        kind="find-the-bug",
        minutes=4,
        rtol=1e-3,
        draw="the norms of the inputs",
        quiet=True,
    ),
    "03.5": Exercise(
        centred_prune,
        (_shifted(11, 3, 6, 3), _shifted(12, 4, 8, 5)),
        mistakes(
            _not_centred, _shift_of_the_kept, _shift_negative, _shift_of_sums, _mean_over_inputs
        ),
        right=(_centred_by_variance,),
        kind="stretch",
        minutes=12,
        draw=_as_mask_and_shift,
        quiet=True,
    ),
}
