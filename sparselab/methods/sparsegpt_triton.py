"""SparseGPT's column loop within one block of columns, as one Triton kernel: a few tens of launches
a matrix, not thousands.

Triton is no dependency of sparselab: torch's CUDA wheels bring it, and without it (or on a CPU) the
plain loop of sparselab.methods.sparsegpt does the same work. Import this module only where triton
imports.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..patterns import Pattern

TILE = 16  # rows of the matrix that one program keeps in registers
WARPS = 4  # that share them
WIDEST = 256  # columns that still fit there


@triton.jit
def _column_loop(
    weight,
    pruned,
    errors,
    factor,
    scale,
    r,
    k,
    factor_stride,
    N: tl.constexpr,
    M: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: TILE rows of the matrix, all k columns of the block; no row needs another.

    weight, pruned, errors [k, r] are transposed, so that neighbouring rows are neighbours in
    memory.
    """
    column = tl.arange(0, WIDTH)[:, None]  # WIDTH: k, up to a power of two
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)[None, :]
    place, inside = column * r + row, (column < k) & (row < r)
    w = tl.load(weight + place, mask=inside, other=0.0)  # [WIDTH, TILE], in registers to the end
    chosen = tl.load(pruned + place, mask=inside, other=0) != 0
    if M:
        gain = tl.load(
            scale + column, mask=column < k, other=0.0
        )  # 1 / R_jj, next to nothing for dead inputs
    for j in range(k):
        if M:
            if j % M == 0:  # the n lowest of m scores, ties to the left
                score = w * gain * (w * gain)
                lower = tl.zeros([WIDTH, TILE], tl.int32)  # how many of the group come before
                for i in range(j, j + M):
                    other = tl.sum(tl.where(column == i, score, 0.0), axis=0)[None, :]
                    lower += ((other < score) | ((other == score) & (i < column))).to(tl.int32)
                chosen = chosen | ((column >= j) & (column < j + M) & (lower < N))
        inverse = 1.0 / tl.load(factor + j * factor_stride + j)
        error = tl.sum(tl.where((column == j) & chosen, w, 0.0), axis=0)[None, :] * inverse
        right = tl.load(
            factor + j * factor_stride + column, mask=(column > j) & (column < k), other=0.0
        )
        w -= right * error  # kept weights make no error
        tl.store(errors + j * r + row, error, mask=row < r)
    tl.store(weight + place, w, mask=inside)
    if M:
        tl.store(pruned + place, chosen.to(tl.int8), mask=inside)


def prune_block(
    w: Tensor, pruned: Tensor, factor: Tensor, scale: Tensor, pattern: Pattern
) -> Tensor:
    """What `sparselab.methods.sparsegpt.prune_block` does, in one launch: w float32 and pruned bool
    [k, r], contiguous, change in place; factor R [k, k], scale [k, 1] -> errors e_j = w_j / R_jj,
    [k, r]. At most WIDEST columns.

    Errors are pushed to the columns on the right as they are made, where the plain loop pulls them:
    the same sums in another order.
    """
    k, r = w.shape
    errors = torch.empty_like(w)
    with torch.cuda.device_of(w):  # Triton launches on the current device
        _column_loop[(triton.cdiv(r, TILE),)](
            w,
            pruned.view(torch.int8),
            errors,
            factor,
            scale,
            r,
            k,
            factor.stride(0),
            N=pattern.n,
            M=pattern.m,
            WIDTH=triton.next_power_of_2(k),
            TILE=TILE,
            num_warps=WARPS,
        )
    return errors
