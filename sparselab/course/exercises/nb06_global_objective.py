"""The exercises of notebook 06."""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ... import viz
from .checking import Exercise, mistakes, normal
from .nb02_local_objective import output_error


# 06.1: two errors and what they make of each other
def split_error(W2, U2, a, pruned_a):
    """The squared norms of what is handed on and of the own error, and their product term, of W2,
    U2 [r, c] and a, pruned_a [c, N]."""
    return _squares(W2 @ (a - pruned_a), (W2 - U2) @ pruned_a)


def _squares(handed, own):
    return (handed**2).sum().item(), (own**2).sum().item(), 2 * (handed * own).sum().item()


def _split_by_total(W2, U2, a, pruned_a):
    """The same: the third is what the first two lack of the whole."""
    handed, own = W2 @ (a - pruned_a), (W2 - U2) @ pruned_a
    first, second = handed.square().sum().item(), own.square().sum().item()
    return first, second, (handed + own).square().sum().item() - first - second


def _split_dense_input(W2, U2, a, pruned_a):
    """The second matrix makes its own error on the inputs that it really gets, a'. With the dense
    ones the three do not add up to the whole."""
    return _squares(W2 @ (a - pruned_a), (W2 - U2) @ a)


def _split_pruned_weight(W2, U2, a, pruned_a):
    """What the first matrix hands on goes through the dense W2. With the pruned one, its change is
    counted twice, and the three do not add up to the whole."""
    return _squares(U2 @ (a - pruned_a), (W2 - U2) @ pruned_a)


def _split_once(W2, U2, a, pruned_a):
    """The square of a sum contains the product twice: the factor 2 of the third term is missing."""
    first, second, third = split_error(W2, U2, a, pruned_a)
    return first, second, third / 2


def _split_absolute(W2, U2, a, pruned_a):
    """The third term has a sign, and you took it away. Negative means that the errors cancel."""
    first, second, third = split_error(W2, U2, a, pruned_a)
    return first, second, abs(third)


def _two_layers(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W2, a = normal(3, 4, seed=seed), normal(4, 8, seed=seed + 1).relu()
    U2 = W2 * (normal(3, 4, seed=seed + 2) > 0)
    return W2, U2, a, (a + normal(4, 8, seed=seed + 3, scale=0.5)).relu()


# 06.2: a chain of matrices, and all that lies between them
def chain_values(weights, biases, X):
    """The lists z, of L tensors [r, N], and a, of L - 1, that X [c, N] makes in a chain of L
    matrices with a ReLU after each but the last."""
    z, a = [], []
    for W, b in zip(weights, biases, strict=True):
        z.append(W @ (a[-1] if a else X) + b)
        a.append(z[-1].relu())
    return z, a[:-1]


def _chain_values_in_steps(weights, biases, X):
    z = [weights[0] @ X + biases[0]]
    for W, b in zip(weights[1:], biases[1:], strict=True):
        z.append(W @ z[-1].relu() + b)
    return z, [each.relu() for each in z[:-1]]


def _relu_after_the_last(weights, biases, X):
    """Your list a has an entry too many: nothing follows the last matrix, so there is no ReLU after
    it."""
    z, a = chain_values(weights, biases, X)
    return z, [*a, z[-1].relu()]


def _biases_forgotten(weights, biases, X):
    """The biases are missing: z is W times the inputs, plus b."""
    return chain_values(weights, [0 * b for b in biases], X)


def _relu_forgotten(weights, biases, X):
    """Your a is z itself: the next matrix receives ReLU(z)."""
    z = [weights[0] @ X + biases[0]]
    for W, b in zip(weights[1:], biases[1:], strict=True):
        z.append(W @ z[-1] + b)
    return z, z[:-1]


def _last_output_alone(weights, biases, X):
    """You returned the output of the last matrix alone. All z and all a are asked for, as two
    lists."""
    return chain_values(weights, biases, X)[0][-1]


def _chain(seed: int, *widths: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Weights and biases of a chain of these widths, and its inputs."""
    pairs = [*zip(widths[1:], widths[:-1], strict=True)]
    weights = [normal(*pair, seed=seed + place) for place, pair in enumerate(pairs)]
    biases = [normal(r, 1, seed=seed + 20 + place) for place, (r, _) in enumerate(pairs)]
    return weights, biases, normal(widths[0], 7, seed=seed + 40)


# 06.3: the loss and the penalties
def penalty_objective(loss, weights, biases, X, z, a, alpha=1.0, gamma=1.0):
    """The loss of z[-1], alpha times the breaks of the matrices, gamma times those of the ReLUs."""
    matrices, relus = 0.0, 0.0
    for W, b, before, after in zip(weights, biases, [X, *a], z, strict=True):
        matrices += (after - W @ before - b).square().sum()
    for before, after in zip(z[:-1], a, strict=True):
        relus += (after - before.relu()).square().sum()
    return loss(z[-1]), alpha * matrices, gamma * relus


def _penalty_objective_in_sums(loss, weights, biases, X, z, a, alpha=1.0, gamma=1.0):
    inputs = [X, *a]
    first = sum(
        torch.linalg.norm(z[k] - weights[k] @ inputs[k] - biases[k]) ** 2 for k in range(len(z))
    )
    second = sum(torch.linalg.norm(a[k] - z[k].relu()) ** 2 for k in range(len(a)))
    return loss(z[-1]), alpha * first, gamma * second


def _own_activations(loss, weights, biases, X, z, a, alpha=1.0, gamma=1.0):
    """Your matrices read ReLU(z). They must read the variables a: that is what cuts the chain."""
    terms = penalty_objective(loss, weights, biases, X, z, [each.relu() for each in z[:-1]], alpha)
    return (*terms[:2], penalty_objective(loss, weights, biases, X, z, a, alpha, gamma)[2])


def _loss_of_the_chain(loss, weights, biases, X, z, a, alpha=1.0, gamma=1.0):
    """You ran the chain for the loss. The loss reads the variable z[-1], whatever the matrices
    give."""
    terms = penalty_objective(loss, weights, biases, X, z, a, alpha, gamma)
    return (loss(chain_values(weights, biases, X)[0][-1]), *terms[1:])


def _penalties_without_biases(loss, weights, biases, X, z, a, alpha=1.0, gamma=1.0):
    """The biases are missing in the alpha term: z is held against W a + b."""
    nothing = [0 * b for b in biases]
    return penalty_objective(loss, weights, nothing, X, z, a, alpha, gamma)


def _weights_of_penalties_swapped(loss, weights, biases, X, z, a, alpha=1.0, gamma=1.0):
    """You swapped alpha and gamma: alpha goes with the matrices, gamma with the ReLUs."""
    return penalty_objective(loss, weights, biases, X, z, a, gamma, alpha)


def _norms_not_squared(loss, weights, biases, X, z, a, alpha=1.0, gamma=1.0):
    """The norms are not squared."""
    inputs = [X, *a]
    first = sum((z[k] - weights[k] @ inputs[k] - biases[k]).norm() for k in range(len(z)))
    second = sum((a[k] - z[k].relu()).norm() for k in range(len(a)))
    return loss(z[-1]), alpha * first, gamma * second


def _relu_of_z_forgotten(loss, weights, biases, X, z, a, alpha=1.0, gamma=1.0):
    """The gamma term holds a against ReLU(z), and you took z itself."""
    terms = penalty_objective(loss, weights, biases, X, z, a, alpha, gamma)
    breaks = sum((after - z[k]).square().sum() for k, after in enumerate(a))
    return (*terms[:2], gamma * breaks)


def _loss_for_trials(outputs: Tensor) -> Tensor:
    return (outputs - 1).abs().sum()


def _cut_chain(seed: int, alpha: float, gamma: float, *widths: int) -> tuple:
    """A chain whose variables are not those of a forward pass."""
    weights, biases, X = _chain(seed, *widths)
    z = [normal(width, 7, seed=seed + 60 + place) for place, width in enumerate(widths[1:])]
    a = [normal(width, 7, seed=seed + 80 + place) for place, width in enumerate(widths[1:-1])]
    return _loss_for_trials, weights, biases, X, z, a, alpha, gamma


# 06.4: all auxiliaries frozen
def frozen_errors(weights, pruned, biases, X):
    """What the objective becomes where all z and a stay at their dense values: one error for each
    matrix, a list of L numbers."""
    inputs = [X, *chain_values(weights, biases, X)[1]]
    return [output_error(W, U, x @ x.T) for W, U, x in zip(weights, pruned, inputs, strict=True)]


def _frozen_errors_from_tokens(weights, pruned, biases, X):
    z, a = chain_values(weights, biases, X)
    breaks = zip(pruned, biases, [X, *a], z, strict=True)
    return [(after - U @ before - b).square().sum() for U, b, before, after in breaks]


def _frozen_total(weights, pruned, biases, X):
    """You added the errors up. A list is asked for, with one error for each matrix."""
    return sum(frozen_errors(weights, pruned, biases, X))


def _inputs_of_the_pruned_chain(weights, pruned, biases, X):
    """You took the inputs from the pruned chain. They are frozen: what the dense matrices give."""
    inputs = [X, *chain_values(pruned, biases, X)[1]]
    return [output_error(W, U, x @ x.T) for W, U, x in zip(weights, pruned, inputs, strict=True)]


def _errors_of_the_weights(weights, pruned, biases, X):
    """That is the squared change of the weights. Each one needs the Gram matrix of its inputs."""
    return [(W - U).square().sum() for W, U in zip(weights, pruned, strict=True)]


def _inputs_before_relu(weights, pruned, biases, X):
    """The second matrix reads a, and not z: take the Gram matrix of the activations."""
    inputs = [X, *chain_values(weights, biases, X)[0][:-1]]
    return [output_error(W, U, x @ x.T) for W, U, x in zip(weights, pruned, inputs, strict=True)]


def _two_chains(seed: int, *widths: int) -> tuple:
    weights, biases, X = _chain(seed, *widths)
    pruned = [W * (normal(*W.shape, seed=seed + 90 + k) > 0) for k, W in enumerate(weights)]
    return weights, pruned, biases, X


# 06.5: one step on the loss of the whole model
def masked_step(weights, masks, optimizer, loss):
    """One step of the optimizer on loss(), after which every weight has the zeros of its mask; the
    loss before the step, as a number."""
    value = loss()
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    _put_zeros(weights, masks)
    return value.item()


def _put_zeros(weights, masks):
    with torch.no_grad():
        for W, mask in zip(weights, masks, strict=True):
            W.mul_(mask)


def _masked_step_through_data(weights, masks, optimizer, loss):
    optimizer.zero_grad()
    value = loss()
    value.backward()
    optimizer.step()
    for W, mask in zip(weights, masks, strict=True):
        W.data *= mask
    return value.item()


def _zeros_lost(weights, masks, optimizer, loss):
    """The pruned weights are no longer zero: multiply each weight by its mask after the step."""
    value = loss()
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    return value.item()


def _gradients_pile_up(weights, masks, optimizer, loss):
    """The gradients of earlier steps are still there, and PyTorch adds the new ones to them: call
    optimizer.zero_grad() before backward()."""
    value = loss()
    value.backward()
    optimizer.step()
    _put_zeros(weights, masks)
    return value.item()


def _never_stepped(weights, masks, optimizer, loss):
    """Nothing moves: call optimizer.step() after backward()."""
    value = loss()
    optimizer.zero_grad()
    value.backward()
    _put_zeros(weights, masks)
    return value.item()


def _masks_inverted(weights, masks, optimizer, loss):
    """You kept the pruned weights and set the others to zero. True means kept."""
    value = _zeros_lost(weights, masks, optimizer, loss)
    _put_zeros(weights, [~mask for mask in masks])
    return value


def _loss_after_the_step(weights, masks, optimizer, loss):
    """You returned the loss after the step. It costs a forward pass more: return the value that you
    called backward() on."""
    masked_step(weights, masks, optimizer, loss)
    with torch.no_grad():
        return loss().item()


def _try_masked_step(masked_step: Callable, seed: int) -> dict | None:
    """Three steps on two small matrices."""
    X, target = normal(4, 9, seed=seed), normal(2, 9, seed=seed + 1)
    weights = [normal(3, 4, seed=seed + 2), normal(2, 3, seed=seed + 3)]
    masks = [normal(*W.shape, seed=seed + 4 + k) > -0.3 for k, W in enumerate(weights)]
    weights = [(W * mask).requires_grad_() for W, mask in zip(weights, masks, strict=True)]
    optimizer = torch.optim.Adam(weights, lr=0.05, betas=(0.9, 0.95))

    def loss():
        return (weights[1] @ (weights[0] @ X).relu() - target).square().mean()

    values = [masked_step(weights, masks, optimizer, loss) for _ in range(3)]
    if values[0] is None:
        return None
    return {
        "the weights": [W.detach() for W in weights],
        "a plain number is returned": not isinstance(values[0], Tensor),
        "the losses": [float(value) for value in values],
    }


def _weights_or_losses(mine: dict, expected: dict) -> Figure:
    """The weights of the first matrix; where they are right, the losses."""
    weights = mine["the weights"][0], expected["the weights"][0]
    if not torch.allclose(*weights):
        return viz.beside(*weights, "the first matrix after three steps")
    losses = [torch.tensor(each["the losses"]) for each in (mine, expected)]
    return viz.beside(*losses, "the losses of three steps")


# 06.6: bytes of training a whole model
def training_bytes(weights, saved, windows):
    """Bytes beside the model: of each weight a gradient, Adam's two moments and a mask entry, of
    each window what autograd saves."""
    return weights * (4 + 4 + 4 + 1) + saved * windows


def _training_bytes_in_words(weights, saved, windows):
    gradients, masks = 4 * weights, weights
    moments = 2 * gradients
    return gradients + moments + masks + windows * saved


def _one_moment(weights, saved, windows):
    """Four bytes for each weight are missing: the gradient, and Adam's two moments, the mean of the
    gradients and that of their squares, take four bytes each."""
    return weights * (4 + 4 + 1) + saved * windows


def _without_masks(weights, saved, windows):
    """The masks are missing: one byte for each weight."""
    return weights * (4 + 4 + 4) + saved * windows


def _with_the_model(weights, saved, windows):
    """You counted the weights themselves, four bytes each. Asked for is what comes beside the
    model."""
    return weights * (4 + 4 + 4 + 4 + 1) + saved * windows


def _one_window(weights, saved, windows):
    """What autograd saves grows with the number of windows: multiply it by them."""
    return weights * (4 + 4 + 4 + 1) + saved


def _masks_of_four(weights, saved, windows):
    """A mask of True and False takes one byte for each weight, and not four."""
    return weights * (4 + 4 + 4 + 4) + saved * windows


# 06.7: what a mask costs, by the diagonal of the curvature
def predicted_rise(weights, curvatures, masks):
    """The rise of the loss by the diagonal of the curvature; lists of [r, c], masks True = kept."""
    return _priced(weights, curvatures, masks, lambda w, f: 0.5 * f * w**2)


def _priced(weights, curvatures, masks, saliency):
    """The sum of the saliencies of all weights that are pruned."""
    total = 0.0
    for w, f, mask in zip(weights, curvatures, masks, strict=True):
        total += saliency(w, f)[~mask].sum().item()
    return total


def _rise_by_products(weights, curvatures, masks):
    """The same, with changes written out: to prune a weight is to change it by -w."""
    twice = 0.0
    for w, f, mask in zip(weights, curvatures, masks, strict=True):
        change = torch.where(mask, 0.0, -w)
        twice += (f * change.square()).sum().item()
    return twice / 2


def _rise_of_the_kept(weights, curvatures, masks):
    """You added up the weights that are kept. A mask is True where a weight is kept, so that pruned
    is ~mask."""
    return predicted_rise(weights, curvatures, [~mask for mask in masks])


def _without_half(*case):
    """The factor 1/2 of the second-order term is missing: think of Taylor's formula."""
    return _priced(*case, lambda w, f: f * w**2)


def _not_squared(*case):
    """The weight enters squared: the change is -w, and it stands on both sides of the matrix."""
    return _priced(*case, lambda w, f: 0.5 * f * w.abs())


def _without_curvature(*case):
    """That is the saliency of magnitude pruning. Where is the curvature?"""
    return _priced(*case, lambda w, f: 0.5 * w**2)


_WEIGHTS = [normal(2, 3, seed=1), normal(4, 2, seed=2, scale=5)]
_CURVATURES = [normal(2, 3, seed=3).square(), 0.01 * normal(4, 2, seed=4).square()]
_MASKS = [normal(2, 3, seed=5) > 0, normal(4, 2, seed=6) > 0]


# 06.8: the gradual mask of a published ADMM
def gradual_masks(weight, sparsity, ramp):
    """Masks [r, c] whose sparsity rises over `ramp` steps, quickly at first."""
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
    """Every step prunes the final share: `now` is computed and never used, as in the published
    code."""
    return _scheduled(weight, sparsity, ramp, lambda step: 1)


def _falling_share(weight, sparsity, ramp):
    """The share falls from step to step. It must begin near 0 and end at the final sparsity."""
    return _scheduled(weight, sparsity, ramp, lambda step: (1 - (step - 1) / ramp) ** 3)


def _one_step_late(weight, sparsity, ramp):
    """The last mask is not yet at the final sparsity: the steps count from 1 to ramp."""
    return _scheduled(weight, sparsity, ramp, lambda step: 1 - (1 - (step - 1) / ramp) ** 3)


def _straight_line(weight, sparsity, ramp):
    """That is a straight line from 0 to the final share. The schedule is cubic, quick at first and
    slow at the end."""
    return _scheduled(weight, sparsity, ramp, lambda step: step / ramp)


EXERCISES = {
    "06.1": Exercise(
        split_error,
        tuple(map(_two_layers, (10, 20, 30, 40, 50, 60))),
        mistakes(_split_dense_input, _split_pruned_weight, _split_once, _split_absolute),
        right=(_split_by_total,),
        minutes=4,
        quiet=True,
    ),
    "06.2": Exercise(
        chain_values,
        (_chain(1, 3, 4, 2), _chain(2, 2, 3, 4, 3), _chain(3, 4, 3, 3, 2, 2)),
        mistakes(_relu_after_the_last, _biases_forgotten, _relu_forgotten, _last_output_alone),
        right=(_chain_values_in_steps,),
        minutes=4,
        quiet=True,
    ),
    "06.3": Exercise(
        penalty_objective,
        (_cut_chain(4, 1.0, 1.0, 3, 4, 2), _cut_chain(5, 0.3, 2.0, 2, 3, 4, 3)),
        mistakes(
            _own_activations,
            _loss_of_the_chain,
            _penalties_without_biases,
            _weights_of_penalties_swapped,
            _norms_not_squared,
            _relu_of_z_forgotten,
        ),
        right=(_penalty_objective_in_sums,),
        minutes=7,
        rtol=1e-3,
        quiet=True,
    ),
    "06.4": Exercise(
        frozen_errors,
        (_two_chains(6, 3, 4, 2), _two_chains(7, 2, 3, 4, 3)),
        mistakes(
            _frozen_total, _inputs_of_the_pruned_chain, _errors_of_the_weights, _inputs_before_relu
        ),
        right=(_frozen_errors_from_tokens,),
        minutes=4,
        rtol=1e-3,
        quiet=True,
    ),
    "06.5": Exercise(
        masked_step,
        ((11,), (21,)),
        mistakes(
            _zeros_lost, _gradients_pile_up, _never_stepped, _masks_inverted, _loss_after_the_step
        ),
        right=(_masked_step_through_data,),
        minutes=5,
        trial=_try_masked_step,
        rtol=1e-3,
        draw=_weights_or_losses,
        quiet=True,
    ),
    "06.6": Exercise(
        training_bytes,
        ((7_000_000, 30_000_000, 1), (13_015_864_320, 22_000_000, 2), (1_000_000, 5_000_000, 8)),
        mistakes(_one_moment, _without_masks, _with_the_model, _one_window, _masks_of_four),
        right=(_training_bytes_in_words,),
        minutes=3,
        quiet=True,
    ),
    "06.7": Exercise(
        predicted_rise,
        (
            (_WEIGHTS, _CURVATURES, _MASKS),
            (_WEIGHTS, _CURVATURES, [~mask for mask in _MASKS]),
            (_WEIGHTS[1:], _CURVATURES[1:], _MASKS[1:]),
        ),
        mistakes(_rise_of_the_kept, _without_half, _not_squared, _without_curvature),
        right=(_rise_by_products,),
        minutes=4,
        quiet=True,
    ),
    "06.8": Exercise(
        gradual_masks,
        ((normal(4, 6, seed=70), 0.75, 6), (normal(5, 8, seed=71), 0.6, 5)),
        mistakes(_final_share_at_once, _falling_share, _one_step_late, _straight_line),
        right=(_gradual_by_ranks,),
        kind="find-the-bug",
        minutes=6,
        quiet=True,
    ),
}
