"""The exercises of notebook 07."""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ... import viz
from ...models.architecture import blocks_of
from .checking import Exercise, mistakes, normal
from .nb02_local_objective import capture_inputs, first_inputs, prune_block, replay, tiny_opt


# 07.1: the step for a matrix
def matrix_step(weight, target, inputs, ridge=1e-6):
    """The matrix [r, c] that best makes the target [r, N] of the inputs [c, N], near the weight."""
    gram = inputs @ inputs.T
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram))
    missing = target - weight @ inputs
    return weight + torch.linalg.solve(damped, inputs @ missing.T).T


def _matrix_step_stacked(weight, target, inputs, ridge=1e-6):
    """Least squares with extra rows that ask for no change."""
    share = ridge * inputs.square().sum(1).mean()
    rows = torch.cat([inputs.T, share.sqrt() * torch.eye(len(inputs))])
    missing = torch.cat([(target - weight @ inputs).T, torch.zeros(len(inputs), len(weight))])
    return weight + torch.linalg.lstsq(rows, missing).solution.T


def _drawn_to_zero(weight, target, inputs, ridge=1e-6):
    """Your ridge draws the matrix towards 0. Equation (5) draws it towards the dense weight: fit
    what W leaves over, T - W X, and add W."""
    return matrix_step(0 * weight, target, inputs, ridge)


def _change_alone(weight, target, inputs, ridge=1e-6):
    """That is only the change of the matrix: add the weight W to it."""
    return matrix_step(weight, target, inputs, ridge) - weight


def _ridge_not_scaled(weight, target, inputs, ridge=1e-6):
    """The ridge is a share of the mean of the diagonal of X X^T; you added the bare number."""
    gram = inputs @ inputs.T
    change = torch.linalg.solve(
        gram + ridge * torch.eye(len(gram)), inputs @ (target - weight @ inputs).T
    )
    return weight + change.T


def _ridge_missing(weight, target, inputs, ridge=1e-6):
    """You left the ridge out: without it X X^T may have no inverse."""
    return matrix_step(weight, target, inputs, 0.0)


def _ridge_everywhere(weight, target, inputs, ridge=1e-6):
    """You added the ridge to every entry of X X^T. It belongs on the diagonal: multiply it by
    torch.eye."""
    gram = inputs @ inputs.T
    damped = gram + ridge * gram.diagonal().mean()
    return weight + torch.linalg.solve(damped, inputs @ (target - weight @ inputs).T).T


def _solved_from_the_wrong_side(weight, target, inputs, ridge=1e-6):
    """torch.linalg.solve(A, B) needs as many rows in B as in A: transpose, solve for X (T - W X)^T,
    and transpose the result."""
    gram = inputs @ inputs.T
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram))
    return weight + torch.linalg.solve(damped, (target - weight @ inputs) @ inputs.T)


def _regression(seed: int, r: int, c: int, ridge: float) -> tuple[Tensor, Tensor, Tensor, float]:
    """A weight, a target that it misses, and inputs whose norms differ."""
    inputs = normal(c, 30, seed=seed) * torch.linspace(0.5, 3, c)[:, None]
    return normal(r, c, seed=seed + 1), normal(r, 30, seed=seed + 2, scale=3.0), inputs, ridge


# 07.2: the step for the activations
def activation_step(z, Y, W2, beta=1.0, gamma=1.0):
    """The activations a [f, N] that minimise the beta and the gamma term, of z [f, N], Y [d, N] and
    W2 [d, f]."""
    phi = z.relu()
    inner = W2 @ W2.T + gamma / beta * torch.eye(len(W2))
    return phi + W2.T @ torch.linalg.solve(inner, Y - W2 @ phi)


def _activation_step_directly(z, Y, W2, beta=1.0, gamma=1.0):
    """The normal equations as they stand."""
    left = beta * W2.T @ W2 + gamma * torch.eye(W2.shape[1])
    return torch.linalg.solve(left, beta * W2.T @ Y + gamma * z.relu())


def _without_relu(z, Y, W2, beta=1.0, gamma=1.0):
    """The gamma term compares a with ReLU(z), and you took z itself."""
    inner = W2 @ W2.T + gamma / beta * torch.eye(len(W2))
    return z + W2.T @ torch.linalg.solve(inner, Y - W2 @ z)


def _ratio_upside_down(z, Y, W2, beta=1.0, gamma=1.0):
    """The ratio is upside down: with a large gamma the activations must stay near ReLU(z), and
    yours move the more."""
    return activation_step(z, Y, W2, gamma, beta)


def _wrong_sign(z, Y, W2, beta=1.0, gamma=1.0):
    """The correction has the wrong sign: it must add what the output lacks, Y - W2 ReLU(z)."""
    return 2 * z.relu() - activation_step(z, Y, W2, beta, gamma)


def _correction_alone(z, Y, W2, beta=1.0, gamma=1.0):
    """That is only the correction: add ReLU(z) to it."""
    return activation_step(z, Y, W2, beta, gamma) - z.relu()


def _whole_output(z, Y, W2, beta=1.0, gamma=1.0):
    """You corrected by the whole output Y. Only what is lacking counts, Y - W2 ReLU(z)."""
    inner = W2 @ W2.T + gamma / beta * torch.eye(len(W2))
    return z.relu() + W2.T @ torch.linalg.solve(inner, Y)


def _activations(seed: int, beta: float, gamma: float) -> tuple:
    return (
        normal(6, 5, seed=seed),
        normal(3, 5, seed=seed + 1),
        normal(3, 6, seed=seed + 2),
        beta,
        gamma,
    )


# 07.3: the step for z
def z_step(a, m, alpha=1.0, gamma=1.0):
    """The z, entry by entry, that minimises alpha (z - m)^2 + gamma (a - relu(z))^2."""
    up = ((gamma * a + alpha * m) / (gamma + alpha)).clamp(min=0)
    low = m.clamp(max=0)
    return _cheaper(up, low, a, m, 0.0, alpha, gamma)


def _z_step_with_border(a, m, alpha=1.0, gamma=1.0):
    """The same with z = 0 tried too, the border of the branches: it is better than neither."""
    return _cheaper(z_step(a, m, alpha, gamma), 0 * a, a, m, 0.0, alpha, gamma)


def _by_sign_of_m(a, m, alpha=1.0, gamma=1.0):
    """You chose the branch by the sign of m. It does not say which branch is the better one:
    compare their costs."""
    up = ((gamma * a + alpha * m) / (gamma + alpha)).clamp(min=0)
    return torch.where(m > 0, up, m.clamp(max=0))


def _by_sign_of_a(a, m, alpha=1.0, gamma=1.0):
    """You chose the branch by the sign of a. A positive a can be too far away from m to be worth
    it: compare the costs."""
    up = ((gamma * a + alpha * m) / (gamma + alpha)).clamp(min=0)
    return torch.where(a > 0, up, m.clamp(max=0))


def _not_clamped(a, m, alpha=1.0, gamma=1.0):
    """The branches are not held to their sides: the formula for z >= 0 may give a negative z, and
    then it is no minimum."""
    up = (gamma * a + alpha * m) / (gamma + alpha)
    up_cost = alpha * (up - m) ** 2 + gamma * (a - up) ** 2
    return torch.where(up_cost <= alpha * 0 * m + gamma * a**2, up, m)


def _means_swapped(a, m, alpha=1.0, gamma=1.0):
    """The weights in the mean are swapped: gamma belongs to a, alpha to m."""
    up = ((alpha * a + gamma * m) / (gamma + alpha)).clamp(min=0)
    return _cheaper(up, m.clamp(max=0), a, m, 0.0, alpha, gamma)


def _dearer_branch(a, m, alpha=1.0, gamma=1.0):
    """You took the branch with the higher cost."""
    up = ((gamma * a + alpha * m) / (gamma + alpha)).clamp(min=0)
    low = m.clamp(max=0)
    best = z_step(a, m, alpha, gamma)
    return torch.where(best == up, low, up)


def _low_branch_at_zero(a, m, alpha=1.0, gamma=1.0):
    """For z <= 0 the best z is m where m is negative, min(0, m), not 0."""
    up = ((gamma * a + alpha * m) / (gamma + alpha)).clamp(min=0)
    return _cheaper(up, 0 * m, a, m, 0.0, alpha, gamma)


def _entries(seed: int, alpha: float, gamma: float) -> tuple:
    return normal(3, 8, seed=seed, scale=2.0), normal(3, 8, seed=seed + 9, scale=2.0), alpha, gamma


# 07.4: the loop
def sparsellm(W1, b1, W2, X, prune_layer, fit, epochs):
    """SparseLLM's loop for one network: for each epoch the pruned W1 and W2 and the auxiliary z and
    a after it."""
    z = W1 @ X + b1
    a = z.relu()
    Y, found = W2 @ a, []
    for _ in range(epochs):
        U1 = prune_layer(fit(W1, z - b1, X), X)
        U2 = prune_layer(fit(W2, Y, a), a)
        a = activation_step(z, Y, U2)
        z = z_step(a, U1 @ X + b1)
        found.append((U1, U2, z, a))
    return found


def _spoilt_loop(W1, b1, W2, X, prune_layer, fit, epochs, fault="") -> list[tuple]:
    """The loop with one of its steps wrong."""
    z, V1 = W1 @ X + b1, W1
    a = z.relu()
    Y, found = W2 @ a, []
    for _ in range(epochs):
        U1 = prune_layer(fit(W1, z if fault == "bias" else z - b1, X), X)
        U2 = prune_layer(fit(W2, Y, z.relu() if fault == "relu" else a), a)
        m = (V1 if fault == "dense m" else U1) @ X + b1
        if fault == "z first":
            z = z_step(a, m)
        if fault != "a stays":
            a = activation_step(z, Y, W2 if fault == "dense W2" else U2)
        if fault not in ("z first", "z stays"):
            z = z_step(a, m)
        if fault == "target":
            Y = U2 @ a
        found.append((U1, U2, z, a))
    return found


def _bias_forgotten(*given):
    """The bias is missing: W1 X must come to z - b1, since the network adds b1 afterwards."""
    return _spoilt_loop(*given, fault="bias")


def _from_dense_matrix(*given):
    """z was tied to what the dense W1 gives. The alpha term has the pruned one in it: m = U1 X +
    b1."""
    return _spoilt_loop(*given, fault="dense m")


def _a_by_dense_matrix(*given):
    """The step for a used the dense W2. The beta term has the pruned one in it."""
    return _spoilt_loop(*given, fault="dense W2")


def _z_before_a(*given):
    """You updated z before a. Here a comes first, with the old z, and then z with the new a."""
    return _spoilt_loop(*given, fault="z first")


def _a_never_moves(*given):
    """Your a stays as the dense model has it: call activation_step in each epoch."""
    return _spoilt_loop(*given, fault="a stays")


def _z_never_moves(*given):
    """Your z stays as the dense model has it: call z_step in each epoch."""
    return _spoilt_loop(*given, fault="z stays")


def _target_moves(*given):
    """You changed Y in the loop. It is frozen: the output of the dense network."""
    return _spoilt_loop(*given, fault="target")


def _fitted_to_relu(*given):
    """W2 is fitted to ReLU(z) here; its inputs in the beta term are the auxiliary a."""
    return _spoilt_loop(*given, fault="relu")


def _last_epoch_alone(*given):
    """Only the last epoch is returned: append one entry in each."""
    return sparsellm(*given)[-1:]


def fit_of_the_check(weight: Tensor, target: Tensor, inputs: Tensor) -> Tensor:
    return matrix_step(weight, target, inputs, 0.01)


def prune_in_the_check(weight: Tensor, x: Tensor) -> Tensor:
    """A method with a mask that depends on the inputs and with kept weights that move."""
    score = weight.abs() * x.norm(dim=1)
    return 1.1 * weight * (score > score.median())


def _try_loop(sparsellm: Callable, seed: int) -> dict | None:
    W1, b1, W2 = normal(6, 4, seed=seed), normal(6, 1, seed=seed + 1), normal(4, 6, seed=seed + 2)
    X = normal(4, 40, seed=seed + 3)
    found = sparsellm(W1, b1, W2, X, prune_in_the_check, fit_of_the_check, 3)
    if found is None:
        return None
    Y, errors = W2 @ (W1 @ X + b1).relu(), []
    for U1, U2, *_ in found:
        made = U2 @ (U1 @ X + b1).relu()
        errors.append(((made - Y).norm() / Y.norm()).item())
    return by_epoch(found, errors, ("W1", "W2", "z", "a"))


def by_epoch(found: list[tuple], errors: list[float], names: tuple[str, ...]) -> dict:
    """What a loop found, as a check compares it: by name, a list over the epochs."""
    parts = {name: [*each] for name, each in zip(names, zip(*found, strict=True), strict=True)}
    return {"number of epochs": len(found), "errors": errors, **parts}


def errors_by_epoch(mine: dict, expected: dict) -> Figure:
    """The error of the check's network, epoch by epoch."""
    with viz.style():
        figure = Figure(figsize=(5, 2.6))
        axis = figure.subplots()
        for name, look, each in (("expected", "o-", expected), ("yours", "s--", mine)):
            axis.plot(each["errors"], look, label=name)
        axis.set(xlabel="epoch", ylabel="relative error", xticks=range(3), ylim=(0, None))
        axis.set_title("a small network: its true error by epoch")
        axis.legend()
    return figure


# 07.5: the whole model
def prune_opt(model, windows, prune_layer, prune_network):
    """Prune block after block: attention by prune_layer(W, X), the network by prune_network(block,
    X)."""
    hidden, rest = first_inputs(model, windows)
    for block in blocks_of(model):
        inputs = capture_inputs(block, lambda block=block, now=hidden: replay(block, now, rest))
        X = inputs.pop("fc1")
        del inputs["fc2"]
        prune_block(block, inputs, prune_layer)
        prune_network(block, X)
        hidden = replay(block, hidden, rest)


def _prune_opt_by_names(model, windows, prune_layer, prune_network):
    hidden, rest = first_inputs(model, windows)
    for block in blocks_of(model):
        inputs = capture_inputs(block, lambda block=block, now=hidden: replay(block, now, rest))
        prune_network(block, inputs["fc1"])
        attention = {name: x for name, x in inputs.items() if name.startswith("self_attn")}
        prune_block(block, attention, prune_layer)
        hidden = replay(block, hidden, rest)


def _spoilt_driver(model, windows, prune_layer, prune_network, fault=""):
    """The driver with one of its steps wrong."""
    hidden, rest = first_inputs(model, windows)
    for block in blocks_of(model):
        read = lambda block=block, now=hidden: replay(block, now, rest)  # noqa: E731
        inputs, dense = capture_inputs(block, read), replay(block, hidden, rest)
        if fault == "twice":
            prune_block(block, inputs, prune_layer)
        X = inputs.pop("fc1")
        inputs.pop("fc2")
        if fault not in ("twice", "attention"):
            prune_block(block, inputs, prune_layer)
        if fault == "late":
            X = capture_inputs(block, read)["fc1"]
        if fault != "network":
            prune_network(block, X)
        hidden = dense if fault == "dense" else replay(block, hidden, rest)


def _network_read_late(*given):
    """You read the network's inputs after the attention was pruned. SparseLLM reads all inputs of a
    block before it prunes any of it."""
    _spoilt_driver(*given, fault="late")


def _attention_left_dense(*given):
    """The attention is still dense: prune its four matrices with prune_block."""
    _spoilt_driver(*given, fault="attention")


def _network_pruned_twice(*given):
    """prune_layer pruned fc1 and fc2 too, before prune_network got them. Take both names out of the
    inputs that prune_block sees."""
    _spoilt_driver(*given, fault="twice")


def _network_forgotten(*given):
    """The networks are still dense: call prune_network(block, X)."""
    _spoilt_driver(*given, fault="network")


def _not_replayed(*given):
    """The next block got the outputs of the dense one: call replay after the block is pruned."""
    _spoilt_driver(*given, fault="dense")


def _try_prune_opt(prune_opt: Callable, seed: int) -> dict:
    model, windows = tiny_opt(seed)

    def prune_network(block, x):
        block.fc1.weight.data = prune_in_the_check(block.fc1.weight.detach(), x)
        block.fc2.weight.data = 0.5 * block.fc2.weight.detach()

    prune_opt(model, windows, prune_in_the_check, prune_network)
    linears = [part for part in blocks_of(model).modules() if isinstance(part, nn.Linear)]
    return {"the weights": [linear.weight.detach() for linear in linears]}


def _weights_by_block(mine: dict, expected: dict) -> Figure:
    """How far the pruned weights are from the right ones, block by block."""
    pairs = zip(mine["the weights"], expected["the weights"], strict=True)
    far = torch.tensor([((a - b).norm() / b.norm()).item() for a, b in pairs]).view(3, 6)
    with viz.style():
        figure = Figure(figsize=(5.4, 2.6))
        axis = figure.subplots()
        viz.numbers(axis, far, "weights, relative difference from the right ones", digits=2)
        axis.set(yticks=range(3), ylabel="block", xticks=range(6))
        axis.set_xticklabels(["k", "v", "q", "out", "fc1", "fc2"])
    return figure


# 07.6: the network that harms
def bisect(harm, count):
    """The one block of `count` whose network harms; harm(blocks): the loss that theirs cost."""
    suspects = [*range(count)]
    while len(suspects) > 1:
        middle = len(suspects) // 2
        suspects = max(suspects[:middle], suspects[middle:], key=harm)
    return suspects[0]


def _bisect_by_one_half(harm, count):
    """Measures one half each time, and holds it against what both cost."""
    low, high, together = 0, count, harm([*range(count)])
    while high - low > 1:
        middle = (low + high) // 2
        first = harm([*range(low, middle)])
        low, high, together = (
            (low, middle, first) if 2 * first > together else (middle, high, together - first)
        )
    return low


def _sound_half_kept(harm, count):
    """You keep the half that harms less: the culprit is in the other one."""
    return bisect(lambda blocks: -harm(blocks), count)


def _each_alone(harm, count):
    """You measured every block alone. That is right, but it takes as many measurements as there are
    blocks: measure a half of the suspects at once."""
    return max(range(count), key=lambda block: harm([block]))


def _list_returned(harm, count):
    """You return a list with one block: return its number."""
    return [bisect(harm, count)]


def _odd_one_lost(harm, count):
    """With an odd number of suspects you lose the last one: the second half is
    suspects[middle:]."""
    suspects = [*range(count)]
    while len(suspects) > 1:
        middle = len(suspects) // 2
        suspects = max(suspects[:middle], suspects[middle : 2 * middle], key=harm)
    return suspects[0]


def _halved_once(harm, count):
    """You halved the suspects once. Go on until one is left."""
    middle = count // 2
    return max([*range(middle)], [*range(middle, count)], key=harm)[0]


def _try_bisect(bisect: Callable, culprit: int, count: int) -> dict:
    measured = []

    def harm(blocks):
        measured.append([*blocks])
        return sum(0.7 if block == culprit else (-1) ** block * 0.004 for block in blocks)

    found = bisect(harm, count)
    few = len(measured) <= 2 * (count - 1).bit_length()
    return {"the block": found, "at most two measurements a halving": few}


# 07.7: the direction in which the inputs are silent
def silent_direction(X):
    """The eigenvalues of X X^T, X [d, N], over their mean, ascending [d], and the eigenvector of
    the smallest [d]."""
    eigenvalues, vectors = _spectrum(X)
    return eigenvalues / eigenvalues.mean(), vectors[:, 0].float()


def _spectrum(X):
    return torch.linalg.eigh(X.double() @ X.double().T)


def _by_singular_values(X):
    vectors, singular, _ = torch.linalg.svd(X.double(), full_matrices=False)
    eigenvalues = singular.flip(0) ** 2
    return eigenvalues / eigenvalues.mean(), vectors[:, -1].float()


def _loudest_direction(X):
    """That is the eigenvector of the largest eigenvalue: eigh sorts them upwards, so the smallest
    comes first."""
    eigenvalues, vectors = _spectrum(X)
    return eigenvalues / eigenvalues.mean(), vectors[:, -1].float()


def _row_of_vectors(X):
    """You took a row of the matrix that eigh gives. The eigenvectors are its columns."""
    eigenvalues, vectors = _spectrum(X)
    return eigenvalues / eigenvalues.mean(), vectors[0].float()


def _not_over_the_mean(X):
    """Your eigenvalues depend on how many tokens there are: divide them by their mean."""
    eigenvalues, vectors = _spectrum(X)
    return eigenvalues, vectors[:, 0].float()


def _means_taken_off(X):
    """You took the mean off the inputs first. The regression does not: it has X X^T itself."""
    return silent_direction(X - X.mean(1, keepdim=True))


def _of_the_tokens(X):
    """X^T X compares tokens. The regression has X X^T, which compares inputs."""
    return silent_direction(X.T)


def _singular_values_kept(X):
    """Those are singular values of X. The eigenvalues of X X^T are their squares."""
    eigenvalues, vector = silent_direction(X)
    return eigenvalues.sqrt() / eigenvalues.sqrt().mean(), vector


def _try_silent_direction(silent_direction: Callable, seed: int) -> dict | None:
    X = torch.linspace(1, 2, 4)[:, None] * (normal(4, 9, seed=seed) + 0.3)
    found = silent_direction(X)
    if found is None:
        return None
    eigenvalues, vector = found
    length = vector.norm()
    axis = torch.outer(vector, vector)  # an eigenvector has no sign
    return {"eigenvalues": eigenvalues.float(), "its length": length, "the direction": axis.float()}


# 07.8: one direction kept still
def keep_still(weight, new, gamma):
    """The new matrix [f, d], its change from the weight without the part along 1/gamma, gamma
    [d]."""
    direction = (1 / gamma) / (1 / gamma).norm()
    change = new - weight
    return weight + change - torch.outer(change @ direction, direction)


def _keep_still_by_projector(weight, new, gamma):
    direction = torch.nn.functional.normalize(1 / gamma, dim=0)
    return weight + (new - weight) @ (torch.eye(len(gamma)) - torch.outer(direction, direction))


def _not_normalised(weight, new, gamma):
    """1/gamma is not of length 1: divide it by its norm before you project."""
    change, direction = new - weight, 1 / gamma
    return weight + change - torch.outer(change @ direction, direction)


def _gamma_itself(weight, new, gamma):
    """You took gamma for the direction. Equation (10) divides by it: 1/gamma."""
    return keep_still(weight, new, 1 / gamma)


def _weight_projected(weight, new, gamma):
    """You took the direction out of the whole matrix. Only the change loses it: the weight keeps
    the part that it had."""
    return keep_still(0 * weight, new, gamma)


def _that_part_alone(weight, new, gamma):
    """You kept only the part along 1/gamma. That part is to go, the rest of the change stays."""
    return weight + new - keep_still(weight, new, gamma)


def _change_without_weight(weight, new, gamma):
    """That is only the change: add the weight again."""
    return keep_still(weight, new, gamma) - weight


def _two_matrices(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    gamma = 0.5 + normal(4, seed=seed + 2).abs()
    return normal(3, 4, seed=seed), normal(3, 4, seed=seed + 1), gamma


# 07.9: the step for z with a leaky ReLU
def leaky_z_step(a, m, slope, alpha, gamma):
    """The z, entry by entry, that minimises alpha (z - m)^2 + gamma (a - max(z, slope z))^2."""
    return _cheaper(*_branches(a, m, slope, alpha, gamma), a, m, slope, alpha, gamma)


def _branches(a, m, slope, alpha, gamma):
    up = ((gamma * a + alpha * m) / (gamma + alpha)).clamp(min=0)
    low = ((gamma * slope * a + alpha * m) / (gamma * slope**2 + alpha)).clamp(max=0)
    return up, low


def _cost(z, a, m, slope, alpha, gamma):
    return alpha * (z - m) ** 2 + gamma * (a - torch.maximum(z, slope * z)) ** 2


def _cheaper(up, low, *rest):
    return torch.where(_cost(up, *rest) <= _cost(low, *rest), up, low)


def _leaky_with_border(a, m, slope, alpha, gamma):
    """The same with z = 0 tried too, the border of the branches: it is better than neither."""
    best = leaky_z_step(a, m, slope, alpha, gamma)
    return _cheaper(best, 0 * a, a, m, slope, alpha, gamma)


def _leaky_with_relu_branch(a, m, slope, alpha, gamma):
    """below zero you use ReLU's branch, min(0, m). With a slope the gamma term depends on z there
    too."""
    up, _ = _branches(a, m, slope, alpha, gamma)
    return _cheaper(up, m.clamp(max=0), a, m, slope, alpha, gamma)


def _leaky_slope_not_squared(a, m, slope, alpha, gamma):
    """the slope is not squared: differentiate gamma (a - slope z)^2, the inner derivative brings a
    second factor."""
    up, _ = _branches(a, m, slope, alpha, gamma)
    low = ((gamma * slope * a + alpha * m) / (gamma * slope + alpha)).clamp(max=0)
    return _cheaper(up, low, a, m, slope, alpha, gamma)


def _leaky_unclamped(a, m, slope, alpha, gamma):
    """the branches are not held to their sides: a minimum at z < 0 of the branch for z >= 0 is not
    a minimum."""
    up = (gamma * a + alpha * m) / (gamma + alpha)
    low = (gamma * slope * a + alpha * m) / (gamma * slope**2 + alpha)
    up_cost = alpha * (up - m) ** 2 + gamma * (a - up) ** 2
    low_cost = alpha * (low - m) ** 2 + gamma * (a - slope * low) ** 2
    return torch.where(up_cost <= low_cost, up, low)


def _leaky_by_sign(a, m, slope, alpha, gamma):
    """the sign of m does not say which branch is the better one: compare their costs."""
    return torch.where(m > 0, *_branches(a, m, slope, alpha, gamma))


def _leaky_case(k, slope, alpha, gamma):
    a, m = normal(60, seed=k, scale=2.0), normal(60, seed=k + 9, scale=2.0)
    return a, m, slope, alpha, gamma


LEAKY = Exercise(
    leaky_z_step,
    (_leaky_case(0, 0.1, 1.0, 1.0), _leaky_case(1, 0.5, 0.3, 2.0), _leaky_case(2, 0.25, 4.0, 0.5)),
    mistakes(_leaky_with_relu_branch, _leaky_slope_not_squared, _leaky_unclamped, _leaky_by_sign),
    right=(_leaky_with_border,),
    minutes=8,
    quiet=True,
)


# 07.10: the Hessians of the epochs
def _mean_diagonal(hessian):
    return hessian.diagonal().mean() * torch.eye(len(hessian))


def hessians(gram, damp, epochs):
    """The damped Gram matrix [c, c] of each epoch."""
    return [gram + damp * _mean_diagonal(gram) for _ in range(epochs)]


def _hessians_repeated(gram, damp, epochs):
    return [gram + torch.diag(damp * gram.diagonal().mean().expand(len(gram)))] * epochs


def _hessians_published(gram, damp, epochs):
    """every epoch damps the matrix that the epoch before has damped: after k epochs (1 + damp)^k.
    Start from gram."""
    result = []
    for _ in range(epochs):
        gram = gram + damp * _mean_diagonal(gram)
        result.append(gram)
    return result


def _hessians_shared(gram, damp, epochs):
    """all entries of your list are one and the same matrix, damped in place once for each epoch:
    make a new one."""
    gram, result = gram.clone(), []
    for _ in range(epochs):
        gram += damp * _mean_diagonal(gram)
        result.append(gram)
    return result


def _damp_alone(gram, damp, epochs):
    """the damping is damp times the mean of the diagonal; yours is damp alone, whatever the scale
    of the inputs."""
    return [gram + damp * torch.eye(len(gram)) for _ in range(epochs)]


def _mean_of_the_matrix(gram, damp, epochs):
    """the mean is taken over the whole matrix: it is that of the diagonal."""
    return [gram + damp * gram.mean() * torch.eye(len(gram)) for _ in range(epochs)]


def _damped_everywhere(gram, damp, epochs):
    """the damping belongs on the diagonal; yours is everywhere."""
    return [gram + damp * gram.diagonal().mean() for _ in range(epochs)]


HESSIANS = Exercise(
    hessians,
    (
        (normal(5, 5, seed=1) @ normal(5, 5, seed=1).T, 0.01, 4),
        (torch.diag(torch.tensor([1.0, 2, 6])), 0.1, 3),
    ),
    mistakes(
        _hessians_published, _hessians_shared, _damp_alone, _mean_of_the_matrix, _damped_everywhere
    ),
    right=(_hessians_repeated,),
    kind="find-the-bug",
    minutes=5,
    quiet=True,
)


# 07.11: the step for a where outputs have weights
def weighted_a_step(phi, y, down, weights, ratio):
    """The activations [f, N] where output i counts weights[i] times."""
    inner = down @ down.T + ratio * torch.diag(1 / weights)
    return phi + down.T @ torch.linalg.solve(inner, y - down @ phi)


def _weighted_directly(phi, y, down, weights, ratio):
    """The normal equations as they stand."""
    left = down.T @ (weights[:, None] * down) + ratio * torch.eye(down.shape[1])
    return torch.linalg.solve(left, down.T @ (weights[:, None] * y) + ratio * phi)


def _weighted_upside_down(phi, y, down, weights, ratio):
    """the weights stand in the inner matrix as they are: they must be inverted, an output that
    counts more is damped less."""
    inner = down @ down.T + ratio * torch.diag(weights)
    return phi + down.T @ torch.linalg.solve(inner, y - down @ phi)


def _weighted_residual(phi, y, down, weights, ratio):
    """the weights multiply the residual and not the damping: a weight is then a longer step, not a
    dearer error."""
    inner = down @ down.T + ratio * torch.eye(len(down))
    return phi + down.T @ torch.linalg.solve(inner, weights[:, None] * (y - down @ phi))


def _unweighted(phi, y, down, weights, ratio):
    """the weights of the outputs are not used."""
    return weighted_a_step(phi, y, down, torch.ones_like(weights), ratio)


def _weighted_from_zero(phi, y, down, weights, ratio):
    """phi is missing: without a residual, a must stay at ReLU(z), and yours goes to 0."""
    return weighted_a_step(torch.zeros_like(phi), y, down, weights, ratio)


def _weighted_case(k, ratio):
    phi, y, down = normal(6, 5, seed=k).relu(), normal(3, 5, seed=k + 1), normal(3, 6, seed=k + 2)
    return phi, y, down, torch.tensor([0.2, 1.0, 5.0]), ratio


WEIGHTED = Exercise(
    weighted_a_step,
    (_weighted_case(1, 1.0), _weighted_case(7, 0.3), _weighted_case(11, 4.0)),
    mistakes(_weighted_upside_down, _weighted_residual, _unweighted, _weighted_from_zero),
    right=(_weighted_directly,),
    kind="stretch",
    minutes=12,
    rtol=1e-3,
    quiet=True,
)


EXERCISES = {
    "07.1": Exercise(
        matrix_step,
        (_regression(1, 3, 5, 0.3), _regression(5, 2, 4, 0.1), _regression(9, 4, 6, 1.0)),
        mistakes(
            _drawn_to_zero,
            _change_alone,
            _ridge_not_scaled,
            _ridge_missing,
            _ridge_everywhere,
            _solved_from_the_wrong_side,
        ),
        right=(_matrix_step_stacked,),
        minutes=4,
        rtol=1e-3,
        draw="the new matrix",
        quiet=True,
    ),
    "07.2": Exercise(
        activation_step,
        (_activations(1, 1.0, 1.0), _activations(7, 0.3, 2.0), _activations(11, 4.0, 0.5)),
        mistakes(_without_relu, _ratio_upside_down, _wrong_sign, _correction_alone, _whole_output),
        right=(_activation_step_directly,),
        minutes=5,
        rtol=1e-3,
        draw="the activations a",
        quiet=True,
    ),
    "07.3": Exercise(
        z_step,
        (_entries(0, 1.0, 1.0), _entries(1, 0.3, 2.0), _entries(2, 4.0, 0.5)),
        mistakes(
            _by_sign_of_m,
            _by_sign_of_a,
            _not_clamped,
            _means_swapped,
            _dearer_branch,
            _low_branch_at_zero,
        ),
        right=(_z_step_with_border,),
        minutes=5,
        draw="the auxiliary z",
        quiet=True,
    ),
    "07.4": Exercise(
        sparsellm,
        ((21,), (31,)),
        mistakes(
            _bias_forgotten,
            _from_dense_matrix,
            _a_by_dense_matrix,
            _z_before_a,
            _a_never_moves,
            _z_never_moves,
            _target_moves,
            _fitted_to_relu,
            _last_epoch_alone,
        ),
        minutes=8,
        trial=_try_loop,
        rtol=1e-3,
        draw=errors_by_epoch,
        quiet=True,
    ),
    "07.5": Exercise(
        prune_opt,
        ((91,),),
        mistakes(
            _network_read_late,
            _attention_left_dense,
            _network_pruned_twice,
            _network_forgotten,
            _not_replayed,
        ),
        right=(_prune_opt_by_names,),
        minutes=4,
        trial=_try_prune_opt,
        draw=_weights_by_block,
        quiet=True,
    ),
    "07.6": Exercise(
        bisect,
        ((0, 8), (5, 8), (6, 7), (3, 9)),
        mistakes(_sound_half_kept, _each_alone, _list_returned, _odd_one_lost, _halved_once),
        right=(_bisect_by_one_half,),
        minutes=5,
        trial=_try_bisect,
        quiet=True,
    ),
    "07.7": Exercise(
        silent_direction,
        ((41,), (43,)),
        mistakes(
            _loudest_direction,
            _row_of_vectors,
            _not_over_the_mean,
            _means_taken_off,
            _of_the_tokens,
            _singular_values_kept,
        ),
        right=(_by_singular_values,),
        minutes=4,
        rtol=1e-3,
        trial=_try_silent_direction,
        quiet=True,
    ),
    "07.8": Exercise(
        keep_still,
        (_two_matrices(3), _two_matrices(13)),
        mistakes(
            _not_normalised,
            _gamma_itself,
            _weight_projected,
            _that_part_alone,
            _change_without_weight,
        ),
        right=(_keep_still_by_projector,),
        minutes=4,
        rtol=1e-3,
        draw="the new matrix",
        quiet=True,
    ),
    "07.9": LEAKY,
    "07.10": HESSIANS,
    "07.11": WEIGHTED,
}
