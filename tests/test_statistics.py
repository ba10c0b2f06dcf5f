"""Gram matrix, norms, errors and inverse factor against float64."""

import pytest
import torch
from conftest import correlated
from textbook import relative_error

from sparselab import SparselabError, Statistics
from sparselab.numerics.statistics import GRAM, NORMS


@pytest.mark.parametrize("width", [1, 3, 32, 37])
def test_gram_equals_the_product(width):
    x = correlated(200, width)
    stats = Statistics(width, x.device)
    for part in x.view(4, 50, width):
        stats.add(part)
    expected = x.double().T @ x.double()
    torch.testing.assert_close(
        stats.finish("x").gram.double(), expected, rtol=1e-5, atol=1e-5 * expected.max().item()
    )
    assert stats.tokens == 200


def test_statistics_of_inputs_at_hand_are_ready_for_use():
    x, w = correlated(200, 16), torch.randn(8, 16)
    stats = Statistics.of(x)
    torch.testing.assert_close(stats.gram, x.T @ x)
    assert stats.relative_error(w, w.relu()) == pytest.approx(
        relative_error(w, w.relu(), x), rel=1e-4
    )
    assert torch.equal(stats.gram, Statistics.of(x).finish("x").gram)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_are_computed_in_float32(dtype):
    x = (100 * correlated(300, 16)).to(dtype)  # squares overflow float16
    stats = Statistics.of(x, needs=(NORMS,)).finish("x")
    torch.testing.assert_close(stats.norms, x.double().norm(dim=0).float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("columns", [5, 1024])
@pytest.mark.parametrize("needs, every", [((GRAM,), 1), ((NORMS,), 1), ((), 1)])
def test_relative_error_is_the_definition(needs, every, columns, monkeypatch):
    monkeypatch.setattr(
        "sparselab.numerics.statistics.COLUMNS", columns
    )  # the 16 inputs in four parts, or at once
    x, w = correlated(300, 16), torch.randn(8, 16)
    new = w * (torch.rand(8, 16) > 0.5)
    stats = Statistics.of(x, needs=needs, every=every).finish("x")
    assert stats.relative_error(w, new) == pytest.approx(relative_error(w, new, x), rel=1e-4)
    assert stats.relative_error(w, w) == 0


def test_samples_are_every_kth_token_across_batches():
    x = torch.arange(100.0)[:, None]
    stats = Statistics(1, x.device, needs=(), every=7)
    for part in x.split(13):
        stats.add(part)
    assert torch.cat(stats.samples).flatten().tolist() == list(range(0, 100, 7))


def test_inverse_factor_is_upper_and_inverts():
    x = correlated(400, 24)
    factor, damp, tries = Statistics.of(x).finish("x").inverse_factor(0.01)
    h = x.double().T @ x.double() / 400
    h += 0.01 * h.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    assert (damp, tries) == (0.01, 1)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(
        (factor.double().T @ factor.double()) @ h,
        torch.eye(24, dtype=torch.float64),
        rtol=0,
        atol=1e-4,
    )


def test_damping_escalates_and_says_so():
    x = correlated(400, 24)
    x[:, 5] = x[:, 4]  # singular without damping
    factor, damp, tries = Statistics.of(x * 1e3).finish("x").inverse_factor(0.0)
    assert tries > 1 and damp > 0 and torch.isfinite(factor).all()


def test_hopeless_hessian_is_an_error():
    stats = Statistics.of(correlated(400, 8)).finish("x")
    stats.gram = -stats.gram  # not positive definite at any damping
    with pytest.raises(SparselabError, match="could not be factored"):
        stats.inverse_factor(0.01)


def test_factor_leaves_the_gram_matrix_alone_and_is_kept():
    stats = Statistics.of(correlated(400, 8)).finish("x")
    before = stats.gram.clone()
    assert stats.inverse_factor(0.01)[0] is stats.inverse_factor(0.01)[0]
    assert torch.equal(stats.gram, before)


def test_inputs_that_are_not_finite_name_the_module():
    x = correlated(10, 4)
    x[3, 2] = float("nan")
    with pytest.raises(SparselabError, match="model.layers.0.fc1"):
        Statistics.of(x).finish("model.layers.0.fc1")


def test_tensor_cores_for_16_bit_inputs_alone():
    """What fits TF32's mantissa is multiplied exactly; float32 would be cut."""
    from sparselab.numerics.cholesky import tensor_cores

    before = torch.backends.cuda.matmul.fp32_precision
    for dtype, expected in (
        (torch.float16, "tf32"),
        (torch.bfloat16, "tf32"),
        (torch.float32, before),
    ):
        with tensor_cores(dtype):
            assert torch.backends.cuda.matmul.fp32_precision == expected
        assert torch.backends.cuda.matmul.fp32_precision == before
