"""Non-uniform allocation: hand-computed shares, exact totals, a mapping given to sl.prune."""

import itertools

import pytest
import torch
from conftest import TINY, tiny_llama, tiny_opt

import sparselab as sl
from sparselab.allocation.owl import outlier_share, owl_shares
from sparselab.allocation.scores import input_norms
from sparselab.allocation.sensitivity import allocate_budget, lower_hull, sensitivity

# OWL


def test_outliers_by_hand():
    scores = [torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 25]])]  # mean 4: above 20 is one of eight
    assert outlier_share(scores, 5) == 1 / 8 and outlier_share(scores, 7) == 0
    assert (
        outlier_share([scores[0], torch.ones(1, 8)], 5) == 1 / 16
    )  # one mean for the whole block: 2.5


def test_owl_shares_by_hand():
    """D = 0, 1, 5: mean 2, the farthest is 3 away, and gets all of lambda."""
    assert owl_shares([0, 1, 5], 0.7, 0.09) == pytest.approx([0.76, 0.73, 0.61])
    assert owl_shares([3, 3], 0.7, 0.08) == [0.7, 0.7]


@pytest.mark.parametrize("family", TINY)
def test_owl_on_a_model(family, windows):
    model = TINY[family](num_hidden_layers=4)
    shares = sl.owl(model, windows, 0.6, threshold=3, spread=0.1)
    assert list(shares) == [0, 1, 2, 3] and sum(shares.values()) / 4 == pytest.approx(0.6)
    assert max(abs(share - 0.6) for share in shares.values()) == pytest.approx(0.1)
    norms = input_norms(model, windows)
    found = [
        outlier_share([w.weight.abs() * norms[n] for n, w in sl.linears_of(model, [k]).items()], 3)
        for k in range(4)
    ]
    assert sorted(range(4), key=found.__getitem__) == sorted(range(4), key=lambda k: -shares[k])


def test_norms_are_those_of_the_inputs(windows):
    model, seen = tiny_opt(), []
    name, linear = next(iter(sl.linears_of(model, [1]).items()))
    handle = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    model(windows)
    handle.remove()
    assert torch.allclose(input_norms(model, windows)[name], seen[0].norm(dim=0), rtol=1e-5)
    assert not linear._forward_pre_hooks


# the budget


def test_hull_and_spending_by_hand():
    assert lower_hull([(0, 0), (1, 3), (2, 2), (3, 6)]) == [(0, 0), (2, 2), (3, 6)]
    curves = {
        0: [(0, 0), (10, 1), (20, 5)],
        1: [(0, 0), (10, 2), (20, 9)],
    }  # prices .1 .4 and .2 .7
    assert allocate_budget(curves, 15) == {0: 10, 1: 5}
    assert allocate_budget(curves, 25) == {0: 15, 1: 10}
    assert allocate_budget(curves, 40) == {0: 20, 1: 20} and allocate_budget(curves, 0) == {
        0: 0,
        1: 0,
    }


def test_no_other_choice_costs_less():
    """Against all choices on a grid, for curves that are not convex."""
    torch.manual_seed(0)
    for _ in range(20):
        curves = {
            k: [(x, y) for x, y in zip(range(5), torch.rand(5).cumsum(0).tolist(), strict=True)]
            for k in range(3)
        }
        cost = [dict(lower_hull(points)) for points in curves.values()]
        line = [torch.tensor([_at(hull, x / 4) for x in range(17)]) for hull in cost]
        chosen = allocate_budget(curves, 6)
        best = min(
            sum(line[k][x] for k, x in enumerate(xs))
            for xs in itertools.product(range(17), repeat=3)
            if sum(xs) == 24
        )
        assert sum(chosen.values()) == 6
        assert sum(_at(cost[k], chosen[k]) for k in range(3)) == pytest.approx(
            best.item(), abs=1e-5
        )


def _at(hull, x):
    points = sorted(hull.items())
    low, high = next(pair for pair in itertools.pairwise(points) if pair[0][0] <= x <= pair[1][0])
    return low[1] + (high[1] - low[1]) * (x - low[0]) / (high[0] - low[0])


@pytest.mark.parametrize("family", TINY)
def test_sensitivity_leaves_the_model_and_counts_the_loss(family, windows):
    model = TINY[family]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = sensitivity(model, windows, [0.0, 0.5])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    dense = (
        sl.perplexity(model, windows.flatten(), seqlen=windows.shape[1], progress=False)
        .losses.mean()
        .item()
    )
    assert [losses[k][0] for k in losses] == pytest.approx([dense] * 2, rel=1e-5)
    sl.prune(model, windows, method="wanda", sparsity=0.5, layers=[1], progress=False)
    alone = (
        sl.perplexity(model, windows.flatten(), seqlen=windows.shape[1], progress=False)
        .losses.mean()
        .item()
    )
    assert losses[1][1] == pytest.approx(alone, rel=1e-5)


def test_the_budget_is_exact_and_cheap_blocks_pay(windows):
    model = tiny_llama(num_hidden_layers=3)
    losses = {0: [1.0, 1.1, 2.0], 1: [1.0, 1.5, 3.0], 2: [1.0, 1.2, 1.5]}
    shares = sl.by_sensitivity(model, windows, 0.7, levels=(0.5, 0.7, 0.9), losses=losses)
    assert sum(shares.values()) / 3 == pytest.approx(0.7)
    assert shares == pytest.approx({0: 0.7, 1: 0.5, 2: 0.9})  # prices .1 .2 .3 go, .5 stays
    measured = sl.by_sensitivity(model, windows, 0.6, levels=(0.5, 0.7))
    assert sum(measured.values()) / 3 == pytest.approx(0.6) and {*measured} == {0, 1, 2}


# sl.prune with a mapping


def run(model, windows, sparsity, method="wanda", **options):
    return sl.prune(model, windows, method=method, sparsity=sparsity, progress=False, **options)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "dsnot", "sparsellm"])
def test_each_block_gets_its_own(tiny, windows, method):
    report = run(tiny, windows, {0: 0.25, 1: 0.75}, method)
    for row in report.rows:
        assert row.sparsity == pytest.approx((0.25, 0.75)[row.layer], abs=0.02)
    assert "0.5 allocated, 0.25 to 0.75" in report.title() and "50.00% zeros" in report.title()


def test_a_linear_goes_before_its_block_and_n_m_fits_in(tiny, windows):
    name = next(iter(sl.linears_of(tiny, [1])))
    report = run(tiny, windows, {0: 0.5, 1: "2:4", name: 0.0})
    zeros = {row.name: row.sparsity for row in report.rows}
    assert zeros.pop(name) == 0 and all(share == pytest.approx(0.5) for share in zeros.values())
    assert report.settings["shares"][name] == 0 and "2:4" in report.settings["shares"].values()


def test_the_same_for_all_is_the_number(windows):
    one, other = tiny_opt(), tiny_opt()
    run(one, windows, 0.6, "sparsegpt")
    run(other, windows, {0: 0.6, 1: 0.6}, "sparsegpt")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_only_the_chosen_blocks_need_an_entry(windows):
    report = run(tiny_opt(), windows, {1: 0.5}, layers=[1])
    assert {row.layer for row in report.rows} == {1}


@pytest.mark.parametrize(
    "sparsity, words",
    [
        ({}, "give each block"),
        ({0: 0.5}, "says nothing of block 1"),
        ({0: 0.5, 1: 70}, "sparsity of 1: .*70 %"),
        ({0: 0.5, 1: 0.5, 2: 0.5}, "The blocks are"),
        ({0: 0.5, 1: 0.5, "model.decoder.layers.0.fc3": 0}, "Did you mean"),
        ({0: 0.5, 1.5: 0.5}, "a key is a block's number"),
        ({True: 0.5}, "a key is"),
        ({0: "5:7", 1: 0.5}, "does not divide"),
    ],
)
def test_wrong_mappings_are_refused(windows, sparsity, words):
    model = tiny_opt()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(sl.SparselabError, match=words):
        run(model, windows, sparsity)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_method_that_divides_by_itself_takes_no_mapping(windows):
    with pytest.raises(sl.SparselabError, match="divides the zeros"):
        run(tiny_opt(), windows, {0: 0.5, 1: 0.5}, sl.Magnitude(scope="global"))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda model, ids: sl.owl(model, ids, 0.95), "must lie in 0 to 1"),
        (lambda model, ids: sl.owl(model, ids, 70), "70 %"),
        (lambda model, ids: sl.owl(model, ids, 0.7, threshold=0), "threshold"),
        (lambda model, ids: sl.by_sensitivity(model, ids, 0.3), "outside the levels"),
        (
            lambda model, ids: sl.by_sensitivity(model, ids, 0.7, levels=(0.9, 0.5)),
            "from the lowest",
        ),
        (lambda model, ids: sl.owl(model, ids.float(), 0.7), "LongTensor"),
        (lambda model, ids: sl.owl(model, ids[0], 0.7), r"must be \[samples, seqlen\]"),
        (lambda model, ids: sl.owl(model, ids, "2:4"), "a fraction such as 0.5"),
        (lambda model, ids: sl.by_sensitivity(model, ids, "2:4"), "a fraction such as 0.5"),
    ],
)
def test_wrong_calls_are_refused(windows, call, words):
    with pytest.raises(sl.SparselabError, match=words):
        call(tiny_opt(), windows)
