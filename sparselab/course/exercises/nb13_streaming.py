"""The exercises of notebook 13."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from .checking import Exercise, mistakes, normal
from .nb02_local_objective import capture_inputs, prune_block, replay


# 13.1: the Gram matrices of a block
def gram_bytes(width, inner):
    """Bytes of a block's Gram matrices in float32, from d and f; linears with the same inputs share
    one."""
    return 4 * (3 * width**2 + inner**2)


def _one_after_the_other(d, f):
    return 4 * d * d + 4 * d * d + 4 * d * d + 4 * f * f  # for qkv, o, gate and up, down


def _five_grams(d, f):
    """Q, k and v read the same inputs, and so do gate and up: five matrices need two Gram matrices,
    not five."""
    return 4 * (6 * d**2 + f**2)


def _two_bytes(d, f):
    """Sums over hundreds of thousands of tokens are kept in float32: 4 bytes a number."""
    return 2 * (3 * d**2 + f**2)


def _numbers(d, f):
    """Those are numbers, not bytes: a float32 takes 4."""
    return 3 * d**2 + f**2


def _residual_for_down(d, f):
    """Down_proj reads the f activations, not the d of the residual stream."""
    return 4 * 4 * d**2


def _inputs_by_outputs(d, f):
    """A Gram matrix is inputs x inputs, whatever the outputs are."""
    return 4 * (2 * d**2 + 2 * d * f)


# 13.2: how many blocks fit
def blocks_that_fit(free, block, fixed):
    """Whole blocks that fit beside what is fixed, all in bytes."""
    return max(0, int((free - fixed) // block))


def _rounded(free, block, fixed):
    """Half a block is no block: round down."""
    return max(0, round((free - fixed) / block))


def _rounded_up(free, block, fixed):
    """Round down: the last one would not fit."""
    return max(0, math.ceil((free - fixed) / block))


def _fixed_forgotten(free, block, fixed):
    """The activations and the statistics are there too: take what is fixed off first."""
    return int(free // block)


def _below_zero(free, block, fixed):
    """No number of blocks is below 0: then not even the rest fits."""
    return (free - fixed) // block


# 13.3: the floor in seconds
def floor_seconds(tokens, seqlen, parameters, blocks, width, speed):
    """Seconds of two passes through all blocks, at a speed in operations a second."""
    return 2 * blocks * (2 * tokens * parameters + 4 * tokens * seqlen * width) / speed


def _one_pass(n, t, p, b, d, v):
    """One pass gathers the statistics of the dense block, a second one computes the outputs of the
    pruned block."""
    return b * (2 * n * p + 4 * n * t * d) / v


def _one_operation(n, t, p, b, d, v):
    """A weight costs a token a multiplication and an addition: 2 operations."""
    return 2 * b * (n * p + 4 * n * t * d) / v


def _without_attention(n, t, p, b, d, v):
    """Attention multiplies too: 2 T d for the scores of a token and 2 T d for its values."""
    return 2 * b * 2 * n * p / v


def _over_all_tokens(n, t, p, b, d, v):
    """A token attends within its own window of T tokens, not to all N."""
    return 2 * b * (2 * n * p + 4 * n * n * d) / v


def _one_block(n, t, p, b, d, v):
    """That is one block, the model has more."""
    return 2 * (2 * n * p + 4 * n * t * d) / v


# 13.4: one block in memory at a time
@torch.no_grad()
def prune_streamed(blocks, load, finish, hidden, rest, prune_layer):
    """Prune block after block; load(layer) gives a block memory, finish(layer) stores its result,
    and then it has none again."""
    for layer, block in enumerate(blocks):
        load(layer)
        inputs = capture_inputs(block, partial(replay, block, hidden, rest))
        prune_block(block, inputs, prune_layer)
        hidden = replay(block, hidden, rest)
        finish(layer)
        block.to("meta")


def _streamed_by_number(blocks, load, finish, hidden, rest, prune_layer):
    for layer in range(len(blocks)):
        _stream_one(blocks[layer], layer, load, finish, hidden, rest, prune_layer)
        hidden = replay(blocks[layer], hidden, rest)
        blocks[layer].to("meta")


@torch.no_grad()
def _stream_one(block, layer, load, finish, hidden, rest, prune_layer) -> None:
    """A block is read, pruned and stored, and keeps its memory."""
    load(layer)
    inputs = capture_inputs(block, lambda: replay(block, hidden, rest))
    prune_block(block, inputs, prune_layer)
    finish(layer)


@torch.no_grad()
def _memory_kept(blocks, load, finish, hidden, rest, prune_layer):
    """Every finished block keeps its memory, until the whole model is there: end with
    block.to("meta")."""
    for layer, block in enumerate(blocks):
        _stream_one(block, layer, load, finish, hidden, rest, prune_layer)
        hidden = replay(block, hidden, rest)


@torch.no_grad()
def _all_loaded_first(blocks, load, finish, hidden, rest, prune_layer):
    """You loaded all blocks before the first was pruned: load one, and only then."""
    for layer in range(len(blocks)):
        load(layer)
    for layer, block in enumerate(blocks):
        _stream_one(block, layer, lambda layer: None, finish, hidden, rest, prune_layer)
        hidden = replay(block, hidden, rest)
        block.to("meta")


@torch.no_grad()
def _not_passed_on(blocks, load, finish, hidden, rest, prune_layer):
    """Every block was pruned on the inputs of the first: replay the pruned block, and hand on what
    it gives."""
    for layer, block in enumerate(blocks):
        _stream_one(block, layer, load, finish, hidden, rest, prune_layer)
        block.to("meta")


@torch.no_grad()
def _dense_passed_on(blocks, load, finish, hidden, rest, prune_layer):
    """You replayed the block before it was pruned. The next block must see what the pruned one
    gives."""
    for layer, block in enumerate(blocks):
        load(layer)
        inputs = capture_inputs(block, partial(replay, block, hidden, rest))
        hidden = replay(block, hidden, rest)
        prune_block(block, inputs, prune_layer)
        finish(layer)
        block.to("meta")


@torch.no_grad()
def _stored_dense(blocks, load, finish, hidden, rest, prune_layer):
    """The block was stored before it was pruned: call finish(layer) after that."""

    def load_and_finish(layer):
        load(layer)
        finish(layer)

    for layer, block in enumerate(blocks):
        _stream_one(block, layer, load_and_finish, lambda layer: None, hidden, rest, prune_layer)
        hidden = replay(block, hidden, rest)
        block.to("meta")


class _Small(nn.Module):
    """A block with one linear layer of two inputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False, device="meta")

    def forward(self, states: Tensor, scale: float) -> Tensor:
        return torch.tanh(scale * self.linear(states)) + states


def _half_of_each_row(weight: Tensor, x: Tensor) -> Tensor:
    """A plug whose every number depends on the inputs: one of two weights goes."""
    norms = x.norm(dim=1)
    scores = weight.abs() * norms
    return weight * norms * (scores >= scores.amax(1, keepdim=True))


def _streamed(answer, weights: Tensor, states: Tensor) -> Tensor:
    """A row for each block: its 4 stored weights, blocks in memory then, blocks in memory at the
    end."""
    blocks, rows = [_Small() for _ in weights], {}

    def in_memory() -> int:
        return sum(not block.linear.weight.is_meta for block in blocks)

    def load(layer):
        blocks[layer].linear.weight = nn.Parameter(weights[layer].clone())

    def finish(layer):
        rows[layer] = [*blocks[layer].linear.weight.flatten().tolist(), in_memory()]

    with torch.no_grad():
        answer(blocks, load, finish, [*states], {"scale": 2.0}, _half_of_each_row)
    return torch.tensor([[*rows[layer], in_memory()] for layer in range(len(blocks))])


# 13.5: what is written first
def dangers(writes):
    """At how many moments a block is named and not whole, for writes ("shard" or "manifest",
    block)."""
    return _at_each_moment(writes, lambda named, whole: not named <= whole)


def _at_each_moment(writes, wrong):
    """The sum of wrong(named, whole), the blocks that are named and whole, after each write."""
    total, there = 0, {"manifest": set(), "shard": set()}
    for kind, block in writes:
        there[kind].add(block)
        total += wrong(there["manifest"], there["shard"])
    return total


def _dangers_one_by_one(writes):
    return sum(_only_the_end(writes[: done + 1]) for done in range(len(writes)))


def _only_the_end(writes):
    """The end is not the only moment: the power may fail after any of the writes."""
    named = {block for kind, block in writes if kind == "manifest"}
    return int(not named <= {block for kind, block in writes if kind == "shard"})


def _any_difference(writes):
    """A shard that no manifest names is not lost, it is written once more: nothing is wrong."""
    return _at_each_moment(writes, lambda named, whole: named != whole)


def _more_named(writes):
    """The same number of names and shards says nothing: is each named block among the whole
    ones?"""
    return _at_each_moment(writes, lambda named, whole: len(named) > len(whole))


def _missing_counted(writes):
    """Count the moments, not the blocks that are missing at each."""
    return _at_each_moment(writes, lambda named, whole: len(named - whole))


# 13.6: TF32
def tf32(x):
    """Float32 [...] rounded to 11 significant bits, ties to even."""
    return _significant(x, 11)


def _by_bits(x):
    bits = x.view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def _significant(x, bits):
    mantissa, exponent = torch.frexp(x)  # 0.5 <= |mantissa| < 1
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def _cut_off(x):
    """That cuts the lower bits off: round to the nearest."""
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


def _ties_from_zero(x):
    """A tie goes to the even neighbour; that rounds ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _ten_bits(x):
    """10 bits are stored and the leading 1 is not: 11 are significant."""
    return _significant(x, 10)


def _half(x):
    """That has 11 significant bits too, but float16's short exponent: large numbers become
    infinite, small ones coarse."""
    return x.half().float()


def _brain_float(x):
    """That is bfloat16, with 8 significant bits."""
    return x.bfloat16().float()


def _not_rounded(x):
    """Nothing was rounded: all bits are still there."""
    return x.clone()


FINE = [("shard", 0), ("manifest", 0), ("shard", 1), ("manifest", 1)]
EARLY = [("manifest", 0), ("shard", 0), ("manifest", 1), ("shard", 1)]
CROSSED = [("shard", 0), ("manifest", 1), ("manifest", 0), ("shard", 1)]
LATE = [("shard", 0), ("shard", 1), ("manifest", 0), ("shard", 2), ("manifest", 1), ("manifest", 2)]
BOTH = [("manifest", 0), ("manifest", 1), ("shard", 0), ("shard", 1)]
EXERCISES = {
    "13.1": Exercise(
        gram_bytes,
        ((5120, 13824), (4096, 11008), (576, 1536)),
        mistakes(_five_grams, _two_bytes, _numbers, _residual_for_down, _inputs_by_outputs),
        right=(_one_after_the_other,),
        kind="warm-up",
        minutes=3,
        quiet=True,
    ),
    "13.2": Exercise(
        blocks_that_fit,
        ((80e9, 0.63e9, 22e9), (8e9, 0.63e9, 3.1e9), (2e9, 0.63e9, 3e9), (24e9, 1.8e9, 5.9e9)),
        mistakes(_rounded, _rounded_up, _fixed_forgotten, _below_zero),
        right=(lambda free, block, fixed: int(max(free - fixed, 0) / block),),
        kind="warm-up",
        minutes=4,
        quiet=True,
    ),
    "13.3": Exercise(
        floor_seconds,
        ((262144, 2048, 317e6, 40, 5120, 450e12), (2048, 256, 3.5e6, 30, 576, 2e10)),
        mistakes(_one_pass, _one_operation, _without_attention, _over_all_tokens, _one_block),
        right=(lambda n, t, p, b, d, v: 4 * b * n * (p + 2 * t * d) / v,),
        minutes=6,
        quiet=True,
    ),
    "13.4": Exercise(
        prune_streamed,
        ((normal(4, 2, 2, seed=3), normal(3, 1, 5, 2, seed=4)),),
        mistakes(_memory_kept, _all_loaded_first, _not_passed_on, _dense_passed_on, _stored_dense),
        right=(_streamed_by_number,),
        minutes=8,
        trial=_streamed,
        draw="a row for each block: 4 stored weights, blocks in memory then and at the end",
        quiet=True,
    ),
    "13.5": Exercise(
        dangers,
        ((FINE,), (EARLY,), (CROSSED,), (LATE,), (BOTH,)),
        mistakes(_only_the_end, _any_difference, _more_named, _missing_counted),
        right=(_dangers_one_by_one,),
        kind="find-the-bug",
        minutes=8,
        quiet=True,
    ),
    "13.6": Exercise(
        tf32,
        (
            (normal(64, seed=12),),
            (normal(8, seed=12, scale=1e5),),
            (normal(8, seed=12, scale=1e-6),),
            (1 + torch.tensor([2**-11, 3 * 2**-11, 2**-10, -(2**-13)]),),
        ),
        mistakes(_cut_off, _ties_from_zero, _ten_bits, _half, _brain_float, _not_rounded),
        right=(_by_bits,),
        kind="stretch",
        minutes=12,
        rtol=1e-6,
        quiet=True,
    ),
}
