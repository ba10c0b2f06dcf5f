"""`reconstruct=`: what pruning left of a block, tuned by gradient; judged by what it held out, and
never the worse for it."""

import math
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, Killed, stored, tiny_llama, tiny_opt, weights

import sparselab as sl
from sparselab.engine.reconstruction import Tuner, held_out, units_of
from sparselab.methods.registry import named_method

UNITS, TARGETS = ("matrix", "sublayer", "block"), ("dense-stream", "dense-block", "dense-model")
QUICK = sl.Reconstruction(rate=5e-3, epochs=3, batch=2)


def pruned(model, windows, reconstruct, method="magnitude", **options):
    call = {"sparsity": 0.6, "progress": False, **options}
    return sl.prune(model, windows, method=method, reconstruct=reconstruct, **call)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def seen_at(model, ids, place, after):
    """What a module of the model receives, or gives, [windows, seqlen, c]."""
    found, module = [], model.get_submodule(place)
    if after:
        keep = lambda _, args, out: found.append(out if torch.is_tensor(out) else out[0])  # noqa: E731
        handle = module.register_forward_hook(keep)
    else:
        keep = lambda _, args, kwargs: found.append(args[0])  # noqa: E731
        handle = module.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(ids)
    handle.remove()
    return found[0].reshape(*ids.shape, -1)


@pytest.fixture
def recorded(monkeypatch):
    """The block's parameters before and after each unit was tuned."""
    run, found = Tuner.run, []

    def watched(self):
        before = state(self.block)
        row = run(self)
        found.append((self, before, state(self.block)))
        return row

    monkeypatch.setattr(Tuner, "run", watched)
    return found


# what it arrives at


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("kind", ["fc1", "up_proj"])
def test_a_single_linear_comes_to_its_masked_least_squares(kind, targets, windows):
    """In the second block, behind a pruned first one: inputs and targets read off the two whole
    models, each row solved in float64."""
    make = TINY["opt" if kind == "fc1" else "llama"]
    dense, model = make(), make()
    settings = sl.Reconstruction("matrix", targets, 2e-2, 150, 2, 0.0, train="weights")
    report = pruned(model, windows, settings, modules=[kind])
    place = next(name for name in sl.linears_of(model, [1]) if name.endswith(kind))
    linear, old = model.get_submodule(place), dense.get_submodule(place)
    x, xd = (seen_at(each, windows, place, False).flatten(0, 1).double() for each in (model, dense))
    given, wanted = (xd if targets == "dense-model" else x), (x if targets == "dense-block" else xd)
    target, bias = wanted @ old.weight.double().T, 0 if old.bias is None else old.bias.double()
    best = 0.0
    for row, outputs in zip(linear.weight, target.T, strict=True):
        kept = given[:, row != 0]
        solution = torch.linalg.lstsq(kept, outputs[:, None]).solution
        best += (kept @ solution - outputs[:, None]).square().sum().item()
    ours = (given @ linear.weight.double().T - target).square().sum().item()
    assert best <= ours <= 1.03 * best
    row = report.reconstructions[-1]
    assert row["error"] == pytest.approx(ours / (target + bias).square().sum().item(), rel=1e-3)
    assert row["error"] < 0.8 * row["start"]


@pytest.mark.parametrize("unit, family", [*product(UNITS, TINY)])
def test_the_error_in_the_report_is_the_definition(unit, family, windows):
    """On the held-out windows, as a share of the mean square over all: what the finished model has
    at the unit's end, against the dense model."""
    dense, model = TINY[family](), TINY[family]()
    settings = sl.Reconstruction(unit, "dense-stream", 5e-3, 2, 2, 0.3)
    report = pruned(model, windows, settings)
    held, blocks = held_out(len(windows), 0.3), sl.family_of(model).blocks
    assert len(held) == 2
    for layer in (0, 1):
        units = units_of(sl.blocks_of(model)[0], sl.family_of(model), unit)
        rows = [row for row in report.reconstructions if row["layer"] == layer]
        assert [row["unit"] for row in rows] == [each.name for each in units]
        for row, each in zip(rows, units, strict=True):
            place = f"{blocks}.{layer}.{each.place}".removesuffix(".")
            now, then = (
                seen_at(one, windows, place, not each.before).double() for one in (model, dense)
            )
            error = (now - then)[held].square().mean() / then.square().mean()
            assert row["error"] == pytest.approx(error.item(), rel=1e-3)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("unit, family", [*product(UNITS, TINY)])
def test_the_held_out_error_never_rises_and_the_zeros_stay(
    unit, family, targets, windows, recorded
):
    model = TINY[family]()
    report = pruned(model, windows, sl.Reconstruction(unit, targets, 5e-3, 2, 2))
    rows = report.reconstructions
    assert len(rows) == len(recorded) and all(row["error"] <= row["start"] for row in rows)
    assert sum(row["error"] < 0.999 * row["start"] for row in rows) >= len(rows) / 2
    assert all((row["kept"] == 0) == (row["error"] == row["start"]) for row in rows)
    changed = set()
    for tuner, before, after in recorded:
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved <= {*tuner.trained} <= {*tuner.unit.parameters}
        changed |= moved
        for name in tuner.pruned:
            assert torch.equal(before[name] == 0, after[name] == 0), name
    assert {name for tuner, *_ in recorded for name in tuner.pruned} <= changed
    zeros = [1 - linear.weight.ne(0).float().mean() for linear in sl.linears_of(model).values()]
    assert zeros == pytest.approx([row.sparsity for row in report.rows])
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("family", TINY)
def test_the_stream_comes_nearer_to_the_dense_model(family, windows):
    """At the last block's output, by a third and more on the windows that it was tuned with, by a
    tenth on those held out, of which the solver sees nothing in either run."""
    place, errors = f"{sl.family_of(TINY[family]()).blocks}.1", []
    for rate in (1e-12, 1e-2):
        reconstruct = sl.Reconstruction(rate=rate, epochs=20, batch=2)
        model = TINY[family]()
        report = pruned(model, windows, reconstruct, "sparsegpt")
        now, then = (seen_at(each, windows, place, True) for each in (model, TINY[family]()))
        errors.append((now - then).square().mean((1, 2)))
    held = held_out(6, 0.125)
    seen = [k for k in range(6) if k not in held]
    assert errors[1][seen].mean() < 0.67 * errors[0][seen].mean()
    assert errors[1][held].mean() < 0.9 * errors[0][held].mean()
    assert "reconstruct" in report.seconds


@pytest.mark.parametrize("train", ["all", "weights"])
def test_biases_and_norms_learn_only_where_they_are_to(train, windows):
    model = tiny_opt()
    before = state(model)
    pruned(model, windows, sl.Reconstruction(rate=1e-2, epochs=2, batch=2, train=train))
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    matrices = {f"{name}.weight" for name in sl.linears_of(model)}
    vectors = {n for n, value in before.items() if ".layers." in n and value.ndim == 1}
    keys = {f"model.decoder.layers.{k}.self_attn.k_proj.bias" for k in (0, 1)}  # cancel in softmax
    assert moved - keys == (matrices | vectors - keys if train == "all" else matrices)


@pytest.mark.parametrize(
    "options",
    [{"modules": ["v_proj"]}, {"modules": ["q_proj", "k_proj"]}, {"layers": [1]}],
    ids=str,
)
@pytest.mark.parametrize("unit", UNITS)
def test_what_is_not_pruned_stays_dense_and_the_rest_is_tuned(tiny, windows, options, unit):
    before = state(tiny)
    report = pruned(tiny, windows, sl.Reconstruction(unit, rate=5e-3, epochs=2, batch=2), **options)
    names = {f"{row.name}.weight" for row in report.rows}
    for name, value in tiny.state_dict().items():
        if value.ndim == 2 and name not in names:
            assert torch.equal(value, before[name]), name
    layers = {row["layer"] for row in report.reconstructions}
    assert layers == set(options.get("layers", [0, 1]))


@pytest.mark.parametrize("unit", UNITS)
def test_a_block_without_zeros_is_left_alone(tiny, windows, unit):
    before, first = state(tiny), f"{sl.family_of(tiny).blocks}.0."
    report = pruned(tiny, windows, sl.Reconstruction(unit), sparsity={0: 0.0, 1: 0.5})
    assert {row["layer"] for row in report.reconstructions} == {1}
    assert all(
        torch.equal(value, before[name])
        for name, value in tiny.state_dict().items()
        if name.startswith(first)
    )


# steps that lead nowhere


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("rate", [10.0, 1e18])
def test_an_absurd_rate_leaves_every_unit_bit_for_bit(tiny, windows, unit, rate, recorded):
    report = pruned(tiny, windows, sl.Reconstruction(unit, rate=rate, epochs=9, patience=2))
    assert recorded and all(same(before, after) for _, before, after in recorded)
    for row in report.reconstructions:
        assert row["error"] == row["start"] and (row["epochs"], row["kept"]) == (2, 0)


@pytest.mark.parametrize("family", TINY)
def test_a_divergence_without_held_out_windows_is_said(family, windows, monkeypatch):
    """There is no better state to go back to but the start: that, and nothing that is not
    finite."""
    model, starts, run = TINY[family](), [], Tuner.run
    monkeypatch.setattr(Tuner, "run", lambda self: starts.append(state(self.block)) or run(self))
    with pytest.raises(sl.SparselabError, match="block: the error is not finite after .* below 1e"):
        pruned(model, windows, sl.Reconstruction(rate=1e18, held_out=0.0, epochs=2))
    assert len(starts) == 1 and same(starts[0], state(sl.blocks_of(model)[0]))
    assert all(p.requires_grad for p in model.parameters())


def test_an_interrupt_puts_the_unit_back(tiny, windows, monkeypatch):
    step, starts, calls = Tuner._step, [], []

    def interrupted(self, *given):
        calls.append(1)
        starts[:] = starts or [state(self.block)]
        if len(calls) == 4:
            raise KeyboardInterrupt
        step(self, *given)

    monkeypatch.setattr(Tuner, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pruned(tiny, windows, QUICK)
    assert same(starts[0], state(sl.blocks_of(tiny)[0]))
    assert all(p.requires_grad for p in tiny.parameters())


# dtypes


def test_small_steps_add_up_in_bfloat16(windows):
    """Each of them is lost in rounding: one step changes no weight above 0.01, two hundred do."""
    start, found = tiny_llama().to(torch.bfloat16), []
    pruned(start, windows, None, layers=[0])
    for epochs in (1, 200):
        model = tiny_llama().to(torch.bfloat16)
        settings = sl.Reconstruction("block", "dense-block", 3e-6, epochs, 6, 0.0, cosine=False)
        pruned(model, windows, settings, layers=[0])
        assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
        moved = 0
        for name, value in start.named_parameters():
            new = model.get_parameter(name)
            moved += int(((value != new) & (value.abs() > 0.01)).sum())
        found.append(moved)
    assert found[0] == 0 and found[1] > 100, found


@pytest.mark.parametrize("streamed", [False, True])
def test_float16_is_refused_before_anything_changes(tiny, windows, tmp_path, streamed):
    half = tiny.half()
    before, model, options = state(half), half, {}
    if streamed:
        model, options = stored(tmp_path / "m", half), {"out": tmp_path / "out"}
        options["dtype"] = torch.float16
    with pytest.raises(sl.SparselabError, match="float16, in which small steps vanish"):
        pruned(model, windows, True, **options)
    assert same(before, state(half)) and not (tmp_path / "out").exists()
    if streamed:  # in another dtype it may
        options["dtype"] = torch.bfloat16
        assert pruned(model, windows, QUICK, **options).reconstructions


# what it is computed in does not matter


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("batch", [1, 4])
def test_how_many_windows_run_at_once_does_not_matter(tiny, windows, unit, batch):
    family = "opt" if "OPT" in type(tiny).__name__ else "llama"
    other, settings = TINY[family](), sl.Reconstruction(unit, rate=2e-3, epochs=2, batch=3)
    reports = [
        pruned(tiny, windows, settings, batch=6),
        pruned(other, windows, settings, batch=batch),
    ]
    assert close(state(tiny), state(other))
    errors = [[row["error"] for row in each.reconstructions] for each in reports]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def close(one, other, share=0.002):
    """But for a few weights whose gradients are nearly zero, and of which Adam takes the sign."""
    far = total = 0
    for name, value in one.items():
        far += int((~torch.isclose(value, other[name], rtol=1e-3, atol=2e-4)).sum())
        total += value.numel()
    return far <= share * total


@pytest.mark.parametrize("unit", UNITS)
def test_memory_that_runs_out_halves_the_parts(tiny, windows, unit, monkeypatch):
    """While gradients are asked for; the result is that of a run that began that small."""
    family, kind = "opt" if "OPT" in type(tiny).__name__ else "llama", type(sl.blocks_of(tiny)[0])
    other, settings = TINY[family](), sl.Reconstruction(unit, rate=2e-3, epochs=2, batch=5)
    pruned(other, windows, settings, batch=3)
    forward, thrown = kind.forward, []

    def limited(self, hidden_states, *args, **kwargs):
        if torch.is_grad_enabled() and len(hidden_states) > 3:
            thrown.append(len(hidden_states))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", limited)
    pruned(tiny, windows, settings, batch=6)
    assert thrown == [5] and close(state(tiny), state(other))


def test_no_memory_even_for_one_window_puts_the_unit_back(tiny, windows, monkeypatch):
    kind, starts, run = type(sl.blocks_of(tiny)[0]), [], Tuner.run
    forward = kind.forward

    def never(self, *args, **kwargs):
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", never)
    monkeypatch.setattr(Tuner, "run", lambda self: starts.append(state(self.block)) or run(self))
    with pytest.raises(sl.SparselabError, match="a single window at a time"):
        pruned(tiny, windows, QUICK)
    assert same(starts[0], state(sl.blocks_of(tiny)[0]))


@pytest.mark.parametrize("targets", TARGETS)
def test_where_activations_and_targets_wait_does_not_matter(tiny, windows, targets):
    family = "opt" if "OPT" in type(tiny).__name__ else "llama"
    other, settings = TINY[family](), sl.Reconstruction("sublayer", targets, epochs=2)
    pruned(tiny, windows, settings, "sparsegpt", batch=2)
    pruned(other, windows, settings, "sparsegpt", batch=2, offload="disk")
    assert same(state(tiny), state(other))


# in the engine


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("method", ["wanda", "sparsellm"])
def test_streamed_and_killed_in_the_middle_it_has_the_same_bits(
    tiny, windows, tmp_path, unit, method, monkeypatch
):
    folder, settings = stored(tmp_path / "model", tiny), sl.Reconstruction(unit, epochs=2, batch=2)
    call = {"method": method, "out": tmp_path / "out", "batch": 4}
    whole = pruned(tiny, windows, settings, method, batch=4)
    step, calls = Tuner._step, []
    first = len([row for row in whole.reconstructions if row["layer"] == 0])

    def dies(self, *given):
        calls.append(self.unit.name)
        if len(calls) > first * 2 * 3 + 3:  # units, epochs, steps: in the second block
            raise Killed
        step(self, *given)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Tuner, "_step", dies)
        pruned(folder, windows, settings, **call)
    with pytest.raises(sl.SparselabError, match="interrupted run with method"):
        pruned(folder, windows, sl.Reconstruction(unit, epochs=3, batch=2), **call)
    report = pruned(folder, windows, settings, **call)
    expected = state(tiny)
    for name, value in weights(tmp_path / "out").items():
        assert torch.equal(expected[name], value), name
    rows = [
        [{**row, "seconds": 0} for row in each.reconstructions]
        for each in (whole, report, sl.Report.load(tmp_path / "out" / "sparselab-report.json"))
    ]
    assert rows[0] == rows[1] == rows[2] and {row["layer"] for row in rows[0]} == {0, 1}


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "admm", "swaps", "sparsellm"])
def test_the_solver_does_not_see_the_windows_that_are_held_out(method, windows):
    """Their tokens may be any: with a rate at which nothing moves, the masks are the same; without
    reconstruction they are not."""
    held, changed = held_out(6, 0.3), windows.clone()
    changed[held] = changed[held].flip(1).roll(1, 0)
    assert len(held) == 2
    for settings, unseen in (
        (sl.Reconstruction(rate=1e-12, epochs=1, held_out=0.3), True),
        (None, False),
    ):
        found = []
        for ids in (windows, changed):
            model = tiny_llama()
            pruned(model, ids, settings, method)
            found.append([linear.weight != 0 for linear in sl.linears_of(model).values()])
        assert all(map(torch.equal, *found)) == unseen


def test_every_method_and_switch_takes_it(tiny, windows):
    family = "opt" if "OPT" in type(tiny).__name__ else "llama"
    for method in sl.METHODS:
        for switches in ({}, {"targets": "dense-stream", "fisher": True, "divide": True}):
            model = TINY[family]()
            report = pruned(model, windows, QUICK, method, **switches)
            assert {row["layer"] for row in report.reconstructions} == {0, 1}
            assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_dry_run_leaves_all_parameters(tiny, windows):
    before = state(tiny)
    report = pruned(tiny, windows, QUICK, dry_run=True)
    assert same(before, state(tiny)) and report.seconds["reconstruct"] > 0
    assert [row["layer"] for row in report.reconstructions] == [0]


def test_units_that_a_block_does_not_have_are_refused(windows):
    """Cohere runs attention and feed-forward network side by side."""
    from transformers import CohereConfig, CohereForCausalLM

    shape = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "pad_token_id": 0}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = CohereForCausalLM(CohereConfig(**shape, **heads)).eval()
    before = state(model)
    with pytest.raises(sl.SparselabError, match="unit='sublayer' needs blocks in which"):
        pruned(model, windows, sl.Reconstruction("sublayer"))
    assert same(before, state(model))
    assert len(pruned(model, windows, sl.Reconstruction("block", epochs=1)).reconstructions) == 2


# what is asked for


@pytest.mark.parametrize("preset", ["tm", "ebft", "free_lunch"])
def test_presets_are_the_published_ones_and_run(tiny, windows, preset):
    published = {
        "tm": {"unit": "block", "targets": "dense-block", "rate": 2e-5, "epochs": 20, "batch": 8},
        "ebft": {"unit": "block", "rate": 2e-4, "epochs": 10, "decay": 0.1, "train": "weights"},
        "free_lunch": {"unit": "sublayer", "targets": "dense-model", "rate": 1e-5, "epochs": 1},
    }[preset]
    settings = sl.Wanda(reconstruct=preset).reconstruct
    assert settings == getattr(sl.Reconstruction, preset)() and settings.held_out == 0
    assert {name: getattr(settings, name) for name in published} == published
    report = pruned(tiny, windows, preset, "wanda")
    assert f"reconstruct={settings}" in report.settings["method"]
    assert all(row["kept"] == row["epochs"] == settings.epochs for row in report.reconstructions)
    rows = report.reconstructions
    assert sum(row["error"] for row in rows) < sum(row["start"] for row in rows)


def test_what_is_given_becomes_settings():
    parse = lambda value: sl.Wanda(reconstruct=value).reconstruct  # noqa: E731
    assert parse(None) is None and parse(False) is None
    assert parse(True) == sl.Reconstruction() and parse(QUICK) is QUICK
    assert parse("sublayer") == sl.Reconstruction(unit="sublayer")
    for word, hint in (("ebtf", "Did you mean 'ebft'"), ("yes", "Known: block, ebft")):
        with pytest.raises(sl.SparselabError, match=rf"Wanda\(reconstruct='{word}'\).*{hint}"):
            parse(word)
    with pytest.raises(sl.SparselabError, match="unit='blok'.*Did you mean 'block'"):
        sl.Reconstruction("blok")


def test_a_sweeps_text_says_all_switches():
    text = "admm:targets=dense-stream;fisher=True;divide=True;reconstruct=ebft"
    switches = {"targets": "dense-stream", "fisher": True, "divide": True}
    expected = sl.ADMM(**switches, reconstruct=sl.Reconstruction.ebft())
    assert named_method(text, "OPT") == expected and "divide=True" in str(expected)
    assert (
        named_method("sparsellm:published;reconstruct=True", "OPT").reconstruct == QUICK.__class__()
    )
    with pytest.raises(sl.SparselabError, match="Did you mean 'free_lunch'"):
        named_method("wanda:reconstruct=freelunch", "OPT")


@pytest.mark.parametrize("count, share", [*product((1, 2, 6, 7, 128), (0.0, 0.01, 0.125, 0.5))])
def test_some_windows_are_held_out_and_some_are_not(count, share):
    held = held_out(count, share)
    wanted = 0 if not share or count == 1 else min(max(1, round(share * count)), count - 1)
    assert len(held) == wanted and all(0 <= k < count for k in held)
    gaps = [b - a for a, b in zip(held, held[1:], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1  # evenly spread


def test_the_rate_warms_up_and_falls():
    level, cosine = (SimpleNamespace(settings=sl.Reconstruction(cosine=c)) for c in (False, True))
    assert [Tuner._rate(level, share) for share in (0.0, 0.1, 1.0)] == [pytest.approx(0.02), 1, 1]
    falls = [Tuner._rate(cosine, share / 20) for share in range(1, 21)]
    assert falls == sorted(falls, reverse=True) and falls[-1] == pytest.approx(0.1)
    assert falls[9] == pytest.approx(0.55) and math.isclose(Tuner._rate(cosine, 0.0), 0.02)
