"""The exercises of notebook 09."""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ... import viz
from .checking import Exercise, mistakes, normal
from .nb07_sparsellm_opt import matrix_step


def largest(matrix: Tensor, zeros: int) -> Tensor:
    """Where the largest entries of a matrix [r, c] are: all but so many, bool."""
    sizes = matrix.abs()
    return sizes > sizes.flatten().kthvalue(zeros).values


# 09.1: one iteration of ADMM
def admm_step(D, U, T, inverse, rho, zeros):
    """The new sparse copy D and the new memory U, both [r, c], from the old ones; T = W G [r, c],
    inverse = (G + rho I)^-1 [c, c]."""
    wanted = (T + rho * (D - U)) @ inverse + U
    D = wanted * largest(wanted, zeros)
    return D, wanted - D


def _admm_step_in_four(D, U, T, inverse, rho, zeros):
    B = (T + rho * (D - U)) @ inverse
    new = (B + U) * largest(B + U, zeros)
    return new, U + B - new


def _memory_ignored(D, U, T, inverse, rho, zeros):
    """Your B does not heed U. It is drawn to D - U, so that it makes up for what D took away."""
    B = (T + rho * D) @ inverse
    new = (B + U) * largest(B + U, zeros)
    return new, U + B - new


def _memory_added(D, U, T, inverse, rho, zeros):
    """The sign of U is wrong in the equation for B: it is drawn to D - U, not to D + U."""
    B = (T + rho * (D + U)) @ inverse
    new = (B + U) * largest(B + U, zeros)
    return new, U + B - new


def _largest_of_b(D, U, T, inverse, rho, zeros):
    """You chose the mask by B alone. It is B + U that counts: a weight that B wants again and again
    must win at last."""
    B = (T + rho * (D - U)) @ inverse
    new = (B + U) * largest(B, zeros)
    return new, U + B - new


def _memory_replaced(D, U, T, inverse, rho, zeros):
    """U is replaced by B - D. It adds up over the iterations: U + B - D."""
    new, _ = admm_step(D, U, T, inverse, rho, zeros)
    return new, (T + rho * (D - U)) @ inverse - new


def _memory_of_old_copy(D, U, T, inverse, rho, zeros):
    """U was updated with the old D. Choose the new D first."""
    B = (T + rho * (D - U)) @ inverse
    return (B + U) * largest(B + U, zeros), U + B - D


def _penalty_forgotten(D, U, T, inverse, rho, zeros):
    """The penalty rho is missing in front of D - U."""
    B = (T + D - U) @ inverse
    new = (B + U) * largest(B + U, zeros)
    return new, U + B - new


def _zeros_kept(D, U, T, inverse, rho, zeros):
    """You kept as many weights as should go: `largest` wants the number of zeros."""
    wanted = (T + rho * (D - U)) @ inverse + U
    new = wanted * largest(wanted, wanted.numel() - zeros)
    return new, wanted - new


def _try_step(admm_step: Callable, *case) -> dict | None:
    found = admm_step(*case)
    return found if found is None else dict(zip(("D", "U"), found, strict=True))


def _state(seed: int, r: int, c: int, rho: float, zeros: int) -> tuple:
    """In the middle of an iteration, on inputs that go together."""
    gram = _gram(seed, c)
    W = normal(r, c, seed=seed + 1)
    D = W * largest(W, zeros)
    U = 0.3 * normal(r, c, seed=seed + 2)
    return D, U, W @ gram, torch.linalg.inv(gram + rho * torch.eye(c)), rho, zeros


def _gram(seed: int, c: int) -> Tensor:
    X = normal(c, 40, seed=seed) + 0.6 * normal(1, 40, seed=seed + 7)
    X *= torch.linspace(0.5, 2, c)[torch.randperm(c, generator=_draw(seed)), None]
    return X @ X.T / 40


def _draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# 09.2: the whole iteration
def admm(W, H, zeros, penalties):
    """The sparse copy of W [r, c] after three iterations at each penalty, H [c, c] the damped
    Hessian."""
    norms = H.diagonal().sqrt()
    G = H / (norms * norms[:, None])
    values, Q = torch.linalg.eigh(G)
    D, W = W * largest(W, zeros) * norms, W * norms
    T, U, old = W @ G, 0 * W, penalties[0]
    for rho in penalties:
        U, old = U * old / rho, rho
        inverse = (Q / (values + rho)) @ Q.T
        for _ in range(3):
            D, U = admm_step(D, U, T, inverse, rho, zeros)
    return D / norms


def _spoilt_admm(W, H, zeros, penalties, fault=""):
    """The iteration with one of its steps wrong."""
    norms = H.diagonal().sqrt() if fault != "not scaled" else torch.ones(len(H))
    if fault == "squares":
        norms = H.diagonal()
    G = H / (norms * norms[:, None])
    units = 1 if fault == "only G" else norms
    kept = largest(W * norms if fault == "start" else W, zeros)
    D, W = W * kept * units, W * units
    U, old = 0 * W, penalties[0]
    for rho in penalties:
        if fault == "forgets":
            U = 0 * U
        if fault != "memory":
            U, old = U * old / rho, rho
        first = penalties[0] if fault == "first inverse" else rho
        inverse = torch.linalg.inv(G + first * torch.eye(len(G)))
        for _ in range(1 if fault == "once" else 3):
            D, U = admm_step(D, U, W @ G, inverse, rho, zeros)
    return D if fault in ("scaled", "only G") else D / norms


def _by_inversion(*given):
    return _spoilt_admm(*given)


def _memory_not_rescaled(*given):
    """U stayed as it was when rho rose. It is the multiplier divided by rho: times old / rho."""
    return _spoilt_admm(*given, fault="memory")


def _memory_lost(*given):
    """U starts from 0 again at each penalty. It goes on, times old / rho."""
    return _spoilt_admm(*given, fault="forgets")


def _inverse_of_the_first(*given):
    """All penalties use the inverse of the first one: build it anew when rho changes."""
    return _spoilt_admm(*given, fault="first inverse")


def _left_scaled(*given):
    """The result is still in the scaled units: divide by the norms at the end."""
    return _spoilt_admm(*given, fault="scaled")


def _weight_not_scaled(*given):
    """G is scaled and W is not: W times the norms, and at the end divided by them."""
    return _spoilt_admm(*given, fault="only G")


def _nothing_scaled(*given):
    """Nothing is scaled, so that weights of inputs with small norms compete with those of large
    ones."""
    return _spoilt_admm(*given, fault="not scaled")


def _scaled_by_squares(*given):
    """The norms are the roots of H's diagonal; you took the diagonal itself."""
    return _spoilt_admm(*given, fault="squares")


def _started_scaled(*given):
    """Your D starts from the largest of the scaled weights. Choose that mask before you scale."""
    return _spoilt_admm(*given, fault="start")


def _one_at_each(*given):
    """Three iterations at each penalty are asked for, and you made one."""
    return _spoilt_admm(*given, fault="once")


def _whole(seed: int, r: int, c: int, zeros: int) -> tuple:
    return normal(r, c, seed=seed + 1), _gram(seed, c), zeros, [0.1, 0.2, 0.4, 0.8]


# 09.3: the dense model's stream as the target
def dense_stream_target(W, X, X_dense, lack, ridge):
    """The matrix [r, c] whose outputs on X [c, N] come nearest to W X_dense + lack [r, N]."""
    return matrix_step(W, W @ X_dense + lack, X, ridge)


def _target_by_stacking(W, X, X_dense, lack, ridge):
    """Least squares for the change, with extra rows that ask for none."""
    share = (ridge * X.square().sum(1).mean()).sqrt()
    rows = torch.cat([X.T, share * torch.eye(len(X))])
    missing = torch.cat([(W @ (X_dense - X) + lack).T, torch.zeros(len(X), len(W))])
    return W + torch.linalg.lstsq(rows, missing).solution.T


def _lack_forgotten(W, X, X_dense, lack, ridge):
    """What the stream lacks is missing in the target: W X_dense + lack."""
    return dense_stream_target(W, X, X_dense, 0, ridge)


def _lack_subtracted(W, X, X_dense, lack, ridge):
    """What the stream lacks must be added, and you subtracted it."""
    return dense_stream_target(W, X, X_dense, -lack, ridge)


def _own_outputs(W, X, X_dense, lack, ridge):
    """Your target starts from W X, the outputs on the pruned model's inputs. Those in the dense
    model are wanted, W X_dense."""
    return dense_stream_target(W, X, X, lack, ridge)


def _dense_inputs(W, X, X_dense, lack, ridge):
    """You fitted on the dense model's inputs. The pruned model will see X: fit on X."""
    return matrix_step(W, W @ X_dense + lack, X_dense, ridge)


def _the_target_itself(W, X, X_dense, lack, ridge):
    """That is the target, [r, N]. Return the matrix that comes nearest to it on X."""
    return W @ X_dense + lack


def _drawn_to_zero(W, X, X_dense, lack, ridge):
    """The ridge draws your matrix to 0. matrix_step draws it to the weight that it gets: give it
    W."""
    return matrix_step(0 * W, W @ X_dense + lack, X, ridge)


def _streams(seed: int, r: int, c: int, ridge: float) -> tuple:
    X = normal(c, 30, seed=seed) * torch.linspace(0.5, 2, c)[:, None]
    X_dense = X + 0.5 * normal(c, 30, seed=seed + 1)
    return normal(r, c, seed=seed + 2), X, X_dense, normal(r, 30, seed=seed + 3), ridge


# 09.4: a block by gradient
def reconstruct(block, hidden, rest, goal, passes, rate):
    """Tune what is left of the block's matrices, window by window, so that its outputs come nearer
    to the goal; zeros stay zeros."""
    _descend(block, hidden, rest, goal, passes, rate)


def _descend(block, hidden, rest, goal, passes, rate, fault="") -> None:
    weights = [part.weight for part in block.modules() if isinstance(part, nn.Linear)]
    masks = [weight.detach() != 0 for weight in weights]
    optimizer = torch.optim.Adam(weights, rate)
    for _ in range(passes):
        for states, wanted in list(zip(hidden, goal, strict=True))[: 1 if fault == "one" else None]:
            with torch.enable_grad():
                for weight in weights:
                    weight.requires_grad_()
                given = wanted if fault == "swapped" else states
                loss = (block(given, **rest) - wanted).square().mean()
                loss = -loss if fault == "uphill" else loss
                slopes = torch.autograd.grad(loss, weights)
            for weight, slope in zip(weights, slopes, strict=True):
                more = fault == "adds up" and weight.grad is not None
                weight.grad = weight.grad + slope if more else slope
            optimizer.step()
            for weight, mask in zip(weights, masks, strict=True):
                if fault not in ("revived", "late"):
                    weight.data *= mask
        if fault == "return":
            break
    for weight, mask in zip(weights, masks, strict=True):
        weight.grad = None
        weight.requires_grad_(False)
        if fault == "late":
            weight.data *= mask


def _reconstruct_by_slopes(block, hidden, rest, goal, passes, rate):
    """The mask on the gradient: where it is 0 Adam never moves."""
    weights = [part.weight for part in block.modules() if isinstance(part, nn.Linear)]
    masks = [weight.detach() != 0 for weight in weights]
    optimizer = torch.optim.Adam(weights, rate)
    for _ in range(passes):
        for states, wanted in zip(hidden, goal, strict=True):
            with torch.enable_grad():
                for weight in weights:
                    weight.requires_grad_()
                loss = (block(states, **rest) - wanted).square().mean()
                slopes = torch.autograd.grad(loss, weights)
            for weight, slope, mask in zip(weights, slopes, masks, strict=True):
                weight.grad = slope * mask
            optimizer.step()


def _zeros_revived(*given):
    """Adam revived the zeros: put the mask on again after every step."""
    _descend(*given, fault="revived")


def _masked_at_the_end(*given):
    """The mask comes too late. Put it on after every step, or the kept weights are tuned for
    neighbours that will be gone."""
    _descend(*given, fault="late")


def _slopes_add_up(*given):
    """The gradients of all windows add up: call optimizer.zero_grad() before each backward pass."""
    _descend(*given, fault="adds up")


def _one_window_alone(*given):
    """Only the first window is used. Is there a `return` or a `break` in the loop?"""
    _descend(*given, fault="one")


def _one_pass_alone(*given):
    """Only one pass was made over the windows: `passes` are asked for."""
    _descend(*given, fault="return")


def _goal_as_input(*given):
    """The block ran on the goal. It runs on `hidden`; its outputs are compared with the goal."""
    _descend(*given, fault="swapped")


def _uphill(*given):
    """The error rises: minimise it. Is there a minus in front of the loss?"""
    _descend(*given, fault="uphill")


def _untouched(block, hidden, rest, goal, passes, rate):
    """The weights are as they were: call optimizer.step() after loss.backward()."""
    block(hidden[0], **rest)


class _Block(nn.Module):
    """A feed-forward network with a residual sum, with zeros in both matrices."""

    def __init__(self, seed: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 4)
        for place, linear in enumerate((self.fc1, self.fc2)):
            weight = normal(*linear.weight.shape, seed=seed + place)
            linear.weight.data = weight * (weight.abs() > 0.7)
            linear.bias.data = normal(len(weight), seed=seed + place + 5)
        self.requires_grad_(False)

    def forward(self, states, scale=1.0):
        return states + scale * self.fc2(self.fc1(states).relu())


def _try_reconstruct(reconstruct: Callable, seed: int) -> dict:
    block = _Block(seed)
    hidden = [normal(1, 6, 4, seed=seed + k) for k in range(3)]
    goal = [states + normal(1, 6, 4, seed=seed + k + 9) for k, states in enumerate(hidden)]
    with torch.no_grad():
        reconstruct(block, hidden, {"scale": 0.5}, goal, 4, 0.02)
    names = ("fc1", "fc2")
    return {f"the weight of {name}": block.get_submodule(name).weight.detach() for name in names}


def _first_weight(mine: dict, expected: dict) -> Figure:
    name = next(name for name in expected if not torch.equal(mine[name], expected[name]))
    return viz.beside(mine[name], expected[name], name)


# 09.5: the zeros of the matrices
def divide_zeros(prices, share, most):
    """How many zeros each matrix gets, by name, where the cheapest weights of all matrices together
    go, and of no matrix more than the share `most`; prices: {name: [r, c]}."""
    held = {
        name: price.masked_fill(_dearest(price, most), torch.inf) for name, price in prices.items()
    }
    every = torch.cat([price.flatten() for price in held.values()])
    limit = every.kthvalue(round(share * len(every))).values
    return {name: int((price <= limit).sum()) for name, price in held.items()}


def _dearest(price: Tensor, most: float) -> Tensor:
    """The weights that stay whatever they cost elsewhere, bool."""
    return price > price.flatten().kthvalue(round(most * price.numel())).values


def _divided_by_sorting(prices, share, most):
    every = []
    for name, price in prices.items():
        rising = price.flatten().sort().values[: round(most * price.numel())]
        every += [(value.item(), name) for value in rising]
    count = round(share * sum(price.numel() for price in prices.values()))
    gone = [name for _, name in sorted(every)[:count]]
    return {name: gone.count(name) for name in prices}


def _each_alone(prices, share, most):
    """Every matrix got the same share. Compare the weights of all matrices with one limit."""
    return {name: round(share * price.numel()) for name, price in prices.items()}


def _without_bound(prices, share, most):
    """You ignored `most`: a matrix has more zeros than that share of its weights."""
    return divide_zeros(prices, share, 1.0)


def _cut_afterwards(prices, share, most):
    """You cut at `most` after the division, so that the model has too few zeros. Others must take
    over what a full matrix cannot."""
    zeros = divide_zeros(prices, share, 1.0)
    return {name: min(zeros[name], round(most * price.numel())) for name, price in prices.items()}


def _kept_counted(prices, share, most):
    """You counted the weights that stay. Count those at or below the limit."""
    zeros = divide_zeros(prices, share, most)
    return {name: price.numel() - zeros[name] for name, price in prices.items()}


def _share_kept(prices, share, most):
    """The share was taken for what stays: `share` of all weights become zero."""
    return divide_zeros(prices, 1 - share, most)


def _dearest_go(prices, share, most):
    """The most expensive weights go. Zeros belong where the price is low."""
    return divide_zeros({name: -price for name, price in prices.items()}, share, most)


def _shares_given(prices, share, most):
    """That is the share of each matrix; the number of zeros is asked for."""
    zeros = divide_zeros(prices, share, most)
    return {name: zeros[name] / price.numel() for name, price in prices.items()}


def _prices(seed: int, share: float) -> tuple[dict[str, Tensor], float, float]:
    shapes = {"q_proj": (4, 4), "fc1": (8, 4), "fc2": (4, 8)}
    prices = {
        name: normal(*shape, seed=seed + place).square() * 9.0**place
        for place, (name, shape) in enumerate(shapes.items())
    }
    return prices, share, 0.9


EXERCISES = {
    "09.1": Exercise(
        admm_step,
        (_state(1, 2, 4, 0.5, 4), _state(11, 3, 5, 2.0, 9), _state(21, 2, 6, 0.1, 7)),
        mistakes(
            _memory_ignored,
            _memory_added,
            _largest_of_b,
            _memory_replaced,
            _memory_of_old_copy,
            _penalty_forgotten,
            _zeros_kept,
        ),
        right=(_admm_step_in_four,),
        minutes=6,
        trial=_try_step,
        draw=_first_weight,
        quiet=True,
    ),
    "09.2": Exercise(
        admm,
        (_whole(3, 3, 6, 11), _whole(13, 4, 5, 12), _whole(23, 5, 8, 28)),
        mistakes(
            _memory_not_rescaled,
            _memory_lost,
            _inverse_of_the_first,
            _left_scaled,
            _weight_not_scaled,
            _nothing_scaled,
            _scaled_by_squares,
            _started_scaled,
            _one_at_each,
        ),
        right=(_by_inversion,),
        minutes=8,
        rtol=1e-3,
        draw="the pruned matrix",
        quiet=True,
    ),
    "09.3": Exercise(
        dense_stream_target,
        (_streams(1, 3, 5, 0.1), _streams(11, 2, 4, 0.3), _streams(21, 4, 6, 0.05)),
        mistakes(
            _lack_forgotten,
            _lack_subtracted,
            _own_outputs,
            _dense_inputs,
            _the_target_itself,
            _drawn_to_zero,
        ),
        right=(_target_by_stacking,),
        minutes=4,
        rtol=1e-3,
        draw="the new matrix",
        quiet=True,
    ),
    "09.4": Exercise(
        reconstruct,
        ((31,), (41,)),
        mistakes(
            _zeros_revived,
            _masked_at_the_end,
            _slopes_add_up,
            _one_window_alone,
            _one_pass_alone,
            _goal_as_input,
            _uphill,
            _untouched,
        ),
        right=(_reconstruct_by_slopes,),
        minutes=10,
        trial=_try_reconstruct,
        rtol=1e-3,
        draw=_first_weight,
        quiet=True,
    ),
    "09.5": Exercise(
        divide_zeros,
        (_prices(2, 0.5), _prices(12, 0.7), _prices(22, 0.3)),
        mistakes(
            _each_alone,
            _without_bound,
            _cut_afterwards,
            _kept_counted,
            _share_kept,
            _dearest_go,
            _shares_given,
        ),
        right=(_divided_by_sorting,),
        minutes=6,
        quiet=True,
    ),
}
