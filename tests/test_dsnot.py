"""DSnoT and exact swaps: against the definition, and against brute force on tiny layers."""

import itertools

import pytest
import torch
from conftest import correlated
from textbook import dsnot

import sparselab as sl
from sparselab import Pattern, Statistics
from sparselab.methods.dsnot import expected_error, start_scores
from sparselab.methods.swaps import swap
from sparselab.numerics.statistics import GRAM, MOMENTS, NORMS
from sparselab.patterns import prune_rows, valid_groups

ALL = (GRAM, NORMS, MOMENTS)
PATTERNS = [0.5, 0.7, "2:4", "3:4"]


@pytest.fixture(scope="module")
def layer():
    """A weight [40, 64], inputs [10, 50, 64] with a mean and one dead channel, and their
    statistics."""
    x = correlated(500, 64).view(10, 50, 64) + 0.3 * torch.randn(
        64, generator=torch.Generator().manual_seed(5)
    )
    x[..., 9] = 0
    w = torch.randn(40, 64, generator=torch.Generator().manual_seed(3))
    return w, x, Statistics.of(x, needs=ALL).finish("x")


def test_moments_are_those_of_the_definition_and_independent_of_the_batch(layer):
    _, x, stats = layer
    torch.testing.assert_close(stats.mean, x.sum(1).mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        stats.variance, x.var(1, unbiased=False).mean(0), rtol=1e-4, atol=1e-5
    )
    parts = Statistics(64, x.device, needs=ALL)
    for part in x.split(3):
        parts.add(part)
    parts.finish("x")
    torch.testing.assert_close(parts.mean, stats.mean)
    torch.testing.assert_close(parts.variance, stats.variance, rtol=1e-4, atol=1e-6)


def test_a_constant_input_has_no_variance():
    stats = Statistics.of(torch.full((4, 30, 8), 3.7), needs=ALL).finish("x")
    assert (stats.variance == 0).all()


@pytest.mark.parametrize("spec", PATTERNS)
def test_masks_are_those_of_the_published_rule(spec):
    pattern = Pattern.parse(spec)
    x = correlated(800, 128).view(8, 100, 128) + 0.2 * torch.randn(
        128, generator=torch.Generator().manual_seed(5)
    )
    w = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    ours = sl.DSnoT().solve(w, Statistics.of(x, needs=ALL).finish("x"), pattern).mask
    theirs = dsnot(w, x, pattern.sparsity, pattern.n, pattern.m)
    start = sl.Wanda().solve(w, Statistics.of(x, needs=ALL).finish("x"), pattern).mask
    assert (ours == ~theirs).float().mean() >= 0.985
    assert (ours != start).float().mean() > 0.02  # and there was something to agree on


@pytest.mark.parametrize("spec", PATTERNS)
@pytest.mark.parametrize("initial", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("cycles", [1, 5, 50, 500])
def test_the_expected_error_falls_and_the_pattern_stays(layer, spec, initial, cycles):
    w, _, stats = layer
    pattern = Pattern.parse(spec)
    start = prune_rows(start_scores(initial, w, stats), pattern, per_row=True)
    solution = sl.DSnoT(initial, max_cycles=cycles).solve(w, stats, pattern)
    assert torch.equal((~solution.mask).sum(1), start.sum(1))
    before, after = (expected_error(w, pruned, stats).abs() for pruned in (start, ~solution.mask))
    if pattern.m:  # the published group rule has no such guarantee by row
        assert valid_groups(solution.weight, pattern) and (
            cycles < 50 or after.sum() < before.sum()
        )
    else:
        assert (after <= before + 1e-4).all() and after.sum() < before.sum()
    assert torch.equal(solution.weight, w * solution.mask)  # weights keep their dense values


def test_dead_inputs_never_grow_and_a_single_row_or_column_works(layer):
    w, _, stats = layer
    for initial in ("wanda", "sparsegpt"):
        assert not sl.DSnoT(initial, threshold=0).solve(w, stats, Pattern(0.5)).mask[:, 9].any()
    assert sl.DSnoT().solve(w[:1], stats, Pattern(0.5)).mask.sum() == 32
    narrow = Statistics.of(torch.randn(4, 5, 2), needs=ALL).finish("x")
    assert sl.DSnoT(same_sign=False).solve(torch.randn(3, 2), narrow, Pattern(0.5)).mask.sum(
        1
    ).tolist() == [1, 1, 1]


def test_the_sign_rule_stops_before_the_error_flips(layer):
    w, _, stats = layer
    start = ~sl.Wanda().solve(w, stats, Pattern(0.7)).mask
    signs = expected_error(w, start, stats).sign()
    kept = ~sl.DSnoT(threshold=0).solve(w, stats, Pattern(0.7)).mask
    assert torch.equal(expected_error(w, kept, stats).sign(), signs)
    free = ~sl.DSnoT(threshold=0, same_sign=False).solve(w, stats, Pattern(0.7)).mask
    assert not torch.equal(expected_error(w, free, stats).sign(), signs)


def test_the_threshold_is_a_token_sum_of_a_sequence(layer):
    """Twice the sequence, twice the expected error: the rest meets the same threshold."""
    w, x, stats = layer
    doubled = Statistics.of(torch.cat([x, x], 1), needs=ALL).finish("x")
    assert torch.equal(
        sl.DSnoT(threshold=4.0).solve(w, doubled, Pattern(0.5)).mask,
        sl.DSnoT(threshold=2.0).solve(w, stats, Pattern(0.5)).mask,
    )


def squared(w, pruned, gram):
    change = (w * pruned).double()
    return ((change @ gram.double()) * change).sum(1)


@pytest.mark.parametrize("m", [0, 4])
def test_one_swap_is_the_best_of_all_and_gains_what_was_computed(m):
    """Brute force: every pair of every row, the error computed anew in float64."""
    x, w = correlated(200, 12), torch.randn(6, 12, generator=torch.Generator().manual_seed(2))
    gram = x.T @ x / 200
    pattern = Pattern.parse("2:4" if m else 0.5)
    start = prune_rows(w.abs(), pattern, per_row=True)
    best = squared(w, start, gram)
    for row, p, g in itertools.product(range(6), range(12), range(12)):
        if start[row, g] and not start[row, p] and (not m or p // m == g // m):
            tried = start.clone()
            tried[row, p], tried[row, g] = True, False
            best[row] = torch.minimum(best[row], squared(w, tried, gram)[row])
    torch.testing.assert_close(
        squared(w, swap(w, start, gram, pattern, 1, 12), gram), best, rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("spec", PATTERNS)
@pytest.mark.parametrize("initial", ["magnitude", "wanda", "sparsegpt"])
def test_swaps_never_raise_the_error_of_a_row(layer, spec, initial):
    w, _, stats = layer
    pattern, gram = Pattern.parse(spec), stats.gram / stats.tokens
    masks = [prune_rows(start_scores(initial, w, stats), pattern, per_row=True)]
    for cycles in (1, 2, 10, 100):
        masks.append(~sl.Swaps(initial, max_cycles=cycles).solve(w, stats, pattern).mask)
        assert (squared(w, masks[-1], gram) <= squared(w, masks[-2], gram) * (1 + 1e-5)).all()
        assert torch.equal(masks[-1].sum(1), masks[0].sum(1))
        assert not pattern.m or valid_groups(w * ~masks[-1], pattern)
    assert squared(w, masks[-1], gram).sum() < 0.95 * squared(w, masks[0], gram).sum()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: sl.DSnoT("wonda"), "Did you mean 'wanda'"),
        (lambda: sl.DSnoT(threshold=-1), "threshold >= 0"),
        (lambda: sl.Swaps("x"), "choose one of"),
        (lambda: sl.Swaps(candidates=0), "candidates >= 1"),
    ],
)
def test_wrong_hyper_parameters_get_a_sentence(make, words):
    with pytest.raises(sl.SparselabError, match=words):
        make()


def test_published_switches_leave_the_feed_forward_network_to_the_start(tiny, windows):
    """Attention alone, without the sign rule: `on` gives the method of each kind of matrix."""
    method = sl.DSnoT.published()
    assert (
        not method.same_sign
        and method.on(ffn=False) == method
        and method.on(ffn=True).max_cycles == 0
    )
    dense = {name: linear.weight.detach().clone() for name, linear in sl.linears_of(tiny).items()}
    sl.prune(tiny, windows, method=method, sparsity=0.5, progress=False, layers=[0])
    moved = {name: linear.weight != 0 for name, linear in sl.linears_of(tiny, [0]).items()}
    for name, linear in sl.linears_of(tiny).items():
        linear.weight.data.copy_(dense[name])
    sl.prune(tiny, windows, method="wanda", sparsity=0.5, progress=False, layers=[0])
    same = {
        name: bool((moved[name] == (linear.weight != 0)).all())
        for name, linear in sl.linears_of(tiny, [0]).items()
    }
    ffn = sl.family_of(tiny).ffn
    assert all(same[name] for name in same if name.endswith(ffn)) and not all(same.values())


@pytest.mark.parametrize("spec", PATTERNS)
@pytest.mark.parametrize("grow", ["expected", "wanda", "magnitude"])
@pytest.mark.parametrize("drop", ["wanda", "magnitude", "expected"])
def test_one_swap_follows_the_criteria(layer, spec, grow, drop):
    """The first swap of each row, against the criteria written out weight by weight."""
    w, _, stats = layer
    pattern = Pattern.parse(spec)
    start = prune_rows(start_scores("wanda", w, stats), pattern, per_row=True)
    rule = sl.DSnoT(max_cycles=1, threshold=0, grow=grow, drop=drop)
    pruned = ~rule.solve(w, stats, pattern).mask
    wanda, error = w.abs() * stats.norms, expected_error(w, start, stats)
    moved = 0
    for row in range(len(w)):
        sign = 1 if error[row] >= 0 else -1
        effect = w[row] * stats.mean * sign  # of pruning: what it adds to the row's error
        scores = {"wanda": wanda[row], "magnitude": w[row].abs()}
        growing = {**scores, "expected": effect / stats.variance}[grow]
        dropping = {**scores, "expected": effect}[drop]
        back = [k for k in range(w.shape[1]) if start[row, k] and effect[k] > 0]
        back = max((k for k in back if stats.variance[k] > 0), key=lambda k: growing[k])
        group = range(w.shape[1])
        if pattern.m:
            group = range(back // pattern.m * pattern.m, (back // pattern.m + 1) * pattern.m)
        away = [k for k in group if not start[row, k] and (pattern.m or effect[k] < 0)]
        away = min(away, key=lambda k: dropping[k])
        expected = start[row].clone()
        if abs(error[row]) + effect[away] - effect[back] > 0:  # the sign rule
            expected[back], expected[away], moved = False, True, moved + 1
        assert torch.equal(pruned[row], expected)
    assert moved > 0
