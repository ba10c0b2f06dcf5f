"""The same on a GPU, where there is one."""
import copy

import pytest
import torch
from conftest import TINY

import sparselab as sl

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
