"""The exercises of notebook 13."""

import math

import torch

from .checking import Exercise, mistakes, normal


# 13.1 the Gram matrices of a block
def _gram_bytes(width, inner):  # d, f -> bytes, float32, shared by linears with the same inputs
    return 4 * (3 * width**2 + inner**2)


def _one_after_the_other(d, f):
    return 4 * d * d + 4 * d * d + 4 * d * d + 4 * f * f  # for qkv, o, gate and up, down


def _five_grams(d, f):
    """q, k and v read the same inputs, and so do gate and up: five matrices need two Gram matrices,
    not five"""
    return 4 * (6 * d**2 + f**2)


def _two_bytes(d, f):
    """sums over hundreds of thousands of tokens are kept in float32: 4 bytes a number"""
    return 2 * (3 * d**2 + f**2)


def _numbers(d, f):
    """those are numbers, not bytes: a float32 takes 4"""
    return 3 * d**2 + f**2


def _residual_for_down(d, f):
    """down_proj reads the f activations, not the d of the residual stream"""
    return 4 * 4 * d**2


def _inputs_by_outputs(d, f):
    """a Gram matrix is inputs x inputs, whatever the outputs are"""
    return 4 * (2 * d**2 + 2 * d * f)


# 13.2 how many blocks fit
def _blocks_that_fit(free, block, fixed):  # bytes -> whole blocks
    return max(0, int((free - fixed) // block))


def _rounded(free, block, fixed):
    """half a block is no block: round down"""
    return max(0, round((free - fixed) / block))


def _rounded_up(free, block, fixed):
    """round down: the last one would not fit"""
    return max(0, math.ceil((free - fixed) / block))


def _fixed_forgotten(free, block, fixed):
    """the activations and the statistics are there too: take what is fixed off first"""
    return int(free // block)


def _below_zero(free, block, fixed):
    """no number of blocks is below 0: then not even the rest fits"""
    return (free - fixed) // block


# 13.3 the floor in seconds
def _floor_seconds(tokens, seqlen, parameters, blocks, width, speed):
    return 2 * blocks * (2 * tokens * parameters + 4 * tokens * seqlen * width) / speed


def _one_pass(n, t, p, b, d, v):
    """one pass gathers the statistics of the dense block, a second one computes the outputs of the
    pruned block"""
    return b * (2 * n * p + 4 * n * t * d) / v


def _one_operation(n, t, p, b, d, v):
    """a weight costs a token a multiplication and an addition: 2 operations"""
    return 2 * b * (n * p + 4 * n * t * d) / v


def _without_attention(n, t, p, b, d, v):
    """attention multiplies too: 2 T d for the scores of a token and 2 T d for its values"""
    return 2 * b * 2 * n * p / v


def _over_all_tokens(n, t, p, b, d, v):
    """a token attends within its own window of T tokens, not to all N"""
    return 2 * b * (2 * n * p + 4 * n * n * d) / v


def _one_block(n, t, p, b, d, v):
    """that is one block, the model has more"""
    return 2 * (2 * n * p + 4 * n * t * d) / v


# 13.4 what is written first
def _dangers(writes):  # [("shard" | "manifest", block), ...] -> bad moments
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
    """the end is not the only moment: the power may fail after any of the writes"""
    named = {block for kind, block in writes if kind == "manifest"}
    return int(not named <= {block for kind, block in writes if kind == "shard"})


def _any_difference(writes):
    """a shard that no manifest names is not lost, it is written once more: nothing is wrong"""
    return _at_each_moment(writes, lambda named, whole: named != whole)


def _more_named(writes):
    """the same number of names and shards says nothing: is each named block among the whole
    ones?"""
    return _at_each_moment(writes, lambda named, whole: len(named) > len(whole))


def _missing_counted(writes):
    """count the moments, not the blocks that are missing at each"""
    return _at_each_moment(writes, lambda named, whole: len(named - whole))


# 13.5 TF32
def _tf32(x):  # float32 -> float32 with 11 significant bits, to nearest
    return _significant(x, 11)


def _by_bits(x):
    bits = x.view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def _significant(x, bits):
    mantissa, exponent = torch.frexp(x)  # 0.5 <= |mantissa| < 1
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def _cut_off(x):
    """that cuts the lower bits off: round to the nearest"""
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


def _ties_from_zero(x):
    """a tie goes to the even neighbour; that rounds ties away from zero"""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _ten_bits(x):
    """10 bits are stored and the leading 1 is not: 11 are significant"""
    return _significant(x, 10)


def _half(x):
    """that has 11 significant bits too, but float16's short exponent: large numbers become
    infinite, small ones coarse"""
    return x.half().float()


def _brain_float(x):
    """that is bfloat16, with 8 significant bits"""
    return x.bfloat16().float()


def _not_rounded(x):
    """nothing was rounded: all bits are still there"""
    return x.clone()


FINE = [("shard", 0), ("manifest", 0), ("shard", 1), ("manifest", 1)]
EARLY = [("manifest", 0), ("shard", 0), ("manifest", 1), ("shard", 1)]
CROSSED = [("shard", 0), ("manifest", 1), ("manifest", 0), ("shard", 1)]
LATE = [("shard", 0), ("shard", 1), ("manifest", 0), ("shard", 2), ("manifest", 1), ("manifest", 2)]
BOTH = [("manifest", 0), ("manifest", 1), ("shard", 0), ("shard", 1)]
EXERCISES = {
    "13.1": Exercise(
        _gram_bytes,
        ((5120, 13824), (4096, 11008), (576, 1536)),
        mistakes(_five_grams, _two_bytes, _numbers, _residual_for_down, _inputs_by_outputs),
        right=(_one_after_the_other,),
        kind="warm-up",
        minutes=3,
    ),
    "13.2": Exercise(
        _blocks_that_fit,
        ((80e9, 0.63e9, 22e9), (8e9, 0.63e9, 3.1e9), (2e9, 0.63e9, 3e9), (24e9, 1.8e9, 5.9e9)),
        mistakes(_rounded, _rounded_up, _fixed_forgotten, _below_zero),
        right=(lambda free, block, fixed: int(max(free - fixed, 0) / block),),
        minutes=4,
    ),
    "13.3": Exercise(
        _floor_seconds,
        ((262144, 2048, 317e6, 40, 5120, 450e12), (2048, 256, 3.5e6, 30, 576, 2e10)),
        mistakes(_one_pass, _one_operation, _without_attention, _over_all_tokens, _one_block),
        right=(lambda n, t, p, b, d, v: 4 * b * n * (p + 2 * t * d) / v,),
        minutes=6,
    ),
    "13.4": Exercise(
        _dangers,
        ((FINE,), (EARLY,), (CROSSED,), (LATE,), (BOTH,)),
        mistakes(_only_the_end, _any_difference, _more_named, _missing_counted),
        right=(_dangers_one_by_one,),
        kind="find-the-bug",
        minutes=8,
    ),
    "13.5": Exercise(
        _tf32,
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
    ),
}
