"""Non-uniform allocation: hand-computed shares, exact totals, a mapping given to sl.prune."""

import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, VOCABULARY, tiny_llama, tiny_opt
from torch import nn

import sparselab as sl
from sparselab.allocation import evolution, progression
from sparselab.allocation.owl import outlier_share, owl_shares
from sparselab.allocation.scores import DenseReference, input_norms, split_windows
from sparselab.allocation.sensitivity import sensitivity
from sparselab.engine.block import BlockPruner
from sparselab.models.architecture import dense_weights, restore
from sparselab.numerics.budget import allocate_budget, lower_hull

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


# by what the pruned model predicts


@pytest.fixture
def more():
    """Windows enough to hold some out, [8, 32]."""
    return torch.randint(4, VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(2))


def numb(family):
    """Four blocks, of which the last two hardly write to the residual stream."""
    model = TINY[family](num_hidden_layers=4)
    with torch.no_grad():
        for name, linear in sl.linears_of(model, [2, 3]).items():
            if name.endswith(("out_proj", "o_proj", "fc2", "down_proj")):
                linear.weight.mul_(1e-3)
    return model


@pytest.fixture(params=TINY)
def family(request):
    return request.param


@pytest.fixture
def restored(more):
    """Checks a model against what it was when it was handed in."""
    held = []

    def watch(model):
        held.append((model, {name: value.clone() for name, value in model.state_dict().items()}))
        return model

    yield watch
    for model, before in held:
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def total(model, shares):
    """The share of zeros that is asked for of all weights together."""
    linears = sl.linears_of(model)
    blocks = sl.family_of(model).blocks
    asked = sl.patterns.Allocation.parse(shares).shares(linears, blocks)
    sizes = {name: linear.weight.numel() for name, linear in linears.items()}
    return sum(asked[name].sparsity * size for name, size in sizes.items()) / sum(sizes.values())


def divergence(model, windows, shares, method):
    """On the held-out windows of an allocation, computed anew, the model restored."""
    calibration, judged = split_windows(model, windows, 0.25)
    dense, target = dense_weights(model), model(judged).logits.detach().log_softmax(-1)
    run(model, calibration, shares, method)
    found = model(judged).logits.detach().log_softmax(-1)
    restore(model, dense)
    return (target.exp() * (target - found)).sum(-1).mean().item()


def test_the_reference_is_the_divergence_from_what_the_model_was(tiny, windows):
    reference, dense = DenseReference(tiny, windows), tiny(windows).logits
    assert reference.kept.shape == (6, 32, 32) and abs(reference.divergence()) < 1e-6
    run(tiny, windows, 0.5)
    with torch.no_grad():
        for rows in (None, [4, 1]):
            some = slice(None) if rows is None else rows
            ours, theirs = tiny(windows[some]).logits.log_softmax(-1), dense[some].log_softmax(-1)
            expected = (
                F.kl_div(ours, theirs, reduction="sum", log_target=True) / ours[..., 0].numel()
            )
            assert reference.divergence(rows) == pytest.approx(expected.item(), rel=1e-4)
    next(tiny.parameters()).data.fill_(math.nan)
    assert reference.divergence() == math.inf


def test_the_reference_keeps_the_logits_where_more_than_the_head_makes_them(windows, monkeypatch):
    model = tiny_llama()
    forward = model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = 3 * output.logits
        return output

    monkeypatch.setattr(model, "forward", scaled)
    reference = DenseReference(model, windows)
    assert torch.equal(reference.kept, model(windows).logits)
    assert abs(reference.divergence()) < 1e-6


def test_windows_are_held_out(tiny, windows):
    some, others = split_windows(tiny, windows, 0.4)
    assert torch.equal(torch.cat([some, others]), windows) and len(others) == 2
    for share, count in ((0.01, 1), (0.99, 5)):
        assert len(split_windows(tiny, windows, share)[1]) == count


# along a line


def slopes(cost, limit=0.2, trials=7):
    costs = progression.try_slopes(cost, limit, trials)
    assert len(costs) <= trials and next(iter(costs)) == 0
    assert all(abs(slope) <= limit for slope in costs)
    return costs


@pytest.mark.parametrize("least", [-0.17, -0.07, -0.02, 0.03, 0.08, 0.12, 0.16])
def test_a_parabola_is_found_at_once(least):
    costs = slopes(lambda x: 3 + (x - least) ** 2)
    assert min(costs, key=costs.get) == pytest.approx(least, abs=1e-9) and len(costs) <= 6


def test_slopes_by_hand():
    assert [*slopes(lambda x: (x - 0.06) ** 2)] == pytest.approx([0, 0.1, 0.2, 0.06])
    assert [*slopes(lambda x: x**2)] == [0, 0.1, -0.1]  # the parabola says that 0 is enough
    assert [*slopes(lambda x: -x)] == [*slopes(lambda x: math.exp(-x))] == [0, 0.1, 0.2]
    assert [*slopes(lambda x: x)] == [0, 0.1, -0.1, -0.2]
    assert [*slopes(lambda x: 1.0)] == [0, 0.1, -0.1] and [*slopes(abs, trials=2)] == [0, 0.1]
    assert [*slopes(lambda x: math.inf)] == [0] == [*slopes(abs, limit=0)] == [*slopes(abs, 0.2, 1)]
    walled = slopes(lambda x: math.inf if x > 0.05 else (x + 0.02) ** 2)
    assert [*walled][:4] == [0, 0.1, -0.1, -0.05]


@pytest.mark.parametrize("steep", [-15, 5, 15])
def test_valleys_that_are_no_parabolas(steep):
    """exp(a x) - a x is steeper on one side."""
    for least in torch.linspace(-0.19, 0.19, 20).tolist():
        costs = slopes(lambda x, u=least: math.exp(steep * (x - u)) - steep * (x - u))
        assert abs(min(costs, key=costs.get) - least) < 0.04


def test_a_line_keeps_the_total_and_its_bounds():
    model = tiny_llama(num_hidden_layers=4)
    assert progression.centred_depths(model) == pytest.approx({0: -1, 1: -1 / 3, 2: 1 / 3, 3: 1})
    mlp = model.model.layers[3].mlp
    mlp.gate_proj, mlp.up_proj = nn.Linear(32, 96, bias=False), nn.Linear(32, 96, bias=False)
    mlp.down_proj = nn.Linear(96, 32, bias=False)
    depths = progression.centred_depths(model)
    assert depths[3] - depths[0] == pytest.approx(2) and depths[0] < -1
    for target, room in ((0.6, 0.2), (0.9, 0.09), (0.1, 0.1), (0.0, 0.0), (0.995, 0.0)):
        limit = progression.widest_slope(depths, target, 0.2)
        for slope in (-limit, limit / 3, limit):
            shares = progression.line(depths, target, slope)
            assert total(model, shares) == pytest.approx(target, abs=1e-9)
            assert max(abs(share - target) for share in shares.values()) <= room + 1e-9
            assert 0 <= min(shares.values()) and max(shares.values()) < 1
        assert max(abs(progression.line(depths, target, limit)[k] - target) for k in depths) == (
            pytest.approx(room, abs=1e-9)
        )


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_sparsity_rises_where_late_blocks_do_not_matter(family, method, more, restored):
    model = restored(numb(family))
    shares = sl.by_depth(model, more, 0.6, method=method, progress=False)
    assert [*shares] == [0, 1, 2, 3] and shares[3] > shares[0] + 0.1
    steps = [shares[k + 1] - shares[k] for k in range(3)]
    assert steps == pytest.approx(steps[:1] * 3) and total(model, shares) == pytest.approx(0.6)
    uniform = divergence(model, more, 0.6, method)
    assert divergence(model, more, shares, method) < 0.9 * uniform
    run(model, more, shares, "admm")  # another method takes it
    restore(model, dense_weights(numb(family)))


def test_a_line_is_no_worse_than_uniform(family, more, restored):
    """Where the blocks are alike, and with one block only, which has no slope."""
    model = restored(TINY[family](num_hidden_layers=3))
    shares = sl.by_depth(model, more, 0.7, method="wanda", trials=4, progress=False)
    best, uniform = (divergence(model, more, each, "wanda") for each in (shares, 0.7))
    assert best <= uniform + 1e-6
    assert sl.by_depth(model, more, 0.7, trials=1, method="wanda", progress=False) == (
        pytest.approx({0: 0.7, 1: 0.7, 2: 0.7})
    )
    alone = TINY[family](num_hidden_layers=1)
    assert sl.by_depth(alone, more, 0.7, method="magnitude", progress=False) == {0: 0.7}


# by evolution


@pytest.mark.parametrize("sizes", [[5] * 6, [8, 3, 1, 8, 3, 1], [43, 16, 16, 43, 16, 43]])
def test_swaps_keep_the_zeros(sizes):
    """Exactly where the sizes are multiples of the smallest; else at or a little above."""
    draw = evolution._Draw(sizes, -3, 2, random.Random(0))
    levels, seen = (0,) * 6, set()
    for _ in range(500):
        levels = draw.swap(levels)
        excess = sum(size * level for size, level in zip(sizes, levels, strict=True))
        assert 0 <= excess < min(sizes) and min(levels) >= -3 and max(levels) <= 2
        seen.add(levels)
    assert len(seen) > 100
    moved = {place for each in seen for place, level in enumerate(each) if level}
    assert moved == {*range(6)}


def test_offspring_are_new_and_different():
    draw = evolution._Draw([1, 1, 1], -1, 1, random.Random(0))
    parent = (0, 0, 0)
    found = draw.offspring(parent, 16, {parent, (1, -1, 0)})
    assert sorted(found) == [(-1, 0, 1), (-1, 1, 0), (0, -1, 1), (0, 1, -1), (1, 0, -1)]
    assert draw.offspring(parent, 2, {parent}) != draw.offspring(parent, 2, {parent})
    assert evolution._Draw([1], -1, 1, random.Random(0)).offspring((0,), 4, {(0,)}) == []


def test_levels_by_hand():
    def shares(*given):
        return {k: pattern.sparsity for k, pattern in evolution._patterns(*given).items()}

    assert shares(0.7, 3, 0.05) == dict(
        zip(range(-3, 4), (0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85), strict=True)
    )
    assert shares(0.9, 3, 0.05) == {-3: 0.75, -2: 0.8, -1: 0.85, 0: 0.9, 1: 0.95}
    assert shares(0.15, 3, 0.05)[-3] == 0


def test_the_search_finds_the_best_of_a_sum(monkeypatch):
    """Costs that add up, so that the best is known: all of one unit's zeros go to another."""
    prices, best = (5.0, 1.0, 3.0, 2.0), (-2, 2, -2, 2)
    draw = evolution._Draw([1] * 4, -2, 2, random.Random(0))
    asked = []

    def cost(levels, rows=None):
        asked.append(rows)
        return sum(price * level for price, level in zip(prices, levels, strict=True))

    bar = evolution.tqdm(range(40), disable=True)
    assert evolution._search(cost, draw, 16, 32, bar) == best
    assert {len(rows) for rows in asked if rows} == {2, 8} and None in asked
    counts = [sum(1 for rows in asked[:22] if rows and len(rows) == size) for size in (2, 8)]
    assert counts == [16, 4]


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_evolution_takes_zeros_from_blocks_that_matter(family, method, more, restored):
    model = restored(numb(family))
    options = {"method": method, "generations": 8, "progress": False}
    shares = sl.evolve(model, more, 0.6, **options)
    assert shares == {0: 0.45, 1: 0.45, 2: 0.75, 3: 0.75}
    assert divergence(model, more, shares, method) < divergence(model, more, 0.6, method)
    run(model, more, shares, "admm")  # another method takes it
    restore(model, dense_weights(numb(family)))


def test_evolution_of_linears_is_repeatable_and_no_worse(family, more, restored, monkeypatch):
    model = restored(numb(family))
    options = {"method": "wanda", "unit": "linear", "generations": 3, "progress": False}
    shares = sl.evolve(model, more, 0.6, **options)
    assert [*shares] == [*sl.linears_of(model)] and len({*shares.values()}) > 2
    assert total(model, shares) == pytest.approx(0.6, abs=1e-9)
    run(model, more, shares, "sparsegpt")
    restore(model, dense_weights(numb(family)))

    costs = []  # of the matrices that the search itself holds; on all held-out windows
    measure = DenseReference.divergence

    def noted(self, rows=None):
        costs.append((rows, found := measure(self, rows)))
        return found

    monkeypatch.setattr(DenseReference, "divergence", noted)
    assert sl.evolve(model, more, 0.6, **options) == shares
    whole = [cost for rows, cost in costs if rows is None]
    assert costs[0][0] is None and min(whole) < 0.95 * whole[0]
    assert sl.evolve(model, more, 0.6, seed=1, **options) != shares


@pytest.mark.parametrize("method", sl.METHODS)
def test_every_method_prunes_at_levels(family, method, more, restored):
    """Zeros as asked, at 0 the dense matrix, the first block as sl.prune leaves it."""
    model = restored(TINY[family]())
    method = evolution._matrix_method(method, "OPT")
    patterns = evolution._patterns(0.25, 1, 0.25)
    weights = evolution._prune_at_levels(model, more, method, patterns, False)
    linears = sl.linears_of(model)
    assert [*weights] == [*linears]
    for name, found in weights.items():
        assert torch.equal(found[-1], linears[name].weight) and [*found] == [-1, 0, 1]
        for level, share in ((0, 0.25), (1, 0.5)):
            assert (found[level] == 0).float().mean().item() == pytest.approx(share, abs=0.02)
    if not method.prunes_ffn_jointly:
        pruned = TINY[family]()
        run(pruned, more, 0.5, method, layers=[0])
        for name, linear in sl.linears_of(pruned, [0]).items():
            assert torch.allclose(weights[name][1], linear.weight, atol=1e-5)


@pytest.mark.parametrize("allocate", [sl.by_depth, sl.evolve])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_model_is_restored_after_an_interrupt(allocate, after, more, restored, monkeypatch):
    model, left = restored(tiny_opt()), [after]
    measure = DenseReference.divergence

    def interrupted(self, rows=None):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return measure(self, rows)

    monkeypatch.setattr(DenseReference, "divergence", interrupted)
    with pytest.raises(KeyboardInterrupt):
        allocate(model, more, 0.6, method="wanda", progress=False)


def test_a_model_is_restored_after_an_interrupt_within_a_block(more, restored, monkeypatch):
    model, left, prune = restored(tiny_opt()), [3], BlockPruner.prune

    def interrupted(self, stage, collected):
        prune(self, stage, collected)
        left[0] -= 1
        if not left[0]:  # the first block of the second trial is pruned
            raise KeyboardInterrupt

    monkeypatch.setattr(BlockPruner, "prune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sl.by_depth(model, more, 0.6, method="wanda", progress=False)


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
        (lambda model, ids: sl.by_depth(model, ids, "2:4"), "a fraction such as 0.5"),
        (lambda model, ids: sl.by_depth(model, ids[:1], 0.5), "one window"),
        (lambda model, ids: sl.by_depth(model, ids[0], 0.5), r"must be \[samples, seqlen\]"),
        (lambda model, ids: sl.by_depth(model, ids, 0.5, method="wonda"), "Did you mean"),
        (lambda model, ids: sl.by_depth(model.train(), ids, 0.5), "training mode"),
        (
            lambda model, ids: sl.by_depth(model, ids, 0.5, method=sl.Magnitude(scope="global")),
            "divides the zeros",
        ),
        (lambda model, ids: sl.evolve(model, ids, "2:4"), "a fraction such as 0.5"),
        (lambda model, ids: sl.evolve(model, ids[:1], 0.5), "one window"),
        (lambda model, ids: sl.evolve(model, ids, 0.5, unit="layer"), "'block' or 'linear'"),
        (lambda model, ids: sl.evolve(model, ids, 0.97), "a smaller step"),
        (lambda model, ids: sl.evolve(model, ids, 0), "a smaller step"),
        (
            lambda model, ids: sl.evolve(model, ids, 0.5, method=sl.Magnitude(scope="global")),
            "divides the zeros",
        ),
    ],
)
def test_wrong_calls_are_refused(windows, call, words, restored):
    with pytest.raises(sl.SparselabError, match=words):
        call(restored(tiny_opt()), windows)
