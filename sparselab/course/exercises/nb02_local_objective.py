"""The exercises of notebook 02."""

import itertools
from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

from ... import viz
from ...models.architecture import blocks_of
from .checking import Exercise, mistakes, normal


def _layer(seed: int, r: int, c: int, tokens: int = 24) -> tuple[Tensor, Tensor]:
    """A weight [r, c] and the Gram matrix [c, c] of inputs that differ in norm and share a mean."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(c, tokens, generator=draw) + 0.7
    x *= torch.linspace(0.5, 3, c)[torch.randperm(c, generator=draw), None]
    return torch.randn(r, c, generator=draw), x @ x.T


# 02.1: the error from the Gram matrix
def output_error(weight, pruned, gram):
    """The squared error of the outputs, from W and W' [r, c] and G = X X^T [c, c]."""
    change = weight - pruned
    return ((change @ gram) * change).sum()


def _error_by_trace(weight, pruned, gram):
    return torch.einsum("ij,jk,ik->", weight - pruned, gram, weight - pruned)


def _all_pairs_of_rows(weight, pruned, gram):
    """D G D^T is an r x r matrix, and you added all of it: off its diagonal stand products of two
    different rows, which no output contains. Take the trace."""
    change = weight - pruned
    return (change @ gram @ change.T).sum()


def _diagonal_error(weight, pruned, gram):
    """You used the diagonal of G alone. Two changed weights of a row also meet in the off-diagonal
    entries; that shortcut is notebook 03."""
    return ((weight - pruned).square() * gram.diagonal()).sum()


def _of_what_stays(weight, pruned, gram):
    """That is the energy of the outputs of W', of what stays. The error belongs to the difference D
    = W - W'."""
    return ((pruned @ gram) * pruned).sum()


def _with_root(weight, pruned, gram):
    """You took the square root: the squared error is asked for."""
    return output_error(weight, pruned, gram).sqrt()


def _relative(weight, pruned, gram):
    """You divided by the energy of the dense outputs: the error itself is asked for, not the
    relative one."""
    return output_error(weight, pruned, gram) / output_error(weight, 0 * weight, gram)


def _pruned_layer(seed: int, r: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
    weight, gram = _layer(seed, r, c)
    return weight, weight * (weight.abs() > 0.6), gram


# 02.2: the best mask of a row
def best_mask(row, gram, zeros):
    """The mask [c] of a row with the smallest error, of all that prune so many weights."""
    best, least = None, float("inf")
    for pruned in itertools.combinations(range(len(row)), zeros):
        mask = torch.ones(len(row), dtype=torch.bool)
        mask[list(pruned)] = False
        change = row * ~mask
        error = (change @ gram @ change).item()
        if error < least:
            best, least = mask, error
    return best


def _best_mask_of_all(row, gram, zeros):
    masks = torch.tensor(list(itertools.product([False, True], repeat=len(row))))
    masks = masks[(~masks).sum(1) == zeros]
    change = row * ~masks
    return masks[((change @ gram) * change).sum(1).argmin()]


def _row_case(seed: int, c: int, zeros: int) -> tuple[Tensor, Tensor, int]:
    weight, gram = _layer(seed, 1, c)
    return weight[0], gram, zeros


def _lowest(scores: Tensor, zeros: int) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool).scatter(0, scores.argsort()[:zeros], False)


def _mask_inverted(row, gram, zeros):
    """Your mask is inverted: True means kept."""
    return ~best_mask(row, gram, zeros)


def _by_magnitude(row, gram, zeros):
    """These are the smallest weights, that is magnitude: the Gram matrix does not occur in it."""
    return _lowest(row.abs(), zeros)


def _by_diagonal(row, gram, zeros):
    """You used the diagonal of G alone, so each weight is priced as if it went alone. Try the whole
    d G d^T."""
    return _lowest(row.square() * gram.diagonal(), zeros)


def _zeros_for_kept(row, gram, zeros):
    """You kept as many weights as should become zero: `zeros` counts those that go."""
    return best_mask(row, gram, len(row) - zeros)


def _worst_mask(row, gram, zeros):
    """You found the worst mask: look for the smallest error."""
    return best_mask(row, -gram, zeros)


# 02.3: the best kept weights
def refit_row(row, mask, gram):
    """The kept weights that come closest to the row's dense outputs; zeros elsewhere, [c]."""
    keep = mask.nonzero()[:, 0]
    new = torch.zeros_like(row)
    new[keep] = torch.linalg.solve(gram[keep][:, keep], gram[keep] @ row)
    return new


def _refit_by_correction(row, mask, gram):
    new = row * mask
    new[mask] += torch.linalg.solve(gram[mask][:, mask], gram[mask][:, ~mask] @ row[~mask])
    return new


def _nothing_moves(row, mask, gram):
    """Nothing moved: you solved for all weights and then applied the mask, or used only the kept
    weights' own outputs. The kept weights must also give what the pruned ones gave: the right side
    is the full G[K, :] w."""
    return torch.linalg.solve(gram, gram @ row) * mask


def _wrong_sign(row, mask, gram):
    """The correction has the wrong sign: the kept weights take over what the pruned ones did, w_K +
    ..."""
    return 2 * row * mask - refit_row(row, mask, gram)


def _one_at_a_time(row, mask, gram):
    """You repaired each kept weight as if it were the only one, so they all repair the same error.
    They need one system with the matrix G[K, K]."""
    return (row + (gram @ (row * ~mask)) / gram.diagonal()) * mask


def _other_half(row, mask, gram):
    """You refitted the pruned weights and zeroed the kept ones: True in the mask means kept."""
    return refit_row(row, ~mask, gram)


def _pruned_stay(row, mask, gram):
    """The pruned weights are still there: set them to zero."""
    return torch.where(mask, refit_row(row, mask, gram), row)


def _row(seed: int, c: int, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    weight, gram = _layer(seed, 1, c)
    return weight[0], torch.randperm(c, generator=torch.Generator().manual_seed(seed)) < kept, gram


# 02.4 to 02.7: the block loop, tried on a block of two linears and on a model of three blocks.
class _Block(nn.Module):
    """Two linears; like a real block it needs more than its hidden states, and flattens them before
    its first linear."""

    def __init__(self, seed: int):
        super().__init__()
        self.fc1 = nn.utils.skip_init(nn.Linear, 4, 4)
        self.act = nn.ReLU()
        self.fc2 = nn.utils.skip_init(nn.Linear, 4, 4)
        for place, weight in enumerate(self.parameters()):
            weight.data = normal(*weight.shape, seed=seed + place)

    def forward(self, hidden, attention_mask=None):
        seen = hidden if attention_mask is None else hidden * attention_mask
        inner = self.act(self.fc1(seen.flatten(0, -2)))
        return hidden + self.fc2(inner.view_as(hidden))


def _states(seed: int) -> list[Tensor]:
    """Hidden states [1, tokens, 4] of three windows."""
    return [normal(1, 5, 4, seed=seed + place) for place in (10, 11, 12)]


def _rest() -> dict[str, Tensor]:
    """What the block is called with besides."""
    return {"attention_mask": torch.tensor([[[0.0], [1.0], [1.0], [1.0], [1.0]]])}


def _prune_layer(weight: Tensor, x: Tensor) -> Tensor:
    """A method with a mask that depends on the inputs and with kept weights that move."""
    score = weight.abs() * x.norm(dim=1)
    return 1.5 * weight * (score > score.median())


def _linears(block: nn.Module) -> dict[str, nn.Linear]:
    return {name: part for name, part in block.named_modules() if isinstance(part, nn.Linear)}


# 02.4: the inputs of all linears of a block
def capture_inputs(block, run):
    """The inputs X [c, N] of every linear of a block by its name, while run() runs the block."""
    seen = {name: [] for name in _linears(block)}

    def reader(name):
        return lambda module, args: seen[name].append(args[0].flatten(0, -2))

    hooks = [
        linear.register_forward_pre_hook(reader(name)) for name, linear in _linears(block).items()
    ]
    run()
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts).T for name, parts in seen.items()}


def _captured(block, run, modules=None, outputs=False) -> dict[str, list[Tensor]]:
    """What modules receive or give, window by window; the hooks are removed."""
    seen, hooks = {}, []
    for name, module in (modules or _linears(block)).items():

        def keep(module, args, output=None, name=name):
            seen.setdefault(name, []).append((args[0] if output is None else output).flatten(0, -2))

        add = module.register_forward_hook if outputs else module.register_forward_pre_hook
        hooks.append(add(keep))
    run()
    for hook in hooks:
        hook.remove()
    return seen


def _by_package(block, run):
    return {name: torch.cat(parts).T for name, parts in _captured(block, run).items()}


def _hooks_stay(block, run):
    """Your hooks are still on the block, and every later call would go on filling them: keep the
    handles and call .remove() on each of them after run()."""
    found = _by_package(block, run)
    for linear in _linears(block).values():
        linear.register_forward_pre_hook(lambda module, args: None)
    return found


def _outputs_of_linears(block, run):
    """These are the outputs of the linears: a forward hook sees them. A forward pre-hook sees the
    inputs."""
    seen = _captured(block, run, outputs=True)
    return {name: torch.cat(parts).T for name, parts in seen.items()}


def _tokens_in_rows(block, run):
    """Your X is [N, c], a row for each token. Equation (1) needs a column for each token:
    transpose."""
    return {name: x.T for name, x in _by_package(block, run).items()}


def _windows_side_by_side(block, run):
    """You joined the windows along the width, so that the number of inputs grew. Join them along
    the tokens: dimension 0 before the transpose."""
    seen = _captured(block, run)
    return {name: torch.cat(parts, dim=1).T for name, parts in seen.items()}


def _last_window(block, run):
    """Only the last window is left: the hook is called once for each window and must append, not
    replace."""
    return {name: parts[-1].T for name, parts in _captured(block, run).items()}


def _all_under_one_name(block, run):
    """All inputs are stored under the name of the last linear: Python looks `name` up when the hook
    runs, after the loop has ended. Bind it, with name=name or a function that makes the hook."""
    seen = _captured(block, run)
    parts = [part for pair in zip(*seen.values(), strict=True) for part in pair]
    return {[*seen][-1]: torch.cat(parts).T}


def _all_under_one_name_of_many(block, run):
    """All inputs are stored under the name of the last linear, and the other lists stay empty:
    Python looks `name` up when the hook runs, after the loop has ended. Bind it, with name=name or
    a function that makes the hook."""
    return torch.cat([])


def _every_module(block, run):
    """You hooked every module of the block. Pruning touches its linears only:
    isinstance(module, nn.Linear)."""
    seen = _captured(block, run, {name: part for name, part in block.named_modules() if name})
    return {name: torch.cat(parts).T for name, parts in seen.items()}


def _try_capture(capture: Callable, seed: int) -> dict:
    block, rest = _Block(seed), _rest()

    @torch.no_grad()
    def run():
        for part in _states(seed):
            block(part, **rest)

    found = capture(block, run)
    left = [len(part._forward_pre_hooks) + len(part._forward_hooks) for part in block.modules()]
    return found if found is None else {"the inputs": found, "hooks left": sum(left)}


# 02.5: the block again, on all windows
@torch.no_grad()
def replay(block, hidden, rest):
    """The block's outputs, one for each window of hidden states."""
    return [block(states, **rest) for states in hidden]


def _replay_in_a_loop(block, hidden, rest):
    new = []
    with torch.no_grad():
        for states in hidden:
            new.append(block(states, **rest))
    return new


@torch.no_grad()
def _without_rest(block, hidden, rest):
    """You called the block with its hidden states only. The model also passes an attention mask and
    positions: hand on **rest."""
    return [block(states) for states in hidden]


def _with_gradients(block, hidden, rest):
    """The outputs carry gradients, so that PyTorch keeps everything that led to them, for every
    block. Run under torch.no_grad()."""
    return [block(states, **rest) for states in hidden]


@torch.no_grad()
def _list_overwritten(block, hidden, rest):
    """You changed the list `hidden` itself. The loop runs a block twice on the same inputs, so
    return a new list."""
    for place, states in enumerate(hidden):
        hidden[place] = block(states, **rest)
    return hidden


@torch.no_grad()
def _one_after_another(block, hidden, rest):
    """Each window went into the block with the output of the window before it. The windows do not
    meet: every one goes through the block by itself."""
    new, states = [], hidden[0]
    for _ in hidden:
        states = block(states, **rest)
        new.append(states)
    return new


@torch.no_grad()
def _residual_twice(block, hidden, rest):
    """You added the block's input to its output. The block does that itself, its output is the new
    residual stream."""
    return [states + block(states, **rest) for states in hidden]


@torch.no_grad()
def _one_window(block, hidden, rest):
    """You returned after the first window: one output for each window is asked for."""
    return [block(hidden[0], **rest)]


def _try_replay(replay: Callable, seed: int) -> dict | None:
    block, hidden, rest = _Block(seed), _states(seed), _rest()
    given = [*hidden]
    found = replay(block, hidden, rest)
    if found is None:
        return None
    found = [*found]
    return {
        "carries gradients": any(states.requires_grad for states in found),
        "the list of inputs as it was": all(a is b for a, b in zip(given, hidden, strict=True)),
        "the outputs": found,
    }


# 02.6: the matrices of a block
def prune_block(block, inputs, prune_layer):
    """Every linear of the block gets the weight that prune_layer(weight, X) makes of its own."""
    for name, x in inputs.items():
        linear = block.get_submodule(name)
        linear.weight.data = prune_layer(linear.weight.detach(), x)


@torch.no_grad()
def _prune_block_by_copying(block, inputs, prune_layer):
    for name, linear in _linears(block).items():
        linear.weight.copy_(prune_layer(linear.weight, inputs[name]))


def _not_written(block, inputs, prune_layer):
    """The block still has its dense weights: write what prune_layer returns into
    linear.weight.data."""
    for name, x in inputs.items():
        prune_layer(block.get_submodule(name).weight.detach(), x)


def _first_linear_only(block, inputs, prune_layer):
    """Only the first linear is pruned. Is there a `return` inside the loop?"""
    name = next(iter(inputs))
    prune_block(block, {name: inputs[name]}, prune_layer)


def _inputs_of_another(block, inputs, prune_layer):
    """All linears were pruned with the inputs of the same layer. Each has its own: inputs[name]."""
    x = next(iter(inputs.values()))
    prune_block(block, dict.fromkeys(inputs, x), prune_layer)


def _inputs_of_the_last(block, inputs, prune_layer):
    """All linears were pruned with the inputs of the last layer. Each has its own: inputs[name]."""
    prune_block(block, dict.fromkeys(inputs, [*inputs.values()][-1]), prune_layer)


def _mask_alone(block, inputs, prune_layer):
    """You took over the zeros of W' and kept the old values of the other weights. A method may move
    them: store W' itself."""
    prune_block(block, inputs, lambda weight, x: weight * (prune_layer(weight, x) != 0))


def _what_went(block, inputs, prune_layer):
    """You stored what was taken away, W - W', in place of W'."""
    prune_block(block, inputs, lambda weight, x: weight - prune_layer(weight, x))


def _try_prune_block(prune_block: Callable, seed: int) -> dict[str, Tensor]:
    block = _Block(seed)
    inputs = {"fc1": normal(4, 9, seed=seed + 20), "fc2": normal(4, 9, seed=seed + 21)}
    inputs["fc1"][1] *= 5
    inputs["fc2"][2] *= 5
    prune_block(block, inputs, _prune_layer)
    return {f"the weight of {name}": block.get_submodule(name).weight.detach() for name in inputs}


# 02.7: the whole model
def first_inputs(model, windows):
    """The hidden states that the first block receives, a window each, and all else that the model
    calls its blocks with."""
    calls = []

    def keep(module, args, kwargs):
        calls.append((args[0], kwargs))

    hook = blocks_of(model)[0].register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        for window in windows:
            model(window[None], use_cache=False)
    hook.remove()
    return [hidden for hidden, _ in calls], calls[0][1]


def prune_model(model, windows, prune_layer):
    """Prune block after block, each on the inputs that the pruned blocks before it give."""
    hidden, rest = first_inputs(model, windows)
    for block in blocks_of(model):
        inputs = capture_inputs(block, lambda block=block, now=hidden: replay(block, now, rest))
        prune_block(block, inputs, prune_layer)
        hidden = replay(block, hidden, rest)


def _loop(model, windows, prune_layer, *, blocks=None, advance=replay, again=False) -> None:
    """The loop with one of its steps spoilt."""
    hidden, rest = first_inputs(model, windows)
    for block in [*blocks_of(model)][blocks or slice(None)]:
        inputs = capture_inputs(block, lambda block=block, now=hidden: replay(block, now, rest))
        dense = replay(block, hidden, rest)
        prune_block(block, inputs, prune_layer)
        hidden = advance(block, hidden, rest) if advance else dense
        if again:
            hidden = replay(block, hidden, rest)


def _dense_stream(model, windows, prune_layer):
    """From the second block on, the inputs are those of the dense model: you ran the block before
    it was pruned. Run it again after prune_block, and pass those outputs on."""
    _loop(model, windows, prune_layer, advance=None)


def _never_advanced(model, windows, prune_layer):
    """Every block ran on the inputs of the first one: pass the outputs on, hidden = replay(...)."""
    _loop(model, windows, prune_layer, advance=lambda block, hidden, rest: hidden)


def _block_applied_twice(model, windows, prune_layer):
    """You passed the outputs on twice, so that each block is applied to its own outputs. Once,
    after pruning, is enough."""
    _loop(model, windows, prune_layer, again=True)


def _first_block_only(model, windows, prune_layer):
    """Only the first block is pruned. Is there a `return` inside the loop?"""
    _loop(model, windows, prune_layer, blocks=slice(1))


def _without_the_last(model, windows, prune_layer):
    """The last block is still dense: it has no successor, but it is pruned like the others."""
    _loop(model, windows, prune_layer, blocks=slice(-1))


def _one_window_of_many(model, windows, prune_layer):
    """You calibrated on the first window only: use all of them."""
    prune_model(model, windows[:1], prune_layer)


def _blocks_unpruned(model, windows, prune_layer):
    """Nothing is pruned: call prune_block between capture_inputs and replay."""
    hidden, rest = first_inputs(model, windows)
    for block in blocks_of(model):
        hidden = replay(block, hidden, rest)


def tiny_opt(seed: int) -> tuple[OPTForCausalLM, Tensor]:
    """An OPT of three blocks of width 8, and three windows [3, 6] of tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 12}
        counts = {"vocab_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2}
        model = OPTForCausalLM(
            OPTConfig(**sizes, **counts, max_position_embeddings=16, init_std=0.4)
        ).eval()
        windows = torch.randint(4, 20, (3, 6))
    return model, windows


def _try_prune_model(prune_model: Callable, seed: int) -> dict:
    model, windows = tiny_opt(seed)
    seen = []

    def prune_layer(weight, x):
        seen.append(x)
        return _prune_layer(weight, x)

    prune_model(model, windows, prune_layer)
    weights = [linear.weight.detach() for linear in _linears(blocks_of(model)).values()]
    return {"the inputs of its linears": seen, "the weights": weights}


def _inputs_by_block(mine: dict, expected: dict) -> Figure:
    """How far the inputs that prune_layer got are from the right ones, block by block."""
    pairs = zip(
        mine["the inputs of its linears"], expected["the inputs of its linears"], strict=True
    )
    far = torch.tensor([((a - b).norm() / b.norm()).item() for a, b in pairs]).view(3, -1)
    with viz.style():
        figure = Figure(figsize=(5, 2.6))
        axis = figure.subplots()
        viz.lines(
            axis,
            {"yours": far.mean(1).tolist(), "expected": [0.0] * 3},
            x=[0, 1, 2],
            xlabel="block",
            ylabel="relative difference",
        )
        axis.set(title="inputs of the linears, against the right ones", xticks=[0, 1, 2])
    return figure


def _first_captured(mine: dict, expected: dict) -> Figure:
    """The inputs of the first linear that differ."""
    mine, expected = mine["the inputs"], expected["the inputs"]
    name = next(name for name in expected if not _equal(mine[name], expected[name]))
    return viz.beside(mine[name], expected[name], f"the inputs of {name}")


def _first_weight(mine: dict, expected: dict) -> Figure:
    """The first weight that differs."""
    name = next(name for name in expected if not _equal(mine[name], expected[name]))
    return viz.beside(mine[name], expected[name], name)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b)


def _first_output(mine: dict, expected: dict) -> Figure:
    """The outputs for the last window."""
    return viz.beside(
        mine["the outputs"][-1][0], expected["the outputs"][-1][0], "the last window's output"
    )


# 02.8: a running mean over batches
def mean_gram(batches):
    """The mean of x x^T over all tokens, G / N [c, c], from batches [..., tokens, c]."""
    gram, seen = 0, 0
    for batch in batches:
        x = batch.flatten(0, -2).T
        new = x.shape[1]
        gram = gram * seen / (seen + new) + x @ x.T / (seen + new)
        seen += new
    return gram


def _gram_at_once(batches):
    x = torch.cat([batch.flatten(0, -2) for batch in batches])
    return x.T @ x / len(x)


def _never_added(batches):
    """The Gram matrix is still zero: the sum is computed and thrown away. Assign it."""
    return torch.zeros(batches[0].shape[-1], batches[0].shape[-1])


def _only_the_last(batches):
    """Only the last batch is left: you replaced the old mean in place of adding to it."""
    x = batches[-1].flatten(0, -2)
    return x.T @ x / sum(len(batch.flatten(0, -2)) for batch in batches)


def _not_rescaled(batches):
    """The old mean keeps its full weight when a batch is added. Scale it by seen / (seen + new)
    first."""
    gram, seen = 0, 0
    for batch in batches:
        x = batch.flatten(0, -2)
        seen += len(x)
        gram = gram + x.T @ x / seen
    return gram


def _counted_too_early(batches):
    """You counted the batch before you scaled the old mean, so the old mean weighs too much."""
    gram, seen = 0, 0
    for batch in batches:
        x = batch.flatten(0, -2)
        seen += len(x)
        gram = gram * seen / (seen + len(x)) + x.T @ x / seen
    return gram


def _the_sum(batches):
    """That is the sum over all tokens; their mean is asked for."""
    return _gram_at_once(batches) * sum(len(batch.flatten(0, -2)) for batch in batches)


def _counted_windows(batches):
    """You divided by the number of windows. The mean is over tokens: count the columns of x."""
    x = torch.cat([batch.flatten(0, -2) for batch in batches])
    return x.T @ x / sum(map(len, batches))


def _batches(seed: int, sizes: tuple[int, ...], c: int) -> tuple[list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return ([torch.randn(size, 7, c, generator=draw) for size in sizes],)


# 02.9: what a mask costs after the best refit
def price(row, mask, gram):
    """What a mask costs after the best refit, without refitting."""
    inverse = torch.linalg.inv(gram)
    pruned = row[~mask]
    return pruned @ torch.linalg.solve(inverse[~mask][:, ~mask], pruned)


def _price_of_the_refit(row, mask, gram):
    change = row - refit_row(row, mask, gram)
    return change @ gram @ change


def _price_without_refit(row, mask, gram):
    """That is the error before the refit, w_P G_PP w_P^T."""
    return row[~mask] @ gram[~mask][:, ~mask] @ row[~mask]


def _price_not_inverted(row, mask, gram):
    """You took the block [G^-1]_PP and did not invert it again."""
    return row[~mask] @ torch.linalg.inv(gram)[~mask][:, ~mask] @ row[~mask]


def _price_of_the_block(row, mask, gram):
    """You inverted G_PP. Invert G first, then take the block, then invert the block: the order
    matters."""
    return row[~mask] @ torch.linalg.inv(gram[~mask][:, ~mask]) @ row[~mask]


def _price_one_by_one(row, mask, gram):
    """You added the prices of single weights. They are right one by one; two weights that go
    together share kept weights that could repair them."""
    return (row.square() / torch.linalg.inv(gram).diagonal())[~mask].sum()


EXERCISES = {
    "02.1": Exercise(
        output_error,
        (_pruned_layer(1, 3, 5), _pruned_layer(2, 4, 4), _pruned_layer(3, 1, 6)),
        mistakes(_all_pairs_of_rows, _diagonal_error, _of_what_stays, _with_root, _relative),
        right=(_error_by_trace,),
        kind="warm-up",
        minutes=5,
        quiet=True,
    ),
    "02.2": Exercise(
        best_mask,
        (_row_case(4, 6, 4), _row_case(6, 8, 3), _row_case(13, 7, 4), _row_case(28, 6, 2)),
        mistakes(_mask_inverted, _by_magnitude, _by_diagonal, _zeros_for_kept, _worst_mask),
        right=(_best_mask_of_all,),
        minutes=8,
        draw="the mask, 1 = kept",
        quiet=True,
    ),
    "02.3": Exercise(
        refit_row,
        (_row(8, 5, 3), _row(9, 6, 2), _row(10, 7, 5)),
        mistakes(_nothing_moves, _wrong_sign, _one_at_a_time, _other_half, _pruned_stay),
        right=(_refit_by_correction,),
        minutes=10,
        draw="the new row",
        quiet=True,
    ),
    "02.4": Exercise(
        capture_inputs,
        ((31,), (41,)),
        mistakes(
            _hooks_stay,
            _outputs_of_linears,
            _tokens_in_rows,
            _windows_side_by_side,
            _last_window,
            _all_under_one_name,
            _all_under_one_name_of_many,
            _every_module,
        ),
        right=(_by_package,),
        minutes=10,
        trial=_try_capture,
        draw=_first_captured,
        quiet=True,
    ),
    "02.5": Exercise(
        replay,
        ((51,), (61,)),
        mistakes(
            _without_rest,
            _with_gradients,
            _list_overwritten,
            _one_after_another,
            _residual_twice,
            _one_window,
        ),
        right=(_replay_in_a_loop,),
        minutes=3,
        trial=_try_replay,
        draw=_first_output,
        quiet=True,
    ),
    "02.6": Exercise(
        prune_block,
        ((71,), (81,)),
        mistakes(
            _not_written,
            _first_linear_only,
            _inputs_of_another,
            _inputs_of_the_last,
            _mask_alone,
            _what_went,
        ),
        right=(_prune_block_by_copying,),
        minutes=4,
        trial=_try_prune_block,
        draw=_first_weight,
        quiet=True,
    ),
    "02.7": Exercise(
        prune_model,
        ((91,),),
        mistakes(
            _dense_stream,
            _never_advanced,
            _block_applied_twice,
            _first_block_only,
            _without_the_last,
            _one_window_of_many,
            _blocks_unpruned,
        ),
        minutes=8,
        trial=_try_prune_model,
        draw=_inputs_by_block,
        quiet=True,
    ),
    "02.8": Exercise(
        mean_gram,
        (_batches(11, (2, 3, 1), 4), _batches(12, (1, 1, 1, 1), 3)),
        mistakes(
            _never_added,
            _only_the_last,
            _not_rescaled,
            _counted_too_early,
            _the_sum,
            _counted_windows,
        ),
        right=(_gram_at_once,),
        kind="find-the-bug",
        minutes=4,
        draw="G / N",
        quiet=True,
    ),
    "02.9": Exercise(
        price,
        (_row(13, 5, 3), _row(14, 6, 2), _row(15, 7, 4)),
        mistakes(_price_without_refit, _price_not_inverted, _price_of_the_block, _price_one_by_one),
        right=(_price_of_the_refit,),
        kind="stretch",
        minutes=15,
        quiet=True,
    ),
}
