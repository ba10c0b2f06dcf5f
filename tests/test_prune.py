"""The engine: the papers' protocol, every kind of bad input, and memory that runs out."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from conftest import CONTEXT, TINY, VOCABULARY, tiny_llama, tiny_opt, tiny_tokenizer
from textbook import relative_error, sparsegpt, wanda_mask

import sparselab as sl
from sparselab import SparselabError, linears_of
from sparselab.engine.activations import CalibrationActivations
from sparselab.engine.verification import verify_blockwise

METHODS = ["magnitude", "wanda", "sparsegpt", sl.Magnitude(scope="global")]


def weights(model):
    return {name: linear.weight.detach().clone() for name, linear in linears_of(model).items()}


def run(model, windows, method="sparsegpt", sparsity=0.5, **options):
    return sl.prune(model, windows, method=method, sparsity=sparsity, progress=False, **options)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_every_linear_of_every_block_is_pruned_and_nothing_else(tiny, windows, method, sparsity):
    before = {name: p.clone() for name, p in tiny.state_dict().items()}
    report = run(tiny, windows, method, sparsity)
    assert [row.name for row in report.rows] == list(linears_of(tiny))
    assert report.sparsity == pytest.approx(0.5, abs=1e-6)
    changed = {
        name.removesuffix(".weight")
        for name, p in tiny.state_dict().items()
        if not torch.equal(p, before[name])
    }
    assert changed == set(linears_of(tiny))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in tiny.modules())


class OneByOne(sl.SparseGPT):
    """SparseGPT with a way of its own to prune a matrix, which the engine has to go."""

    seen = []

    def solve(self, weight, stats, pattern):
        self.seen.append(tuple(weight.shape))
        return super().solve(weight, stats, pattern)


class Graded(sl.SparseGPT):
    """A sparsity of its own for every matrix."""

    def shares(self, weights, pattern):
        return {name: sl.Pattern(0.2 + 0.03 * k) for k, name in enumerate(weights)}


@pytest.mark.parametrize(
    "options", [{}, {"in_order": True}, {"refit": True}, {"targets": "dense-stream"}], ids=str
)
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_matrices_with_the_same_inputs_are_pruned_in_one_loop(
    tiny, windows, monkeypatch, sparsity, options
):
    """q, k, v, and gate, up: the weights are those of matrix by matrix, which a subclass with its
    own `solve` gets."""
    from sparselab.methods import sparsegpt

    loop, stacked, other = sparsegpt.prune_columns, [], copy.deepcopy(tiny)
    monkeypatch.setattr(
        sparsegpt, "prune_columns", lambda w, *rest: stacked.append(len(w)) or loop(w, *rest)
    )
    OneByOne.seen.clear()
    report = run(tiny, windows, "sparsegpt", sparsity, **options)
    assert stacked == [3, 1, *([1] if "opt" in type(tiny).__name__.lower() else [2]), 1] * 2
    again = run(other, windows, OneByOne(), sparsity, **options)
    assert len(OneByOne.seen) == len(linears_of(tiny)) and [row.name for row in again.rows] == [
        *linears_of(tiny)
    ]
    for row, old in zip(report.rows, again.rows, strict=True):
        one, two = tiny.get_submodule(row.name).weight, other.get_submodule(row.name).weight
        assert torch.equal(one == 0, two == 0), row.name
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
        assert (
            row.error_after == pytest.approx(old.error_after, rel=1e-3)
            and row.sparsity == old.sparsity
        )


def test_stacked_matrices_keep_their_own_sparsity(tiny, windows):
    report = run(tiny, windows, Graded(), 0.5)
    wanted = [0.2 + 0.03 * k for k in range(len(report.rows))]
    assert [row.sparsity for row in report.rows] == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_dtype_and_device_are_kept(tiny, windows, method, dtype):
    tiny.to(dtype)
    report = run(tiny, windows, method, 0.5)
    assert {p.dtype for p in tiny.parameters()} == {dtype}
    assert {p.device.type for p in tiny.parameters()} == {"cpu"}
    assert report.sparsity == pytest.approx(0.5, abs=1e-6)
    assert torch.isfinite(tiny(windows).logits).all()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_sparsity_zero_changes_nothing(tiny, windows, method):
    before = weights(tiny)
    report = run(tiny, windows, method, 0.0)
    assert report.error == 0 and all(torch.equal(before[n], w) for n, w in weights(tiny).items())


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_the_papers_protocol_written_plainly(family, method, windows):
    """Dense-block statistics from pruned predecessors, one window at a time, with hooks on every
    linear."""
    ours, theirs = TINY[family](), TINY[family]()
    run(ours, windows, method, 0.5)
    blocks = sl.blocks_of(theirs)
    for block in blocks:
        seen = {}
        linears = {name: m for name, m in block.named_modules() if isinstance(m, torch.nn.Linear)}
        handles = [
            m.register_forward_hook(
                lambda _, a, o, name=name, seen=seen: seen.setdefault(name, []).append(
                    a[0].flatten(0, -2)
                )
            )
            for name, m in linears.items()
        ]
        with torch.no_grad():
            for ids in windows:
                theirs(ids[None])
        for handle in handles:
            handle.remove()
        for name, linear in linears.items():
            x, w = torch.cat(seen[name]), linear.weight.detach()
            new = (
                w.masked_fill(wanda_mask(w, x, 0.5), 0)
                if method == "wanda"
                else sparsegpt(w, x, 0.5)
            )
            linear.weight.data.copy_(new)
    for name, linear in linears_of(ours).items():
        other = linears_of(theirs)[name].weight
        assert ((linear.weight == 0) == (other == 0)).float().mean() >= 0.985, name


@pytest.mark.parametrize("rows", [7, 1024])
def test_errors_in_the_report_are_the_definition(tiny, windows, monkeypatch, rows):
    """On the first block, whose inputs do not depend on pruning: exact, since all tokens are
    sampled."""
    monkeypatch.setattr("sparselab.methods.base.ROWS", rows)
    dense, inputs = weights(tiny), {}
    names = list(linears_of(tiny, [0]))
    handles = [
        linears_of(tiny)[n].register_forward_pre_hook(
            lambda _, a, n=n: inputs.update({n: a[0].flatten(0, -2)})
        )
        for n in names
    ]
    tiny(windows)
    for handle in handles:
        handle.remove()
    for method in ("magnitude", "sparsegpt"):
        model = copy.deepcopy(tiny)
        report = run(model, windows, method, 0.5)
        for row in report.rows[: len(names)]:
            w, new = dense[row.name], linears_of(model)[row.name].weight.detach()
            assert row.error_after == pytest.approx(
                relative_error(w, new, inputs[row.name]), rel=1e-3
            )
            assert row.error_before == pytest.approx(
                relative_error(w, w * (new != 0), inputs[row.name]), rel=1e-3
            )
            assert row.error_tokens == windows.numel()


def test_global_magnitude_is_exact_over_the_model(tiny, windows):
    report = run(tiny, windows, sl.Magnitude(scope="global"), 0.6)
    sizes = [row.shape[0] * row.shape[1] for row in report.rows]
    assert round(report.sparsity * sum(sizes)) == int(0.6 * sum(sizes))
    assert len({round(row.sparsity, 3) for row in report.rows}) > 1


def test_layers_and_modules_restrict(windows):
    model = tiny_opt(num_hidden_layers=4)
    before = weights(model)
    report = run(model, windows, layers="first half", modules=["fc1", "fc2"])
    assert [(row.layer, row.kind) for row in report.rows] == [
        (0, "fc1"),
        (0, "fc2"),
        (1, "fc1"),
        (1, "fc2"),
    ]
    assert sum(not torch.equal(before[n], w) for n, w in weights(model).items()) == 4
    assert [row.layer for row in run(model, windows, "wanda", 0.5, layers=range(2, 3)).rows] == [
        2
    ] * 6


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_size_does_not_matter(tiny, windows, batch):
    other = copy.deepcopy(tiny)
    run(tiny, windows, batch=6)
    run(other, windows, batch=batch)
    for name, w in weights(other).items():
        assert ((w == 0) == (weights(tiny)[name] == 0)).float().mean() > 0.99


def test_block_by_block_is_proven_first(tiny, windows, monkeypatch):
    blocks, before = sl.blocks_of(tiny), weights(tiny)
    forward, calls = type(blocks[0]).forward, []

    def drifting(self, hidden_states, *args, **kwargs):
        calls.append(1)  # the second call of a block gives something else
        return forward(self, hidden_states, *args, **kwargs) * (
            1 + 0.1 * (len(calls) > len(blocks))
        )

    monkeypatch.setattr(type(blocks[0]), "forward", drifting)
    with pytest.raises(SparselabError, match="block by block differs"):
        run(tiny, windows)
    assert all(torch.equal(before[n], w) for n, w in weights(tiny).items())


def test_the_gate_is_the_perplexity_of_the_first_windows(tiny, windows, capsys):
    report = sl.prune(tiny, windows, method="magnitude", sparsity=0.0, progress=True)
    expected = sl.perplexity(tiny, windows[0], seqlen=32, progress=False)
    assert report.settings["dense_perplexity"] == pytest.approx(float(expected), rel=1e-5)
    assert (
        f"dense perplexity {expected} on 1 calibration windows of 32 tokens"
        in capsys.readouterr().out
    )


def test_worse_than_chance_warns(windows):
    model = tiny_opt(init_std=3.0)
    with pytest.warns(UserWarning, match="worse than chance"):
        run(model, windows)


def test_a_cache_in_the_configuration_does_no_harm(tiny, windows):
    other = copy.deepcopy(tiny)
    tiny.config.use_cache, other.config.use_cache = True, False
    run(tiny, windows, batch=2)
    run(other, windows, batch=2)
    assert all(torch.equal(w, weights(other)[n]) for n, w in weights(tiny).items())


def test_a_live_cache_is_refused(windows):
    from transformers import DynamicCache

    model = tiny_llama()
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: (
            args,
            {**kwargs, "past_key_values": DynamicCache(), "use_cache": True},
        ),
        with_kwargs=True,
    )
    with pytest.raises(SparselabError, match="cache"):
        run(model, windows)


# --- bad input
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"sparsity": 70}, "Did you mean 0.7"),
        ({"sparsity": -0.1}, "outside"),
        ({"sparsity": 1.0}, "outside"),
        ({"sparsity": "2:5"}, "m = 5 does not divide its 32 inputs"),
        ({"method": "sparsgpt"}, "Did you mean 'sparsegpt'"),
        ({"method": 3}, "unknown method"),
        ({"layers": range(5, 9)}, "blocks 0 to 1"),
        ({"layers": []}, "blocks 0 to 1"),
        ({"layers": "second half"}, "first half"),
        ({"modules": ["fc9"]}, "no linear is called 'fc9'"),
        ({"layers": [0.5]}, "a range or list"),
        ({"modules": []}, "no linear is called ''"),
        ({"batch": 0}, "1 or more"),
    ],
)
def test_wrong_options_get_a_sentence_and_change_nothing(tiny, windows, options, words):
    before = weights(tiny)
    with pytest.raises(SparselabError, match=words):
        run(tiny, windows, **options)
    assert all(torch.equal(before[n], w) for n, w in weights(tiny).items())


@pytest.mark.parametrize(
    "ids, words",
    [
        (torch.zeros(0, 32, dtype=torch.long), "at least one sample"),
        (torch.ones(32, dtype=torch.long), "samples, seqlen"),
        (torch.ones(2, CONTEXT + 1, dtype=torch.long), f"longer than the {CONTEXT} positions"),
        (torch.full((2, 32), VOCABULARY), "made by another model's tokenizer"),
        (torch.full((2, 32), -1), "token ids from -1"),
        (torch.ones(2, 32), "LongTensor"),
        ([[1, 2]], "LongTensor"),
        (torch.ones(2, 1, dtype=torch.long), "at least 2 tokens"),
    ],
)
def test_wrong_calibration_gets_a_sentence(tiny, ids, words):
    with pytest.raises(SparselabError, match=words):
        run(tiny, ids)


def test_training_mode_is_refused(tiny, windows):
    with pytest.raises(SparselabError, match=r"training mode.*model.eval"):
        run(tiny.train(), windows)


def test_nan_in_a_weight_names_the_module(tiny, windows):
    name = list(linears_of(tiny))[5]
    linears_of(tiny)[name].weight.data[0, 0] = float("nan")
    with pytest.raises(SparselabError, match=name.replace(".", r"\.")):
        run(tiny, windows)


def test_nan_in_the_activations_names_the_module_before_anything_changes(windows):
    model = tiny_opt()
    model.model.decoder.layers[1].final_layer_norm.weight.data[0] = float("nan")
    before = weights(model)
    with pytest.raises(SparselabError, match=r"layers\.1\.fc1"):
        run(model, windows)
    assert all(torch.equal(before[n], w) for n, w in weights(model).items())


def test_nan_in_a_later_window_names_the_module(windows):
    model = tiny_llama()
    model.model.embed_tokens.weight.data[3] = float(
        "inf"
    )  # a token that the first window does not hold
    windows[4, 7] = 3
    with pytest.raises(SparselabError, match=r"layers\.0\.self_attn\.q_proj"):
        run(model, windows)


def test_other_families_and_experts_are_refused(windows):
    from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4)).eval()
    with pytest.raises(SparselabError, match="not built like the OPT or LLaMA family"):
        run(gpt2, windows)
    mixtral = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=2,
        )
    ).eval()
    with pytest.raises(SparselabError, match="mixture of experts"):
        run(mixtral, windows)


def test_families_are_found_by_structure(windows):
    """Mistral and Qwen2 are built like LLaMA and work without a line for them."""
    from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    for model in (
        MistralForCausalLM(MistralConfig(**shape)),
        Qwen2ForCausalLM(Qwen2Config(**shape)),
    ):
        assert sl.family_of(model).name == "LLaMA"
        assert run(model.eval(), windows).sparsity == pytest.approx(0.5)


def test_an_interrupted_trial_leaves_the_model_as_it_was(tiny, windows, monkeypatch):
    before = weights(tiny)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(CalibrationActivations, "replay", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, windows, dry_run=True)
    assert all(torch.equal(before[name], weight) for name, weight in weights(tiny).items())


def test_blocks_of_several_kinds_are_pruned_in_memory_only(windows, tmp_path):
    """Some blocks of this Qwen2 see a sliding window: the same mask for all is wrong once a text is
    longer than that."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            initializer_range=0.2,
            use_sliding_window=True,
            sliding_window=8,
            max_window_layers=2,
        )
    ).eval()
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(SparselabError, match="a seqlen that fits its windows"):
        run(model, windows)
    with pytest.raises(SparselabError, match="several kinds .full_attention, sliding_attention"):
        run(str(tmp_path / "model"), windows, out=tmp_path / "out")
    assert run(model, windows[:, :8]).sparsity == pytest.approx(0.5)


def test_opt_350m_shape_works(windows):
    """OPT-350m norms after its sub-layers and projects its embeddings."""
    model = tiny_opt(do_layer_norm_before=False, word_embed_proj_dim=16)
    assert run(model, windows).sparsity == pytest.approx(0.5)


# --- memory
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_memory_that_runs_out_halves_the_batch(windows, monkeypatch, limit):
    """A block that takes at most `limit` windows at once; the result is that of a run that began
    that small."""
    reference, model = tiny_llama(), tiny_llama()
    run(reference, windows, batch=limit)
    kind = type(sl.blocks_of(model)[0])
    forward = kind.forward

    def limited(self, hidden_states, *args, **kwargs):
        if len(hidden_states) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", limited)
    run(model, windows, batch=6)
    for name, w in weights(model).items():
        assert ((w == 0) == (weights(reference)[name] == 0)).float().mean() > 0.99


def test_replay_halves_what_does_not_fit(windows, monkeypatch):
    model = tiny_llama()
    with torch.no_grad():
        whole, cut = (
            CalibrationActivations(model, windows, 6),
            CalibrationActivations(model, windows, 6),
        )
        block = sl.blocks_of(model)[0]
        whole.replay(block)
        forward = type(block).forward

        def limited(self, hidden_states, *args, **kwargs):
            if len(hidden_states) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(self, hidden_states, *args, **kwargs)

        monkeypatch.setattr(type(block), "forward", limited)
        cut.replay(block)
    assert [len(part.hidden) for part in cut.parts] == [2, 1, 2, 1]
    torch.testing.assert_close(
        torch.cat([part.hidden for part in cut.parts]), whole.parts[0].hidden
    )


def test_no_memory_even_for_one_window_is_a_sentence(windows, monkeypatch):
    model = tiny_llama()
    prove_once = verify_blockwise(model, windows)

    def never(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("sparselab.engine.loop.verify_blockwise", lambda *_: prove_once)
    monkeypatch.setattr(type(sl.blocks_of(model)[0]), "forward", never)
    with pytest.raises(SparselabError, match="a single window at a time"):
        run(model, windows)


def test_other_errors_are_not_taken_for_memory(windows, monkeypatch):
    model = tiny_llama()

    def broken(self, *args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(sl.blocks_of(model)[0]), "forward", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run(model, windows)


def test_no_warnings_on_a_sound_model(tiny, windows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tiny, windows)


def test_a_method_may_be_written_as_tables_write_it(tiny, windows):
    """A preset of the model's family, a hyper-parameter, and a switch of the call beside them."""
    name = "sparsellm:published;epochs=1"
    family = sl.family_of(tiny).name
    expected = replace(sl.SparseLLM.published(family, epochs=1), in_order=True)
    assert run(tiny, windows, name, in_order=True).settings["method"] == str(expected)
    planned = sl.plan(tiny, name, 2, 8, measure=False)
    assert str(sl.SparseLLM.published(family, epochs=1)) in repr(planned)
    with pytest.raises(SparselabError, match="Did you mean 'admm'"):
        run(tiny, windows, "adm:guided")
