"""One suite for all methods and patterns; then what is particular to each."""

from dataclasses import dataclass

import pytest
import torch
from conftest import correlated
from textbook import magnitude_mask, optimal_brain_surgeon, relative_error, sparsegpt, wanda_mask

import sparselab as sl
from sparselab import Pattern, SparselabError, Statistics
from sparselab.methods.magnitude import global_shares
from sparselab.numerics.statistics import GRAM, NORMS
from sparselab.patterns import valid_groups

METHODS = [
    sl.Magnitude(),
    sl.Magnitude(scope="global"),
    sl.Wanda(),
    sl.Wanda(per="matrix"),
    sl.SparseGPT(),
    sl.SparseGPT(block=24),
    sl.SparseGPT(block=1),
]
PATTERNS = [0.0, 0.3, 0.5, 0.7, 0.9, "2:4", "4:8", "3:4", "1:2"]
ROWS, WIDTH = 20, 48
all_methods = pytest.mark.parametrize("method", METHODS, ids=str)
all_patterns = pytest.mark.parametrize("spec", PATTERNS)


@pytest.fixture(scope="module")
def layer():
    """A weight [20, 48], its inputs [600, 48] with one dead channel, and their statistics."""
    x = correlated(600, WIDTH)
    x[:, 7] = 0
    w = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(3))
    return w, x, Statistics.of(x, needs=(GRAM, NORMS)).finish("x")


def zeros_wanted(method, pattern):
    """Wanda takes the floor of every row; the others the floor of the matrix."""
    if pattern.m or not (isinstance(method, sl.Wanda) and method.per == "row"):
        return pattern.zeros(ROWS * WIDTH)
    return ROWS * pattern.zeros(WIDTH)


@all_methods
@all_patterns
def test_sparsity_is_exact(layer, method, spec):
    w, _, stats = layer
    pattern = Pattern.parse(spec)
    solution = method.solve(w, stats, pattern)
    assert int((solution.weight == 0).sum()) == zeros_wanted(method, pattern)
    assert torch.equal(solution.mask, solution.weight != 0)
    assert not pattern.m or valid_groups(solution.weight, pattern)


@all_methods
def test_sparsity_zero_changes_nothing(layer, method):
    w, _, stats = layer
    assert torch.equal(method.solve(w, stats, Pattern(0.0)).weight, w)


@all_methods
@all_patterns
def test_the_given_weight_is_left_alone(layer, method, spec):
    w, _, stats = layer
    before = w.clone()
    method.solve(w, stats, Pattern.parse(spec))
    assert torch.equal(w, before)


@all_methods
@all_patterns
def test_rows_may_be_permuted(layer, method, spec):
    w, _, stats = layer
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))
    straight = method.solve(w, stats, Pattern.parse(spec)).weight[order]
    permuted = method.solve(w[order], stats, Pattern.parse(spec)).weight
    torch.testing.assert_close(straight, permuted, rtol=1e-4, atol=1e-5)


@all_methods
@pytest.mark.parametrize("shape", [(1, WIDTH), (3, WIDTH)])
def test_single_rows_work(layer, method, shape):
    w, _, stats = layer
    assert method.solve(w[: shape[0]], stats, Pattern(0.5)).weight.shape == shape


@all_patterns
def test_sparsegpt_is_never_worse_than_magnitude_on_correlated_inputs(layer, spec):
    w, x, stats = layer
    errors = [
        relative_error(w, method.solve(w, stats, Pattern.parse(spec)).weight, x)
        for method in (sl.SparseGPT(), sl.Wanda(), sl.Magnitude())
    ]
    assert errors[0] <= errors[2], errors


def test_magnitude_by_hand():
    w = torch.tensor([[1.0, -2, 3, -4, 5, -6, 7, -8]])
    assert sl.Magnitude().solve(w, None, Pattern.parse("2:4")).weight.tolist() == [
        [0, 0, 3, -4, 0, 0, 7, -8]
    ]
    assert sl.Magnitude().solve(w, None, Pattern(0.75)).weight.tolist() == [
        [0, 0, 0, 0, 0, 0, 7, -8]
    ]


def test_wanda_by_hand():
    """Norms 10, 1, 1: the small weight on the loud input stays."""
    stats = Statistics.of(torch.tensor([[10.0, 1.0, -1.0]]), needs=(NORMS,)).finish("x")
    w = torch.tensor([[0.2, 1.0, -1.5], [0.05, 0.4, 3.0]])
    kept = sl.Wanda().solve(w, stats, Pattern(1 / 3)).weight
    torch.testing.assert_close(kept, torch.tensor([[0.2, 0, -1.5], [0.05, 0, 3.0]]))


def test_wanda_compares_within_rows_unless_told_otherwise(layer):
    w, _, stats = layer
    loud = w * torch.linspace(0.1, 10, ROWS)[:, None]  # rows of very different size
    per_row = sl.Wanda().solve(loud, stats, Pattern(0.5)).mask.sum(1)
    per_matrix = sl.Wanda(per="matrix").solve(loud, stats, Pattern(0.5)).mask.sum(1)
    assert per_row.unique().tolist() == [WIDTH // 2]
    assert per_matrix[0] < per_matrix[-1]


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_sparsegpt_is_optimal_brain_surgeon(sparsity):
    """One block, against the definition in float64 that never forms a Cholesky factor."""
    x, w = correlated(500, 16), torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    ours = sl.SparseGPT().solve(w, Statistics.of(x).finish("x"), Pattern(sparsity)).weight
    torch.testing.assert_close(
        ours.double(), optimal_brain_surgeon(w, x, sparsity), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("spec", [0.5, 0.7, "2:4", "3:4"])
@pytest.mark.parametrize("block", [16, 128])
def test_against_the_textbook(spec, block):
    """The published rules on the same inputs: masks agree in 98.5 % (counts and ties), the error
    within 2 %."""
    pattern = Pattern.parse(spec)
    x, w = correlated(2000, 160), torch.randn(96, 160, generator=torch.Generator().manual_seed(1))
    stats = Statistics.of(x, needs=(GRAM, NORMS)).finish("x")
    nm = {"n": pattern.n, "m": pattern.m}
    for method, mask in (
        (sl.Magnitude(), magnitude_mask(w, pattern.sparsity, **nm)),
        (sl.Wanda(), wanda_mask(w, x, pattern.sparsity, **nm)),
    ):
        assert (method.solve(w, stats, pattern).mask == ~mask).float().mean() >= 0.985
    ours = sl.SparseGPT(block=block).solve(w, stats, pattern).weight
    theirs = sparsegpt(w.double(), x.double(), pattern.sparsity, block=block, **nm)
    assert relative_error(w, ours, x) <= 1.02 * relative_error(w, theirs, x)


def test_dead_inputs_go_first_and_disturb_nobody(layer):
    w, x, stats = layer
    solution = sl.SparseGPT().solve(w, stats, Pattern(0.5))
    assert not solution.mask[:, 7].any()
    alive = [j for j in range(WIDTH) if j != 7]
    share = Pattern((ROWS * WIDTH // 2 - ROWS) / (ROWS * (WIDTH - 1)))
    without = sl.SparseGPT().solve(w[:, alive], Statistics.of(x[:, alive]).finish("x"), share)
    assert (without.mask == solution.mask[:, alive]).float().mean() > 0.99


def test_all_inputs_dead():
    stats = Statistics.of(torch.zeros(10, 8)).finish("x")
    solution = sl.SparseGPT().solve(torch.randn(4, 8), stats, Pattern(0.5))
    assert int((~solution.mask).sum()) == 16 and torch.isfinite(solution.weight).all()


def test_several_sparsities_share_one_factorisation(layer, monkeypatch):
    w, x, _ = layer
    stats, calls = Statistics.of(x).finish("x"), []
    import sparselab.numerics.statistics as module

    factor = module.inverse_factor
    monkeypatch.setattr(module, "inverse_factor", lambda *args: calls.append(1) or factor(*args))
    for sparsity in (0.5, 0.6, 0.7, 0.8):
        sl.SparseGPT().solve(w, stats, Pattern(sparsity))
    assert len(calls) == 1


@pytest.mark.parametrize(
    "specs",
    [
        (0.5, 0.5, 0.5),
        (0.8, 0.5, 0.2),
        (0.7, 0.0, 0.7),
        ("2:4", "2:4", "2:4"),
        ("3:4", "3:4", "3:4"),
        ("2:4", "1:4", 0.5),
    ],
)
@pytest.mark.parametrize(
    "rows, width, block", [((20, 10, 10), 48, 16), ((96, 48, 48), 160, 128), ((1, 7, 3), 40, 128)]
)
def test_stacked_matrices_get_the_masks_of_separate_ones(specs, rows, width, block):
    """The second matrix is a hundred times as loud as the others: under one threshold for all it
    would keep all weights."""
    stats, method = Statistics.of(correlated(600, width)).finish("x"), sl.SparseGPT(block=block)
    weights = [loud * torch.randn(r, width) for r, loud in zip(rows, (1, 100, 1), strict=True)]
    before, patterns = [w.clone() for w in weights], [*map(Pattern.parse, specs)]
    together = method.solve_together(weights, stats, patterns)
    for weight, old, pattern, solution in zip(weights, before, patterns, together, strict=True):
        alone = method.solve(weight, stats, pattern)
        assert torch.equal(solution.mask, alone.mask) and int((~alone.mask).sum()) == pattern.zeros(
            weight.numel()
        )
        torch.testing.assert_close(
            solution.weight, alone.weight, rtol=1e-5, atol=1e-6 * float(weight.abs().max())
        )
        assert (
            torch.equal(weight, old)
            and solution.weight.is_contiguous()
            and solution.mask.is_contiguous()
        )


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.93])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_global_threshold_is_exact_and_lets_matrices_compete(sparsity, dtype):
    weights = [
        torch.randn(30, 20).to(dtype),
        5 * torch.randn(10, 20).to(dtype),
        torch.ones(8, 8, dtype=dtype),
    ]
    shares = global_shares(weights, Pattern(sparsity))
    counts = [share.zeros(w.numel()) for share, w in zip(shares, weights, strict=True)]
    every = torch.cat([w.float().abs().flatten() for w in weights])
    assert sum(counts) == Pattern(sparsity).zeros(every.numel())
    threshold = every.sort().values[sum(counts) - 1] if sum(counts) else -1
    for w, count in zip(weights, counts, strict=True):
        assert (
            int((w.float().abs() < threshold).sum())
            <= count
            <= int((w.float().abs() <= threshold).sum())
        )


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: sl.SparseGPT(refit="false"), "refit='false'"),
        (lambda: sl.Wanda(in_order=1), "in_order=1"),
        (lambda: sl.SparseGPT(damp="x"), "damp='x'"),
        (lambda: sl.SparseGPT(block=0), "block >= 1"),
        (lambda: sl.SparseGPT(damp=-1), "damp >= 0"),
        (lambda: sl.Magnitude(scope="layer"), "'matrix' or 'global'"),
        (lambda: sl.Wanda(per="model"), "per 'row'"),
    ],
)
def test_wrong_hyper_parameters_get_a_sentence(make, words):
    with pytest.raises(SparselabError, match=words):
        make()


def test_a_method_of_ones_own_may_have_words():
    @dataclass(frozen=True)
    class Own(sl.Wanda):
        mode: str | None = None

    assert str(Own(mode="late")) == "wanda(per=row, mode=late)" and Own().mode is None
