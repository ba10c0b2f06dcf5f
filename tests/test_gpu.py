"""The same on a GPU, where there is one."""
import copy

import pytest
import torch
from conftest import TINY, correlated
from test_kernels import compare

import sparselab as sl
from sparselab.methods import sparsegpt

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none here")


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "dsnot", "swaps", "admm", "sparsellm",
                                    sl.Magnitude(scope="global")], ids=str)
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_a_gpu_makes_the_same_masks(family, method, sparsity, windows):
    here = TINY[family]()
    there = copy.deepcopy(here).cuda()
    for model in (here, there):
        report = sl.prune(model, windows, method=method, sparsity=sparsity, progress=False)
    assert report.settings["device"] == "cuda" and report.peak_bytes < 2**30
    for name, linear in sl.linears_of(here).items():
        other = sl.linears_of(there)[name].weight
        assert other.is_cuda and ((linear.weight == 0) == (other.cpu() == 0)).float().mean() > 0.98


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_on_a_gpu(dtype):
    model, tokenizer = sl.load("opt-mini", dtype=dtype)
    windows = sl.calibration(tokenizer, "demo", samples=8, seqlen=256)
    report = sl.prune(model, windows, method="sparsegpt", sparsity=0.5, progress=False)
    assert next(model.parameters()).is_cuda and report.sparsity == pytest.approx(0.5, abs=1e-4)
    assert sl.perplexity(model, sl.tokens(tokenizer, "demo")[:4096], seqlen=256, progress=False) < 500


@pytest.mark.parametrize("method", ["wanda", "sparsellm"])
@pytest.mark.parametrize("offload", ["device", "cpu", "disk"])
def test_streamed_on_a_gpu_gives_the_same_bits(method, offload, tmp_path):
    model, tokenizer = sl.load("opt-mini")
    windows = sl.calibration(tokenizer, "demo", samples=8, seqlen=256)
    sl.prune(model, windows, method=method, sparsity=0.5, progress=False)
    sl.prune("opt-mini", windows, method=method, sparsity=0.5, offload=offload, out=tmp_path / "out", progress=False)
    again, _ = sl.load(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_kernel_gives_what_the_plain_loop_gives():
    compare(pytest.importorskip("sparselab.kernels").prune_block, "cuda")


@pytest.mark.parametrize("sparsity", [0.7, "2:4"])
def test_the_kernel_prunes_a_matrix_as_the_plain_loop_does(sparsity, monkeypatch):
    stats = sl.Statistics.of(correlated(2000, 700).cuda()).finish("x")       # 700: the last block is narrower
    weight, results = torch.randn(300, 700, device="cuda"), []
    assert sparsegpt.block_loop(weight.device, 128) is not sparsegpt.prune_block
    for kernel in (True, False):
        if not kernel:
            monkeypatch.setattr(sparsegpt, "_kernel", lambda: None)
        results.append(sl.SparseGPT().solve(weight, stats, sl.Pattern.parse(sparsity)))
    one, two = results
    assert (one.mask == two.mask).float().mean() > 0.995
    assert stats.relative_error(weight, one.weight) == pytest.approx(stats.relative_error(weight, two.weight), rel=1e-3)
