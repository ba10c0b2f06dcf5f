"""`divide=True`: which matrix gets how many zeros, by what each is expected to cost."""

import numpy
import pytest
import torch
from conftest import TINY, correlated, stored, tiny_opt, weights

import sparselab as sl
from sparselab import Pattern, Statistics
from sparselab.engine import division
from sparselab.numerics.statistics import GRAM, NORMS


def pruned(model, windows, method="sparsegpt", sparsity=0.6, divide=True, **options):
    call = {"method": method, "sparsity": sparsity, "divide": divide, "progress": False}
    return sl.prune(model, windows, **call, **options)


def sizes(report):
    return {row.name: row.shape[0] * row.shape[1] for row in report.rows}


def unfelt(model, layer, scale=1e-3):
    """Let the block's outputs hardly change the residual stream."""
    block = sl.blocks_of(model)[layer]
    for name in sl.family_of(model).residual:
        block.get_submodule(name).weight.data *= scale
    return model


def same(model, other):
    one, two = model.state_dict(), other.state_dict()
    return all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("sparsity", [0.05, 0.5, 0.83, 0.97])
@pytest.mark.parametrize("family", TINY)
def test_the_total_is_exact_to_rounding(family, sparsity, windows):
    """Each matrix takes the floor of its share; the report says what was asked of each."""
    report = pruned(TINY[family](num_hidden_layers=3), windows, sparsity=sparsity)
    count = sizes(report)
    zeros = {row.name: round(row.sparsity * count[row.name]) for row in report.rows}
    shares = report.settings["shares"]
    assert {*shares} == {*count}
    assert all(zeros[name] == Pattern(share).zeros(count[name]) for name, share in shares.items())
    assert sum(shares[name] * count[name] for name in count) == pytest.approx(
        sparsity * sum(count.values())
    )
    assert 0 <= sparsity * sum(count.values()) + 1e-6 - sum(zeros.values()) <= len(count)
    if sparsity in (0.5, 0.83):
        assert max(shares.values()) > min(shares.values()) + 0.1
        assert "allocated" in report.title() and {"fisher", "divide"} <= {*report.seconds}


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", TINY)
def test_a_block_that_is_not_felt_pays_for_the_others(family, layer, windows):
    """All of its matrices get as many zeros as a matrix may get."""
    model = unfelt(TINY[family](num_hidden_layers=3), layer)
    shares = pruned(model, windows, sparsity=0.5).settings["shares"]
    here = [share for name, share in shares.items() if f".{layer}." in name]
    others = [share for name, share in shares.items() if f".{layer}." not in name]
    assert here == pytest.approx([division.levels_for(0.5)[-1]] * len(here))
    assert sum(others) / len(others) < 0.4


def test_rows_that_no_gradient_reaches_cost_nothing(windows):
    """Of fc1 all rows but four end in columns of fc2 that are zero: it gives nearly all its
    weights."""
    model = tiny_opt()
    sl.blocks_of(model)[0].fc2.weight.data[:, 4:] = 0
    shares = pruned(model, windows, sparsity=0.5).settings["shares"]
    name = "model.decoder.layers.0.fc1"
    others = [share for key, share in shares.items() if "fc2" not in key]
    assert shares[name] == max(others) > 0.75


@pytest.mark.parametrize("sparsity", [0.05, 0.5, 0.9, 0.98])
def test_a_curve_is_the_second_order_loss(sparsity):
    """At the levels that are tried: half the mean squared gradient times what SparseGPT's weights
    change, in float64; between them it rises by equal factors."""
    w, rows = torch.randn(30, 40, generator=torch.Generator().manual_seed(0)), torch.rand(30) + 0.1
    x, scale, levels = correlated(300, 40), 0.3, division.levels_for(sparsity)
    assert levels == sorted(levels) and sparsity in levels and 0 < levels[0] < levels[-1] < 1
    stats = Statistics.of(x, needs=(GRAM, NORMS)).finish("x")
    losses = []
    for level in levels:
        _, solution = sl.SparseGPT().prune_matrix(w, stats, Pattern(level), rows)
        outputs = x.double() @ (w - solution.weight).double().T  # [tokens, r]
        losses.append(0.5 * scale * (outputs.square().mean(0) * rows).sum().item())
    first, *curve = division._curve(w, stats, levels, rows, scale)
    assert first == (0.0, 0.0) and curve == sorted(curve)
    zeros, found = (torch.tensor(each, dtype=torch.float64) for each in zip(*curve, strict=True))
    assert [zeros[0], zeros[-1]] == pytest.approx([levels[0] * 1200, levels[-1] * 1200])
    logs = torch.from_numpy(numpy.interp(zeros / 1200, levels, numpy.log(losses)))
    torch.testing.assert_close(found.log(), logs, rtol=0, atol=1e-3)
    assert zeros.diff().max() <= 1.5 * division.STEP * 1200


@pytest.mark.parametrize("sparsity", ["2:4", {0: 0.4, 1: 0.6}, {0: "2:4", 1: 0.3}])
@pytest.mark.parametrize("family", TINY)
def test_where_the_user_has_divided_nothing_is_left_to_divide(family, sparsity, windows):
    reports, models = [], []
    for divide in (False, True):
        models.append(TINY[family]())
        reports.append(pruned(models[-1], windows, sparsity=sparsity, divide=divide))
    assert same(*models)
    assert reports[0].settings.get("shares") == reports[1].settings.get("shares")
    assert not {"fisher", "divide"} & {*reports[1].seconds}


@pytest.mark.parametrize("options", [{"layers": [1]}, {"modules": ["q_proj", "v_proj"]}], ids=str)
def test_only_what_is_pruned_takes_part(tiny, windows, options):
    report = pruned(tiny, windows, sparsity=0.5, **options)
    shares, count = report.settings["shares"], sizes(report)
    assert [*shares] == [row.name for row in report.rows] and len(shares) < len(sl.linears_of(tiny))
    assert report.sparsity == pytest.approx(0.5, abs=len(count) / sum(count.values()))


@pytest.mark.parametrize("method", sl.METHODS)
def test_every_method_takes_it_in_memory_and_streamed(tiny, windows, tmp_path, method):
    """The shares are those of the dense model, whatever the method, and the bits are the same."""
    stored(tmp_path / "model", tiny, max_shard_size="30KB")
    whole = pruned(tiny, windows, method)
    report = pruned(tmp_path / "model", windows, method, out=tmp_path / "out")
    found, expected = weights(tmp_path / "out"), tiny.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in found.items())
    assert report.settings["shares"] == whole.settings["shares"]
    assert report.settings["pattern"] == whole.settings["pattern"]
    per_row = 1 / 32 if method in ("wanda", "dsnot", "swaps") else 1e-3  # the floor of every row
    assert 0 <= 0.6 - report.sparsity + 1e-6 < per_row


def test_a_method_that_divides_itself_is_refused(tiny, windows):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    with pytest.raises(sl.SparselabError, match="divides the zeros among the matrices itself"):
        pruned(tiny, windows, sl.Magnitude(scope="global"))
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


def test_the_model_that_is_trained_loses_less_by_it():
    """opt-mini, magnitude at 80 % in three blocks, on text that it was not pruned with: the loss
    above dense falls by a tenth with the gradients in the rows, and to an eighth with the zeros
    divided too."""
    model, tokenizer = sl.load("opt-mini")
    windows = sl.calibration(tokenizer, "demo", samples=8, seqlen=64)
    ids, dense = sl.tokens(tokenizer, "demo")[: 48 * 64], dict(model.state_dict())
    dense = {name: value.clone() for name, value in dense.items()}

    def loss():
        return sl.perplexity(model, ids, seqlen=64, progress=False).losses.mean().item()

    excess, least = [], loss()
    for options in ({}, {"fisher": True}, {"fisher": True, "divide": True}):
        model.load_state_dict(dense)
        given = {"divide": False, "layers": range(3), **options}
        pruned(model, windows, "magnitude", 0.8, **given)
        excess.append(loss() - least)
    assert excess[1] < 0.95 * excess[0] and excess[2] < 0.3 * excess[0], excess
