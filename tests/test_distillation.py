"""Distillation lowers the divergence from the dense model on held-out windows and keeps the number
of zeros; ELSA's iteration is the one that its formulas say."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import TINY, VOCABULARY, tiny_llama

import sparselab as sl
from sparselab.engine import distillation as module
from sparselab.engine.distillation import Split, Student, distill, pruned_places
from sparselab.patterns import valid_groups

CALL = {"steps": 24, "batch": 4, "rate": 2e-3, "progress": False}
ELSA = {**CALL, "masks": "elsa", "every": 4, "penalty": 0.1}
MODES = {"fixed": CALL, "elsa": ELSA}


@pytest.fixture
def windows():
    return torch.randint(4, VOCABULARY, (12, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pair(windows):
    return pruned(windows)


def pruned(windows, family="llama", sparsity=0.8, dtype=torch.float32):
    """A tiny model, pruned by magnitude, and as it was dense."""
    dense = TINY[family]().to(dtype)
    model = copy.deepcopy(dense)
    sl.prune(model, windows, method="magnitude", sparsity=sparsity, progress=False)
    return model, dense


def places(model):
    return {name: linear.weight == 0 for name, linear in sl.linears_of(model).items()}


def counts(model):
    return {name: int(zero.sum()) for name, zero in places(model).items()}


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sparsity", [0.8, "2:4"])
@pytest.mark.parametrize("family", TINY)
def test_the_divergence_falls_and_the_zeros_keep_their_number(family, sparsity, mode, windows):
    model, dense = pruned(windows, family, sparsity)
    before, number, teacher = places(model), counts(model), state(dense)
    result = sl.distill(model, dense, windows, sparsity=sparsity, **MODES[mode])
    assert result.held_out[1] < 0.85 * result.held_out[0]
    assert result.looks[0] == (0, result.held_out[0]) and result.best_step > 0
    assert (len(result.losses), result.tokens) == (24, 24 * 4 * 32)
    assert result.sparsity[0] == result.sparsity[1]
    assert counts(model) == number
    assert same(places(model), before) == (mode == "fixed")
    if sparsity == "2:4":
        assert all(
            valid_groups(linear.weight, sl.Pattern.parse("2:4"))
            for linear in sl.linears_of(model).values()
        )
    assert same(state(dense), teacher)
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    assert f"{result.held_out[0]:.4g} -> {result.held_out[1]:.4g} nats" in str(result)


@pytest.mark.parametrize("mode", MODES)
def test_the_model_is_left_in_the_state_that_was_measured_best(mode, pair, windows):
    model, dense = pair
    result = distill(model, dense, windows, **MODES[mode])
    generator = torch.Generator().manual_seed(0)
    _, held = module._divide(windows, 0.125, generator)
    assert len(held) == 2
    found = module._divergences(model, dense, held, False).mean().item()
    assert found == pytest.approx(result.held_out[1], rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rate", [3.0, 1e12])
def test_an_absurd_rate_leaves_the_start_bit_for_bit(mode, rate, pair, windows):
    model, dense = pair
    before = state(model)
    try:
        result = distill(model, dense, windows, **{**MODES[mode], "rate": rate})
        assert result.best_step == 0 and result.held_out[0] == result.held_out[1]
    except sl.SparselabError as error:
        assert "diverged" in str(error) and "has been put back" in str(error)
    assert same(state(model), before)


def test_a_loss_that_is_not_finite_is_said_and_the_best_state_put_back(pair, windows, monkeypatch):
    model, dense = pair
    real, calls = module.token_divergences, []

    def breaks(*given):
        calls.append(1)
        return real(*given) * (math.nan if len(calls) == 20 else 1)

    monkeypatch.setattr(module, "token_divergences", breaks)
    with pytest.raises(sl.SparselabError, match="the loss is nan .*after 19 steps.*below 0.002"):
        distill(model, dense, windows, **CALL)
    assert all(torch.isfinite(value).all() for value in state(model).values())
    assert not same(state(model), state(pruned(windows)[0]))  # that of a look, not the first


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_leaves_the_best_state_with_all_zeros(mode, pair, windows, monkeypatch):
    model, dense = pair
    model.lm_head.weight.requires_grad_(False)
    before, number = state(model), counts(model)
    real, calls = module.token_divergences, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 18:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(module, "token_divergences", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(model, dense, windows, **MODES[mode])
    assert counts(model) == number and not same(state(model), before)
    assert all(each.grad is None for each in model.parameters())
    asked = {name for name, each in model.named_parameters() if not each.requires_grad}
    assert asked == {"lm_head.weight"}


def test_an_interrupt_during_a_look_leaves_no_dense_weight(pair, windows, monkeypatch):
    model, dense = pair
    before, real, calls = state(model), module.window_divergences, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(module, "window_divergences", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(model, dense, windows, **ELSA)
    assert same(state(model), before)


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_bits(mode, windows):
    results = []
    for seed in (5, 5, 6):
        model, dense = pruned(windows)
        found = distill(model, dense, windows, **{**MODES[mode], "steps": 6, "seed": seed})
        results.append((state(model), found))
    assert same(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    assert not same(results[0][0], results[2][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smaller_microbatches_are_the_same_optimisation(dtype, windows, monkeypatch):
    whole, dense = pruned(windows, dtype=dtype)
    parts = copy.deepcopy(whole)
    one = distill(whole, dense, windows, **CALL)
    real, sizes = module.token_divergences, []

    def narrow(logits, targets):
        sizes.append(len(logits))
        if len(logits) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(logits, targets)

    monkeypatch.setattr(module, "token_divergences", narrow)
    two = distill(parts, dense, windows, **CALL)
    assert sizes[:3] == [4, 2, 1] and {*sizes[3:]} == {1}  # what fitted is remembered
    exact = dtype == torch.float32
    assert two.losses == pytest.approx(one.losses, rel=1e-4 if exact else 0.1)
    assert two.held_out == pytest.approx(one.held_out, rel=1e-3 if exact else 0.1)

    monkeypatch.setattr(module, "token_divergences", lambda *_: narrow([1, 2], None))
    before = state(parts)
    with pytest.raises(sl.SparselabError, match="out of memory with a single window"):
        distill(parts, dense, windows, **CALL)
    assert same(state(parts), before)


def test_small_steps_add_up_in_bfloat16(windows):
    model, dense = pruned(windows, dtype=torch.bfloat16)
    student = Student(model, model.parameters(), at_once=2)
    weight = model.lm_head.weight
    before, master = weight.detach().clone(), student.masters[weight]
    assert master.dtype == torch.float32 and torch.equal(master, before.float())
    lost = (before + 1e-4).eq(before).float().mean()
    assert lost > 0.5  # what the masters are for
    for _ in range(100):
        master += 1e-4
        student.round()
    assert (weight.float() - before.float()).mean().item() == pytest.approx(0.01, rel=0.05)
    student.gradients(dense, windows[:4])
    assert master.grad.dtype == torch.float32 and weight.grad is None

    model = pruned(windows, dtype=torch.bfloat16)[0]
    plain, teacher = pruned(windows)
    ours = distill(model, dense, windows, **CALL)
    theirs = distill(plain, teacher, windows, **CALL)
    assert model.dtype == torch.bfloat16
    assert ours.held_out == pytest.approx(theirs.held_out, rel=0.05)


def test_only_the_linears_learn_where_that_is_asked(pair, windows):
    model, dense = pair
    before = state(model)
    distill(model, dense, windows, trained="linears", **CALL)
    names = {f"{name}.weight" for name in sl.linears_of(model)}
    changed = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    assert changed == names


@pytest.mark.parametrize("pattern", [sl.Pattern(0.75), sl.Pattern.parse("2:4")], ids=str)
def test_elsa_is_what_its_formulas_say(pattern):
    """Some steps on one matrix, against the same in numpy's float64."""
    rate, penalty, every, steps, (b1, b2) = 0.2, 0.3, 2, 6, (0.9, 0.999)
    rng = np.random.default_rng(0)
    w, aim = rng.normal(size=(2, 4, 8))
    cut = (
        np.argsort(np.argsort(abs(w).reshape(-1, 4), 1), 1).reshape(4, 8) < 2
        if pattern.m
        else abs(w) <= np.sort(abs(w), None)[23]
    )
    w[cut] = 0
    count = int(cut.sum())
    weight = torch.nn.Parameter(torch.tensor(w))
    split = Split([weight], pattern, penalty, every, steps)
    adam = torch.optim.Adam([weight], lr=rate, betas=(b1, b2))
    z, u, m, v = w.copy(), np.zeros((4, 8)), np.zeros((4, 8)), np.zeros((4, 8))

    def strength(last):  # lambda of the interval that ends with this step
        return penalty * (1 - math.cos(math.pi * last / steps)) / 2

    for step in range(1, steps + 1):
        weight.grad = weight.detach() - torch.tensor(aim)
        split.pull()
        ramp = strength(math.ceil(step / every) * every)
        slope = w - aim + ramp * (w - z + u)
        np.testing.assert_allclose(weight.grad.numpy(), slope, rtol=1e-12, atol=1e-14)
        adam.step()
        m, v = b1 * m + (1 - b1) * slope, b2 * v + (1 - b2) * slope**2
        w = w - rate * (m / (1 - b1**step)) / (np.sqrt(v / (1 - b2**step)) + 1e-8)
        if step % every == 0 and step < steps:
            split.project(step, [adam.state[weight]["exp_avg_sq"]])
            saliency = (w + u) ** 2 * v
            if pattern.m:
                order = np.argsort(saliency.reshape(-1, 4), 1)
                keep = np.zeros((8, 4), bool)
                np.put_along_axis(keep, order[:, 2:], True, 1)
                keep = keep.reshape(4, 8)
            else:
                keep = saliency > np.sort(saliency, None)[count - 1]
            z = (w + u) * keep
            u = (u + w - z) * ramp / strength(step + every)
            assert (z == 0).sum() == count
        np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-10)
        np.testing.assert_allclose(split.z[0].numpy(), z, rtol=1e-10)
        np.testing.assert_allclose(split.u[0].numpy(), u, rtol=1e-10, atol=1e-14)
    assert split.strength == pytest.approx(penalty)
    assert ((z == 0) != cut).any()  # masks moved


def test_more_zeros_than_the_groups_ask_for_are_kept_in_number():
    scores = torch.rand(16, 32, generator=torch.Generator().manual_seed(0))
    pattern = sl.Pattern.parse("2:4")
    cut = pruned_places(scores, 300, pattern)
    assert cut.sum() == 300 and valid_groups((~cut).float(), pattern)
    left = scores.masked_fill(pruned_places(scores, 256, pattern), 2)
    assert torch.equal(cut, (left <= left.flatten().kthvalue(44).values) | (left == 2))
    assert pruned_places(scores, 3, sl.Pattern(0.0)).sum() == 3
    assert pruned_places(torch.zeros(4, 4), 5, sl.Pattern(0.0)).sum() == 5  # ties


def shares_memory(model, dense):
    twin = copy.deepcopy(dense)
    twin.lm_head.weight = model.lm_head.weight
    return {"dense": twin}


REFUSED = {
    "itself": (lambda model, dense: {"dense": model}, "is the model itself"),
    "shared": (shares_memory, "shares memory"),
    "depth": (
        lambda *_: {"dense": tiny_llama(num_hidden_layers=3)},
        r"layers.2.* absent in the pr",
    ),
    "vocabulary": (lambda *_: {"dense": tiny_llama(vocab_size=100)}, r"\(100, 32\) in the dense"),
    "family": (lambda *_: {"dense": TINY["opt"]()}, "before pruning"),
    "training": (lambda model, dense: {"dense": dense.train()}, "training mode"),
    "one window": (lambda *_: {"windows": torch.full((1, 32), 5)}, "at least 2 windows"),
    "shape": (lambda *_: {"windows": torch.full((32,), 5)}, r"must be \[samples, seqlen\]"),
    "ids": (lambda *_: {"windows": torch.full((4, 32), VOCABULARY)}, "another model's tokenizer"),
    "2:4": (lambda *_: {"sparsity": "3:4"}, "fewer than 3 zeros"),
    "width": (lambda *_: {"sparsity": "2:5"}, "does not divide"),
    "0.9": (lambda *_: {"sparsity": 0.9}, r"has only 49\.\d+% zeros|has only 50\.\d+% zeros"),
    "percent": (lambda *_: {"sparsity": 50}, "Did you mean 0.5"),
    "unpruned": (
        lambda model, dense: {"model": dense, "dense": copy.deepcopy(dense), "masks": "elsa"},
        "no zeros that masks='elsa'",
    ),
    "unpruned 2:4": (
        lambda model, dense: {"model": dense, "dense": copy.deepcopy(dense), "sparsity": "2:4"},
        "fewer than 2 zeros",
    ),
    "every": (lambda *_: {"masks": "elsa", "every": 24}, "no mask would move"),
    "float16": (lambda model, dense: {"model": model.half()}, "float16"),
    **{
        f"{name}={value!r}": (
            lambda *_, name=name, value=value: {name: value},
            rf"distill\({name}={value!r}\): choose",
        )
        for name, value in [
            ("steps", 0),
            ("batch", 1.5),
            ("rate", -1),
            ("rate", math.nan),
            ("penalty", 0),
            ("every", 0),
            ("held_out", 0),
            ("held_out", 1),
            ("masks", "elza"),
            ("trained", "linear"),
            ("sparsity", True),
            ("seed", 0.5),
            ("progress", 3),
        ]
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_changes(case, windows):
    model, dense = pruned(windows, sparsity=0.5)
    changes, words = REFUSED[case]
    call = {"model": model, "dense": dense, "windows": windows, **CALL, **changes(model, dense)}
    before = state(call["model"])
    with pytest.raises(sl.SparselabError, match=words):
        distill(**call)
    assert same(state(call["model"]), before)
