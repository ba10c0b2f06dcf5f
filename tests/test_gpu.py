"""The same on a GPU, where there is one."""

import copy

import pytest
import torch
from conftest import TINY, correlated
from test_kernels import compare

import sparselab as sl
from sparselab.methods import sparsegpt
from sparselab.methods.swaps import swap
from sparselab.numerics.cholesky import add_gram, mirror
from sparselab.numerics.refit import refit
from sparselab.numerics.spectrum import Spectrum
from sparselab.patterns import lowest, prune_rows

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none here"
)


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize(
    "method",
    [
        "magnitude",
        "wanda",
        "sparsegpt",
        "dsnot",
        "swaps",
        "admm",
        "alps",
        "sparsellm",
        sl.Magnitude(scope="global"),
    ],
    ids=str,
)
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


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("offload", ["device", "cpu", "disk"])
def test_gradients_on_a_gpu_say_the_same(family, offload, windows):
    """Rows, tokens and shares of zeros as on a CPU; units come nearer to their targets."""
    shares, here = [], TINY[family]()
    switches = {"fisher": True, "divide": True, "reconstruct": "sublayer", "offload": offload}
    for model in (here, copy.deepcopy(here).cuda()):
        report = sl.prune(
            model, windows, method="sparsegpt", sparsity=0.5, progress=False, **switches
        )
        shares.append(report.settings["shares"])
        rows = report.reconstructions
        assert len(rows) == 4 and all(row["error"] <= row["start"] for row in rows)
        assert sum(row["error"] < row["start"] for row in rows) >= 2
    assert shares[1] == pytest.approx(shares[0], abs=0.02)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_on_a_gpu(dtype):
    model, tokenizer = sl.load("opt-mini", dtype=dtype)
    windows = sl.calibration(tokenizer, "demo", samples=8, seqlen=256)
    report = sl.prune(model, windows, method="sparsegpt", sparsity=0.5, progress=False)
    assert next(model.parameters()).is_cuda and report.sparsity == pytest.approx(0.5, abs=1e-4)
    assert (
        sl.perplexity(model, sl.tokens(tokenizer, "demo")[:4096], seqlen=256, progress=False) < 500
    )


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "sparsellm"])
@pytest.mark.parametrize("offload", ["device", "cpu", "disk"])
def test_streamed_on_a_gpu_gives_the_same_bits(method, offload, tmp_path):
    model, tokenizer = sl.load("opt-mini")
    windows = sl.calibration(tokenizer, "demo", samples=8, seqlen=256)
    sl.prune(model, windows, method=method, sparsity=0.5, progress=False)
    sl.prune(
        "opt-mini",
        windows,
        method=method,
        sparsity=0.5,
        offload=offload,
        out=tmp_path / "out",
        progress=False,
    )
    again, _ = sl.load(tmp_path / "out")
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize("offload", ["device", "cpu", "disk"])
def test_scores_of_a_model_in_files_on_a_gpu_are_those_in_memory(offload):
    model, tokenizer = sl.load("opt-mini")
    text, call = sl.tokens(tokenizer, "demo")[:4096], {"seqlen": 256, "progress": False}
    found = sl.perplexity("opt-mini", text, offload=offload, **call)
    expected = sl.perplexity(model, text, **call)
    assert torch.allclose(found.losses, expected.losses, rtol=0.01)


def test_the_kernel_gives_what_the_plain_loop_gives():
    compare(pytest.importorskip("sparselab.methods.sparsegpt_triton").prune_block, "cuda")


@pytest.mark.parametrize("sparsity", [0.7, "2:4"])
def test_the_kernel_prunes_a_matrix_as_the_plain_loop_does(sparsity, monkeypatch):
    stats = sl.Statistics.of(correlated(2000, 700).cuda()).finish(
        "x"
    )  # 700: the last block is narrower
    weight, results = torch.randn(300, 700, device="cuda"), []
    assert sparsegpt.block_loop(weight.device, 128) is not sparsegpt.prune_block
    for kernel in (True, False):
        if not kernel:
            monkeypatch.setattr(sparsegpt, "_kernel", lambda: None)
        results.append(sl.SparseGPT().solve(weight, stats, sl.Pattern.parse(sparsity)))
    one, two = results
    assert (one.mask == two.mask).float().mean() > 0.995
    assert stats.relative_error(weight, one.weight) == pytest.approx(
        stats.relative_error(weight, two.weight), rel=1e-3
    )


@pytest.mark.parametrize("specs", [(0.7, 0.7, 0.7), (0.8, 0.5, 0.2), ("2:4", "2:4", "2:4")])
@pytest.mark.parametrize("plain", [False, True])
def test_stacked_matrices_get_the_masks_of_separate_ones(specs, plain, monkeypatch):
    if plain:
        monkeypatch.setattr(sparsegpt, "_kernel", lambda: None)
    stats = sl.Statistics.of(correlated(2000, 700).cuda()).finish("x")
    weights = [
        loud * torch.randn(r, 700, device="cuda") for r, loud in ((300, 1), (100, 100), (100, 1))
    ]
    patterns = [*map(sl.Pattern.parse, specs)]
    together = sl.SparseGPT().solve_together(weights, stats, patterns)
    for weight, pattern, one in zip(weights, patterns, together, strict=True):
        alone = sl.SparseGPT().solve(weight, stats, pattern)
        assert (
            one.mask == alone.mask
        ).float().mean() > 0.999 and one.mask.sum() == alone.mask.sum()
        error, expected = (stats.relative_error(weight, each.weight) for each in (one, alone))
        assert error == pytest.approx(expected, rel=1e-3)


def test_the_column_loop_never_waits_for_the_gpu():
    stats = sl.Statistics.of(correlated(2000, 700).cuda()).finish("x")
    factor, dead = stats.inverse_factor(0.01)[0], stats.dead
    weights = [torch.randn(r, 700, device="cuda") for r in (300, 100)]
    for pattern in (sl.Pattern(0.7), sl.Pattern.parse("2:4")):
        sparsegpt.prune_columns(
            weights, factor, dead, [pattern] * 2, 128
        )  # the kernel is compiled and tried
        torch.cuda.set_sync_debug_mode("error")
        try:
            sparsegpt.prune_columns(weights, factor, dead, [pattern] * 2, 128)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_no_stopping_rule_stops_the_gpu():
    """Conjugate gradients, ADMM's mask, swaps: each waits for one scalar, and nothing that was
    queued after it. The same steps are made as on a CPU."""
    here = sl.Statistics.of(correlated(2000, 200)).finish("x")
    there = sl.Statistics.of(correlated(2000, 200).cuda()).finish("x")
    weight, found = torch.randn(100, 200), []
    for stats in (here, there):
        w, hessian = weight.to(stats.gram.device), stats.hessian()
        pattern, spectrum = sl.Pattern(0.7), Spectrum(stats.hessian())
        pull = spectrum.pull(w, hessian)
        zeros = prune_rows(w.abs(), pattern, per_row=True)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            sparse, mask = sl.ADMM()._iterate(pull, w, spectrum, pattern)
            kept = refit(w, sparse, mask, hessian)
            swapped = swap(w, zeros, stats.gram / stats.tokens, pattern, 20, 16)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append([mask.cpu(), swapped.cpu(), kept.cpu()])
    for one, other in zip(*(masks[:2] for masks in found), strict=True):
        assert (one == other).float().mean() > 0.98
    error, expected = (here.relative_error(weight, kept) for *_, kept in found)
    assert error == pytest.approx(expected, rel=1e-2)


def test_a_model_goes_straight_to_the_gpu():
    """Its bits are those of one that came by way of the host."""
    here, there = (
        sl.load("opt-mini", dtype="float32", device=place)[0] for place in ("cpu", "cuda")
    )
    assert there.device.type == "cuda" and not any(
        hasattr(module, "_hf_hook") for module in there.modules()
    )
    for one, other in zip(here.state_dict().values(), there.state_dict().values(), strict=True):
        assert torch.equal(one, other.cpu())


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("distinct", [3, 10**6])
def test_selection_is_that_of_the_cpu(rows, distinct):
    scores = torch.randint(
        0, distinct, (rows, 30_000), generator=torch.Generator().manual_seed(0)
    ).float()
    for count in (1, 20_000, 30_000):
        assert torch.equal(lowest(scores.cuda(), count).cpu(), lowest(scores, count))


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "sparsellm"])
def test_the_batch_size_does_not_matter(family, method):
    windows, masks = torch.randint(4, 128, (8, 32), generator=torch.Generator().manual_seed(1)), []
    for batch in (1, 8):
        model = TINY[family]().cuda()
        sl.prune(model, windows, method=method, sparsity=0.5, batch=batch, progress=False)
        masks.append(
            torch.cat([(linear.weight == 0).flatten() for linear in sl.linears_of(model).values()])
        )
    assert (masks[0] == masks[1]).float().mean() > 0.99  # but for sums in another order


@pytest.mark.parametrize(
    "dtype, largest, tokens",
    [(torch.float16, 2047, 4), (torch.bfloat16, 255, 256), (torch.float32, 4095, 1)],
)
def test_gram_matrices_are_exact(dtype, largest, tokens):
    """Whole numbers whose products and sums float32 holds: TF32 cuts none that 16 bits hold; 4,095
    needs float32."""
    x = torch.randint(
        -largest, largest + 1, (tokens, 300), generator=torch.Generator().manual_seed(0)
    )
    x[:, 0] = largest
    gram = torch.zeros(300, 300, device="cuda")
    add_gram(gram, x.to("cuda", dtype))
    mirror(gram)
    assert torch.equal(gram.cpu().long(), x.T @ x)
