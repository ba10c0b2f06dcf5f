"""Which method to take: the strongest rung of the ladder that fits into the time."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, tiny_opt

import sparselab as sl
from sparselab.engine import recommendation
from sparselab.engine.pruning import ERROR_ROWS
from sparselab.methods.base import Fit
from sparselab.models.architecture import dense_weights, restore
from sparselab.numerics.statistics import Statistics

MINUTES = (1, 2, 10, 30)


@pytest.fixture
def timed(monkeypatch):
    """A plan that gives each rung so many minutes."""
    times = iter(MINUTES * 9)

    def plan(*args, **kwargs):
        return SimpleNamespace(seconds={"all": 60 * next(times)})

    monkeypatch.setattr(recommendation, "plan", plan)


@pytest.mark.parametrize(
    ("minutes", "rung"), [(None, 3), (31, 3), (30, 3), (29, 2), (9, 1), (1.5, 0), (0.1, 0)]
)
def test_the_strongest_that_fits(timed, minutes, rung):
    """Where nothing fits, the cheapest."""
    found = sl.recommend(tiny_opt(), minutes)
    assert found.method == recommendation.LADDER[rung][1]
    assert [cost for *_, cost in found.rungs] == [*MINUTES]
    assert list(found.frame().recommended) == [k == rung for k in range(4)]
    assert str(found.method) in str(found)


def test_float16_leaves_out_the_rung_that_trains(timed):
    found = sl.recommend(tiny_opt(), dtype=torch.float16)
    assert len(found.rungs) == 3 and found.method.reconstruct is None


def test_a_time_on_a_machine_that_is_not_here():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(sl.SparselabError, match="how long a run takes on cuda is not known"):
        sl.recommend(tiny_opt(), 5, device="cuda")
    assert all(math.isnan(cost) for *_, cost in sl.recommend(tiny_opt(), device="cuda").rungs)


@pytest.mark.parametrize("family", TINY)
def test_the_recommended_call_runs(family, windows):
    model = TINY[family]()
    method = sl.recommend(model, samples=len(windows), seqlen=windows.shape[1]).method
    report = sl.prune(model, windows, method=method, sparsity=0.5, progress=False)
    assert report.reconstructions and report.sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("family", TINY)
def test_a_model_comes_back_whole(family, windows):
    """Biases and norms too, which a reconstruction tunes; and from weights by linear alone."""
    model = TINY[family]()
    dense, before = dense_weights(model), {k: v.clone() for k, v in model.state_dict().items()}
    sl.prune(model, windows, method="sparsegpt", sparsity=0.5, reconstruct=True, progress=False)
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert any("norm" in name for name in changed) and any("proj" in name for name in changed)
    restore(model, dense)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    only = {name: dense[name] for name in sl.linears_of(model)}
    sl.prune(model, windows, method="magnitude", sparsity=0.5, progress=False)
    restore(model, only)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    with pytest.raises(KeyError):
        restore(model, {"no such linear": torch.zeros(1)})


def test_an_error_on_some_rows_is_near_that_on_all():
    torch.manual_seed(0)
    weight, x = torch.randn(4 * ERROR_ROWS, 16), torch.randn(1, 64, 16)
    stats = Statistics.of(x, needs=("gram", "norms"))
    solution = sl.SparseGPT().solve(weight, stats, sl.Pattern(0.5))
    whole, some = Fit.of(weight, solution, stats), Fit.of(weight, solution, stats, rows=ERROR_ROWS)
    assert some.error == pytest.approx(whole.error, rel=0.02) and some.error != whole.error
    assert Fit.of(
        weight[:9], sl.SparseGPT().solve(weight[:9], stats, sl.Pattern(0.5)), stats, rows=9
    )
