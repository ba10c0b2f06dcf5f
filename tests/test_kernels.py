"""SparseGPT's kernel against the plain loop: in Triton's interpreter on a CPU (on a GPU:
test_gpu.py), and the choice."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import correlated

from sparselab import Pattern, Statistics
from sparselab.methods import sparsegpt

SHAPES = [(32, 40), (48, 33), (24, 1), (8, 5)]  # columns of the block, rows of the matrix
PATTERNS = [0.5, 0.0, "2:4", "3:4", "4:8", "1:2"]


def compare(prune_block, device: str = "cpu") -> None:
    """Both loops on the same blocks: the same masks, the same errors and weights up to the order of
    sums."""
    x = correlated(300, 64)
    x[:, 5] = 0
    stats = Statistics.of(x).finish("x")
    factor = stats.inverse_factor(0.01)[0].to(device)
    generator = torch.Generator().manual_seed(2)
    for k, r in SHAPES:
        for pattern in map(Pattern.parse, PATTERNS):
            w = torch.randn(k, r, generator=generator).to(device)
            pruned = (
                torch.rand(k, r, generator=generator) < pattern.sparsity * (not pattern.m)
            ).to(device)
            scale = sparsegpt._scale(factor.diagonal()[:k], stats.dead[:k].to(device))
            results = []
            for loop in (sparsegpt.prune_block, prune_block):
                new, mask = w.clone(), pruned.clone()
                errors = loop(new, mask, factor[:k, :k], scale, pattern)
                results.append((new.masked_fill(mask, 0), errors, mask))
            (w1, e1, m1), (w2, e2, m2) = results
            assert torch.equal(m1, m2), (k, r, pattern)
            torch.testing.assert_close(w1, w2, rtol=1e-4, atol=1e-5 * float(w.abs().max()))
            torch.testing.assert_close(e1, e2, rtol=1e-4, atol=1e-5 * float(e1.abs().max() + 1e-9))


def test_interpreted_kernel_gives_what_the_plain_loop_gives():
    pytest.importorskip(
        "triton", reason="Triton comes with torch's CUDA wheels; on a CPU: pip install triton"
    )
    code = (
        "from test_kernels import compare; from sparselab.methods.sparsegpt_triton import"
        " prune_block; compare(prune_block)"
    )
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        timeout=300,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
    )


@pytest.mark.parametrize("n, m", [(0, 0), (2, 4)])
def test_kernel_compiles_for_a_gpu_that_is_not_here(n, m):
    pytest.importorskip(
        "triton", reason="Triton comes with torch's CUDA wheels; on a CPU: pip install triton"
    )
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sparselab.methods import sparsegpt_triton as kernels

    types = (
        dict.fromkeys(["weight", "errors", "factor", "scale"], "*fp32")
        | {"pruned": "*i8"}
        | dict.fromkeys(["r", "k", "factor_stride"], "i32")
    )
    sizes = {"N": n, "M": m, "WIDTH": 128, "TILE": kernels.TILE}
    source = ASTSource(kernels._column_loop, types | dict.fromkeys(sizes, "constexpr"), sizes)
    made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernels.WARPS})
    assert len(made.asm["cubin"]) > 0 and made.metadata.shared < 48 * 1024


def test_the_kernel_is_chosen_where_it_works(monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(
        sparsegpt, "_kernel", lambda: SimpleNamespace(prune_block="kernel", WIDEST=256)
    )
    assert sparsegpt.block_loop(cuda, 128) == "kernel"
    assert (
        sparsegpt.block_loop(cuda, 512) is sparsegpt.block_loop(cpu, 128) is sparsegpt.prune_block
    )
    monkeypatch.setattr(sparsegpt, "_kernel", lambda: None)
    assert sparsegpt.block_loop(cuda, 128) is sparsegpt.prune_block


def test_without_triton_a_sentence_and_the_plain_loop(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "sparselab.methods.sparsegpt_triton", None
    )  # as if its import failed
    monkeypatch.delattr("sparselab.methods.sparsegpt_triton", raising=False)
    with pytest.warns(UserWarning, match="plain loop"):
        assert sparsegpt._kernel.__wrapped__() is None
