"""The exercises of notebook 12."""

import math

import torch

from .checking import Exercise


# 12.1 the Gram matrices of a block
def _gram_bytes(width, inner):  # d, f -> bytes, float32, shared by linears with the same inputs
    return 4 * (3 * width**2 + inner**2)


# 12.2 how many blocks fit
def _blocks_that_fit(free, block, fixed):  # bytes -> whole blocks
    return max(0, int((free - fixed) // block))


# 12.3 the floor in seconds
def _floor_seconds(tokens, seqlen, parameters, blocks, width, speed):
    return 2 * blocks * (2 * tokens * parameters + 4 * tokens * seqlen * width) / speed


# 12.4 what is written first
def _dangers(writes):  # [("shard" | "manifest", block), ...] -> bad moments
    count = 0
    for done in range(len(writes) + 1):
        named = {block for kind, block in writes[:done] if kind == "manifest"}
        whole = {block for kind, block in writes[:done] if kind == "shard"}
        count += not named <= whole
    return count


def _at_each_moment(writes, wrong):
    moments = (writes[:done] for done in range(len(writes) + 1))
    return sum(
        wrong(*({block for kind, block in there if kind == what} for what in ("manifest", "shard")))
        for there in moments
    )


# 12.5 TF32
def _tf32(x):  # float32 -> float32 with 11 significant bits, to nearest
    mantissa, exponent = torch.frexp(x)  # 0.5 <= |mantissa| < 1
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def _by_bits(x):
    bits = x.view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def _significant(x, bits):
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def _steady(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(12))


FINE = [("shard", 0), ("manifest", 0), ("shard", 1), ("manifest", 1)]
EARLY = [("manifest", 0), ("shard", 0), ("manifest", 1), ("shard", 1)]
CROSSED = [("shard", 0), ("manifest", 1), ("manifest", 0), ("shard", 1)]
LATE = [("shard", 0), ("shard", 1), ("manifest", 0), ("shard", 2), ("manifest", 1), ("manifest", 2)]
BOTH = [("manifest", 0), ("manifest", 1), ("shard", 0), ("shard", 1)]
EXERCISES = {
    "12.1": Exercise(
        _gram_bytes,
        ((5120, 13824), (4096, 11008), (576, 1536)),
        {
            "q, k and v read the same inputs, and so do gate and up: five matrices need two "
            "Gram matrices, not five": (lambda d, f: 4 * (6 * d**2 + f**2)),
            "sums over hundreds of thousands of tokens are kept in float32: 4 bytes a number": (
                lambda d, f: 2 * (3 * d**2 + f**2)
            ),
            "those are numbers, not bytes: a float32 takes 4": lambda d, f: 3 * d**2 + f**2,
            "down_proj reads the f activations, not the d of the residual stream": (
                lambda d, f: 4 * 4 * d**2
            ),
            "a Gram matrix is inputs x inputs, whatever the outputs are": (
                lambda d, f: 4 * (2 * d**2 + 2 * d * f)
            ),
        },
        right=(lambda d, f: sum(4 * inputs * inputs for inputs in (d, d, d, f)),),
        kind="warm-up",
        minutes=3,
    ),
    "12.2": Exercise(
        _blocks_that_fit,
        ((80e9, 0.63e9, 22e9), (8e9, 0.63e9, 3.1e9), (2e9, 0.63e9, 3e9), (24e9, 1.8e9, 5.9e9)),
        {
            "half a block is no block: round down": lambda free, block, fixed: max(
                0, round((free - fixed) / block)
            ),
            "round down: the last one would not fit": lambda free, block, fixed: max(
                0, math.ceil((free - fixed) / block)
            ),
            "the activations and the statistics are there too: take what is fixed off first": (
                lambda free, block, fixed: int(free // block)
            ),
            "no number of blocks is below 0: then not even the rest fits": (
                lambda free, block, fixed: (free - fixed) // block
            ),
        },
        right=(lambda free, block, fixed: int(max(free - fixed, 0) / block),),
        kind="core",
        minutes=4,
    ),
    "12.3": Exercise(
        _floor_seconds,
        ((262144, 2048, 317e6, 40, 5120, 450e12), (2048, 256, 3.5e6, 30, 576, 2e10)),
        {
            "one pass gathers the statistics of the dense block, a second one computes the "
            "outputs of the pruned block": (
                lambda n, t, p, b, d, v: b * (2 * n * p + 4 * n * t * d) / v
            ),
            "a weight costs a token a multiplication and an addition: 2 operations": (
                lambda n, t, p, b, d, v: 2 * b * (n * p + 4 * n * t * d) / v
            ),
            "attention multiplies too: 2 T d for the scores of a token and 2 T d for its values": (
                lambda n, t, p, b, d, v: 2 * b * 2 * n * p / v
            ),
            "a token attends within its own window of T tokens, not to all N": (
                lambda n, t, p, b, d, v: 2 * b * (2 * n * p + 4 * n * n * d) / v
            ),
            "that is one block, the model has more": (
                lambda n, t, p, b, d, v: 2 * (2 * n * p + 4 * n * t * d) / v
            ),
        },
        right=(lambda n, t, p, b, d, v: 4 * b * n * (p + 2 * t * d) / v,),
        kind="core",
        minutes=6,
    ),
    "12.4": Exercise(
        _dangers,
        ((FINE,), (EARLY,), (CROSSED,), (LATE,), (BOTH,)),
        {
            "the end is not the only moment: the power may fail after any of the writes": (
                lambda writes: int(
                    not {b for k, b in writes if k == "manifest"}
                    <= {b for k, b in writes if k == "shard"}
                )
            ),
            "a shard that no manifest names is not lost, it is written once more: nothing is "
            "wrong": lambda writes: _at_each_moment(writes, lambda named, whole: named != whole),
            "the same number of names and shards says nothing: is each named block among the "
            "whole ones?": lambda writes: _at_each_moment(
                writes, lambda named, whole: len(named) > len(whole)
            ),
            "count the moments, not the blocks that are missing at each": lambda writes: (
                _at_each_moment(writes, lambda named, whole: len(named - whole))
            ),
        },
        right=(lambda writes: _at_each_moment(writes, lambda named, whole: bool(named - whole)),),
        kind="find-the-bug",
        minutes=8,
    ),
    "12.5": Exercise(
        _tf32,
        (
            (_steady(64),),
            (1e5 * _steady(8),),
            (1e-6 * _steady(8),),
            (1 + torch.tensor([2**-11, 3 * 2**-11, 2**-10, -(2**-13)]),),
        ),
        {
            "that cuts the lower bits off: round to the nearest": (
                lambda x: (x.view(torch.int32) & ~0x1FFF).view(torch.float32)
            ),
            "a tie goes to the even neighbour; that rounds ties away from zero": (
                lambda x: ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
            ),
            "10 bits are stored and the leading 1 is not: 11 are significant": (
                lambda x: _significant(x, 10)
            ),
            "that has 11 significant bits too, but float16's short exponent: large numbers "
            "become infinite, small ones coarse": (lambda x: x.half().float()),
            "that is bfloat16, with 8 significant bits": lambda x: x.bfloat16().float(),
            "nothing was rounded: all bits are still there": lambda x: x.clone(),
        },
        right=(_by_bits,),
        kind="stretch",
        minutes=12,
        rtol=1e-6,
    ),
}
