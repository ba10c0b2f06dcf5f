"""ADMM and ALPS, one matrix at a time: the eigenvectors that they share, against brute force and
the published loop, and what holds for every schedule."""

import gc
import itertools

import numpy as np
import pytest
import torch
from conftest import correlated
from textbook import alps

import sparselab as sl
from sparselab import Pattern, Statistics
from sparselab.methods.admm import STARTS, squared_error
from sparselab.numerics.spectrum import Spectrum
from sparselab.numerics.statistics import CROSS, GRAM, NORMS
from sparselab.patterns import valid_groups

PATTERNS = [0.0, 0.3, 0.5, 0.9, "2:4", "3:4"]
SOLVERS = [sl.ADMM(), sl.ADMM("magnitude", penalty=0.01, growth=2.0), sl.ALPS()]
SEEDS = range(20)


def layer(rows, width, seed, tokens=600):
    """A weight [rows, width], and the statistics of its inputs."""
    w = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    stats = Statistics.of(correlated(tokens, width, seed), needs=(GRAM, NORMS)).finish("x")
    return w, stats


def error(weight, method, stats, spec):
    new = method.solve(weight, stats, Pattern.parse(spec)).weight
    return squared_error(weight, new, stats.hessian())


# the eigenvectors


@pytest.mark.parametrize("rho", [1e-3, 0.1, 3.0, 1e4])
@pytest.mark.parametrize("width", [1, 7, 40])
def test_the_spectrum_inverts_for_every_penalty(width, rho):
    w, stats = layer(5, width, 0)
    hessian = stats.hessian()
    h = hessian.double()
    spectrum = Spectrum(hessian.clone())  # written over it
    scale = h.diagonal().rsqrt()
    scaled = scale[:, None] * h * scale
    expected = torch.linalg.inv(scaled + rho * torch.eye(width, dtype=torch.float64))
    torch.testing.assert_close(
        spectrum.inverse(rho).double(), expected, rtol=1e-3, atol=1e-4 * expected.max().item()
    )
    torch.testing.assert_close(spectrum.scaled(w), w / scale.float(), rtol=1e-5, atol=1e-5)
    pull = spectrum.pull(w, hessian).double()
    torch.testing.assert_close(pull, (w.double() / scale) @ scaled, rtol=1e-4, atol=1e-4)


def test_directions_without_any_input_are_no_trouble():
    """Rounding leaves their eigenvalues a little below zero; the penalty must not be less."""
    x = correlated(300, 4) @ torch.randn(4, 24, generator=torch.Generator().manual_seed(1))
    stats = Statistics.of(x, needs=(GRAM, NORMS)).finish("x")
    spectrum = Spectrum(stats.hessian(0.0))
    assert (spectrum.values >= 0).all() and (spectrum.values < 1e-5).sum() == 20
    assert torch.isfinite(spectrum.inverse(1e-6)).all()
    w = torch.randn(6, 24)
    for method in SOLVERS:
        assert torch.isfinite(method.solve(w, stats, Pattern(0.5)).weight).all()


@pytest.mark.parametrize("method", SOLVERS, ids=str)
def test_one_decomposition_serves_all_sparsities_and_matrices(method, monkeypatch):
    w, stats = layer(8, 24, 0)
    real, calls = torch.linalg.eigh, []
    monkeypatch.setattr(torch.linalg, "eigh", lambda *a, **k: calls.append(1) or real(*a, **k))
    for spec in (0.5, 0.8, "2:4"):
        method.solve(w, stats, Pattern.parse(spec))
    method.solve(w.flip(0), stats, Pattern(0.5))
    assert len(calls) == 1


def test_the_eigenvectors_take_the_place_of_the_hessian():
    """At the full width of a network it is the largest matrix of a run."""
    _, stats = layer(4, 40, 0)
    hessian = stats.hessian()
    place = hessian.data_ptr()
    assert Spectrum(hessian).vectors.data_ptr() == place


def wide(width):
    """How many matrices [width, width] memory holds."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
    return len({each.data_ptr() for each in tensors if each.shape == (width, width)})


@pytest.mark.parametrize("method", [sl.ADMM(), sl.ALPS()], ids=str)
def test_what_one_matrix_alone_reads_goes_when_it_is_read(method, monkeypatch):
    """While the penalties rise, neither the Hessian, nor its factor, nor the products with the
    dense model's inputs are held; a second reader is an error and gets no other answer."""
    x = correlated(300, 24)
    stats = Statistics.of(x, x.flip(0), needs=(GRAM, NORMS, CROSS))
    stats.shared, held, real = False, [], Spectrum.inverse
    monkeypatch.setattr(Spectrum, "inverse", lambda *a, **k: held.append(wide(24)) or real(*a, **k))
    weight, before = torch.randn(8, 24, generator=torch.Generator().manual_seed(3)), wide(24)
    method.prune_matrix(weight, stats, Pattern(0.5))
    # The eigenvectors came, the cross products went; later the last inverse is there as well.
    assert held[0] == before and max(held) == before + 1
    with pytest.raises(AttributeError):
        method.prune_matrix(weight, stats, Pattern(0.5))


# against brute force


def least(weight, stats, zeros):
    """The lowest error of all masks with so many zeros, each with its exact least squares: of a row
    w with zeros at d it is w_d ((H^-1)_dd)^-1 w_d, which optimal brain surgeon rests on."""
    rows, width = weight.shape
    inverse, weight = np.linalg.inv(stats.hessian().double().numpy()), weight.double().numpy()
    cost = np.zeros((rows, 2**width))  # by row and by the columns that are zero, as bits
    columns = [[j for j in range(width) if bits >> j & 1] for bits in range(2**width)]
    for bits, cut in enumerate(columns[1:], 1):
        part = np.linalg.inv(inverse[np.ix_(cut, cut)])
        cost[:, bits] = np.einsum("ri,ij,rj->r", weight[:, cut], part, weight[:, cut])
    return min(
        sum(cost[row, bits] for row, bits in enumerate(chosen))
        for chosen in itertools.product(range(2**width), repeat=rows)
        if sum(len(columns[bits]) for bits in chosen) == zeros
    )


@pytest.mark.parametrize("shape, zeros", [((1, 6), 3), ((1, 8), 5), ((2, 5), 5), ((2, 5), 7)])
def test_the_best_of_all_masks_is_found_more_often_than_not(shape, zeros):
    """Of twenty layers, ADMM finds the optimum in at least half; on average it is 12 % above it at
    most, at worst 2.1 times. ALPS finds it in at least a quarter, and is 3.5 times above it at
    worst. SparseGPT, whose weights are not fitted to the end, finds it in none."""
    ratios = {name: [] for name in ("admm", "alps", "sparsegpt")}
    for seed in SEEDS:
        w, stats = layer(*shape, seed, 200)
        best = least(w, stats, zeros)
        methods = sl.ADMM(), sl.ALPS(damp=stats.damping), sl.SparseGPT()
        for method in methods:
            ratio = error(w, method, stats, zeros / w.numel()) / best
            assert ratio > 0.999  # nothing is better than the best
            ratios[method.name].append(ratio)
    found = {name: sum(ratio < 1.001 for ratio in values) for name, values in ratios.items()}
    assert found["admm"] >= 10 and found["alps"] >= 5 and found["sparsegpt"] == 0, found
    assert max(ratios["admm"]) < 2.1 and sum(ratios["admm"]) < 1.12 * len(SEEDS)
    assert max(ratios["alps"]) < 3.5


# for every schedule


@pytest.mark.parametrize("method", SOLVERS, ids=str)
@pytest.mark.parametrize("spec", PATTERNS)
def test_counts_are_exact(method, spec):
    w, stats = layer(20, 48, 3)
    pattern, before = Pattern.parse(spec), w.clone()
    solution = method.solve(w, stats, pattern)
    assert int((solution.weight == 0).sum()) == int((~solution.mask).sum()) == pattern.zeros(960)
    assert not pattern.m or valid_groups(solution.weight, pattern)
    assert torch.equal(w, before)


@pytest.mark.parametrize("initial", STARTS)
@pytest.mark.parametrize("spec", [0.3, 0.7, 0.95, "2:4"])
def test_admm_is_never_worse_than_its_start(initial, spec):
    """Whatever the schedule: a single step, a penalty that holds all as it is, one that is far too
    weak at first."""
    schedules = [{"steps": 1}, {"penalty": 1e6}, {"penalty": 1e-6, "growth": 10.0}, {}]
    for seed, options in enumerate(schedules):
        w, stats = layer(16, 32, seed)
        start = error(w, STARTS[initial](), stats, spec)
        assert error(w, sl.ADMM(initial, **options), stats, spec) <= start


@pytest.mark.parametrize("spec", [0.5, 0.7, 0.9, "2:4"])
def test_more_time_finds_lower_errors_on_average(spec):
    """From penalties that start at 1 and double to those that start at 0.01 and rise by 5 %, every
    step of the ladder as good as the one before it, to half a percent."""
    ladder = [(1.0, 2.0), (0.3, 1.5), (0.1, 1.2), (0.03, 1.1), (0.01, 1.05)]
    means = [0.0] * len(ladder)
    for seed in range(5):
        w, stats = layer(24, 48, seed)
        local = error(w, sl.SparseGPT(), stats, spec)
        for place, (penalty, growth) in enumerate(ladder):
            method = sl.ADMM(penalty=penalty, growth=growth)
            means[place] += error(w, method, stats, spec) / local / 5
    assert all(slow <= 1.005 * fast for fast, slow in itertools.pairwise(means)), means
    assert means[-1] < 0.95 * means[0]


def test_the_loop_ends_when_the_mask_stands_still(monkeypatch):
    """A loose tolerance looks at the mask less often than a tight one, and `steps` is the limit."""
    w, stats = layer(24, 48, 0)
    real, calls = Spectrum.inverse, []
    monkeypatch.setattr(
        Spectrum, "inverse", lambda self, rho, **out: calls.append(rho) or real(self, rho, **out)
    )
    looks = []
    for options in ({"tolerance": 0.2}, {}, {"tolerance": 0.0}, {"steps": 7}, {"every": 1}):
        calls.clear()
        sl.ADMM(**options).solve(w, stats, Pattern(0.7))
        looks.append(len(calls))
        expected = [0.1 * 1.2**k for k in range(len(calls))]
        assert calls == pytest.approx(expected)
    loose, normal, tight, short, each = looks
    assert loose < normal < tight <= 101 and short == 3 and each <= normal


# ALPS as published


@pytest.mark.parametrize("spec", [0.5, 0.8, 0.02, "2:4", "3:4"])
def test_alps_follows_the_published_loop(spec):
    """With a Gram matrix in float64 the mask is that of the released code's loop, weight by weight;
    in float32 one decision on the penalty may fall the other way. Every second layer has inputs
    that are always zero, whose weights change places for ever while rho is below 1, as rounding
    says."""
    pattern = Pattern.parse(spec)
    for seed in range(6):
        x = correlated(400, 40, seed)
        x[:, 3 : 3 + 5 * (seed % 2)] = 0
        w = torch.randn(16, 40, generator=torch.Generator().manual_seed(seed))
        stats = Statistics.of(x, needs=(GRAM, NORMS)).finish("x")
        expected = alps(w, x, pattern.sparsity, pattern.n, pattern.m)
        rounded = sl.ALPS().solve(w, stats, pattern).mask
        assert (rounded == expected).float().mean() > 0.9
        exact = Statistics.of(x, needs=(GRAM, NORMS)).finish("x")
        exact.gram = x.double().T @ x.double()
        solution = sl.ALPS(refit_steps=60).solve(w.double(), exact, pattern)
        agree = (solution.mask == expected).float().mean()
        assert agree > 0.98 if seed % 2 else agree == 1
        _is_refitted(w.double(), solution, sl.ALPS()._hessian(exact))


def _is_refitted(weight, solution, hessian):
    """The gradient vanishes at every kept weight."""
    slope = (weight - solution.weight) @ hessian
    whole = (weight @ hessian).abs().max()
    assert (slope[solution.mask].abs() < 1e-6 * whole).all()
