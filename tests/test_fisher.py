"""How much an error costs: the loss's squared gradients, against plain autograd on the whole model;
and what `fisher=True` makes of them."""

from contextlib import closing

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, break_off, correlated, stored, weights

import sparselab as sl
from sparselab import Pattern, Statistics
from sparselab.engine import fisher as module
from sparselab.engine.fisher import ROW_FLOOR, TOKEN_FLOOR, fisher_weights
from sparselab.engine.sources import InMemoryBlocks, StreamedBlocks
from sparselab.methods.feed_forward import FeedForward
from sparselab.numerics.statistics import CROSS, GRAM, NORMS

UNTIED = {"opt": {}, "llama": {"tie_word_embeddings": False}}
CPU = torch.device("cpu")


def whole_model_gradients(model, windows):
    """Squared gradients of the summed next-token loss at every linear's outputs, by name [windows,
    seqlen, r]: one backward pass, all in one graph."""
    outputs, handles = {}, []
    for name, linear in sl.linears_of(model).items():
        keep = lambda _, args, out, name=name: outputs.update({name: out})  # noqa: E731
        handles.append(linear.register_forward_hook(keep))
    with torch.enable_grad():
        logits = model(windows, use_cache=False).logits
        for out in outputs.values():
            out.retain_grad()
        F.cross_entropy(
            logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten(), reduction="sum"
        ).backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return {name: out.grad.reshape(*windows.shape, -1) ** 2 for name, out in outputs.items()}


def expected_weights(model, windows):
    """Rows, scale and tokens by their definition, by the linear's name."""
    squares, family = whole_model_gradients(model, windows), sl.family_of(model)
    rows = {name: each.sum((0, 1)) for name, each in squares.items()}
    scale = {name: each.mean().item() / windows.numel() for name, each in rows.items()}
    rows = {name: (r / r.mean() + ROW_FLOOR) / (1 + ROW_FLOOR) for name, r in rows.items()}
    tokens = {}
    for layer in range(len(sl.blocks_of(model))):
        for group in family.groups:
            names = [f"{family.blocks}.{layer}.{name}" for name in group]
            both = sum(squares[name].mean(-1) for name in names)
            root = (both / both.mean() + TOKEN_FLOOR).sqrt()
            tokens |= dict.fromkeys(names, root / root.mean())
    return rows, scale, tokens


def equal(found, expected):
    for part, wanted in zip((found.rows, found.scale, found.tokens), expected, strict=True):
        assert {*part} == {*wanted}
        for name in wanted:
            torch.testing.assert_close(
                torch.as_tensor(part[name]), torch.as_tensor(wanted[name]), rtol=2e-3, atol=2e-4
            )


@torch.no_grad()
def weighed(source, windows, **options):
    return fisher_weights(source, windows, **options)


def pruned(model, windows, method, **options):
    call = {"sparsity": 0.5, "progress": False, **options}
    return sl.prune(model, windows, method=method, **call)


@pytest.fixture
def folder(tmp_path, tiny):
    return stored(tmp_path / "model", tiny, max_shard_size="30KB")


def fit(monkeypatch, count, place="device"):
    """Let the inputs of so many windows of 32 tokens fit."""
    found = staticmethod(lambda *_: (place, 32 * count))
    monkeypatch.setattr(module.ActivationStore, "portion", found)


# against plain autograd


@pytest.mark.parametrize("batch", [1, 4, None])
@pytest.mark.parametrize("portion", [None, 1, 2])
def test_weights_are_those_of_plain_autograd(tiny, windows, batch, portion, monkeypatch):
    """Whatever goes through the blocks at once, and however many windows' inputs fit."""
    if portion:
        fit(monkeypatch, portion)
    equal(weighed(InMemoryBlocks(tiny), windows, batch=batch), expected_weights(tiny, windows))


@pytest.mark.parametrize("offload", ["device", "disk"])
@pytest.mark.parametrize("family", TINY)
def test_weights_of_a_model_in_files_are_the_same(family, offload, windows, tmp_path, monkeypatch):
    """With an output head of its own (LLaMA), whose memory is given back; the blocks are read
    forth and back for every portion."""
    model = TINY[family](num_hidden_layers=3, **UNTIED[family])
    stored(tmp_path / "model", model, max_shard_size="30KB")
    expected = expected_weights(model, windows)
    fit(monkeypatch, 4, offload)
    with closing(StreamedBlocks(tmp_path / "model", None, None, CPU)) as source:
        meta = {name for name, value in source.model.named_parameters() if value.is_meta}
        equal(weighed(source, windows, batch=2, offload=offload), expected)
        assert not source.ahead and meta == {
            name for name, value in source.model.named_parameters() if value.is_meta
        }
        assert family == "opt" or "lm_head.weight" in meta
        with torch.no_grad():
            assert all(
                torch.equal(value, dict(model.model.named_parameters())[name])
                for name, value in source.model.model.named_parameters()
                if not value.is_meta
            )


def test_models_of_other_kinds(windows):
    """Norms after the sub-layers and a projected embedding; blocks that say which attention they
    are."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 48}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    qwen = Qwen2ForCausalLM(Qwen2Config(**shape, **heads, initializer_range=0.2)).eval()
    for model in (TINY["opt"](do_layer_norm_before=False, word_embed_proj_dim=16), qwen):
        equal(weighed(InMemoryBlocks(model), windows), expected_weights(model, windows))


def test_the_sums_have_the_same_bits_whatever_memory_is_free(tiny, windows, monkeypatch):
    """Portions are whole batches, and parts are added up one by one; all of it can be kept in a
    file."""
    found = [weighed(InMemoryBlocks(tiny), windows, batch=2).tensors()]
    for count in (5, 4, 2):
        fit(monkeypatch, count)
        found.append(weighed(InMemoryBlocks(tiny), windows, batch=2).tensors())
    for other in (*found[1:], module.Fisher.of(found[0]).tensors()):
        assert {*other} == {*found[0]}
        assert all(torch.equal(value, found[0][key]) for key, value in other.items())


def test_shares_are_positive_with_a_mean_of_one(tiny, windows):
    """A row at which no gradient arrives keeps a thousandth of the mean."""
    block = sl.blocks_of(tiny)[0]
    norm = block.final_layer_norm if hasattr(block, "fc1") else block.post_attention_layernorm
    down = block.fc2 if hasattr(block, "fc1") else block.mlp.down_proj
    down.weight.data[:, 5] = 0  # what its fifth input is does not matter
    found = weighed(InMemoryBlocks(tiny), windows)
    for values in (*found.rows.values(), *found.tokens.values()):
        assert values.min() > 0 and values.mean() == pytest.approx(1, abs=1e-3)
    up = next(name for name in found.rows if ".0." in name and ("fc1" in name or "up_" in name))
    assert found.rows[up][5] == pytest.approx(ROW_FLOOR / (1 + ROW_FLOOR), rel=1e-3)
    assert norm.weight.grad is None


# nothing is left behind


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_left_as_it_was(tiny, windows, broken, monkeypatch):
    """Also where the head breaks: the blocks are in their place, nothing holds a gradient."""
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    wanted, blocks = [p.requires_grad for p in tiny.parameters()], sl.blocks_of(tiny)
    if broken:
        monkeypatch.setattr(module, "token_losses", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            weighed(InMemoryBlocks(tiny), windows)
    else:
        weighed(InMemoryBlocks(tiny), windows)
    assert sl.blocks_of(tiny) is blocks and [*before] == [*tiny.state_dict()]
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    assert [p.requires_grad for p in tiny.parameters()] == wanted
    assert all(p.grad is None for p in tiny.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in tiny.modules())


def test_memory_that_runs_out_halves_the_batch(tiny, windows, monkeypatch):
    expected, kind = expected_weights(tiny, windows), type(sl.blocks_of(tiny)[0])
    forward, sizes = kind.forward, []

    def limited(self, hidden_states, *args, **kwargs):
        sizes.append(len(hidden_states))
        if torch.is_grad_enabled() and len(hidden_states) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", limited)
    equal(weighed(InMemoryBlocks(tiny), windows, batch=6), expected)
    assert {6, 3} < {*sizes} and max(sizes[-12:]) <= 2


# in the statistics


@pytest.mark.parametrize("needs", [(GRAM, NORMS), (NORMS,), (GRAM, NORMS, CROSS)], ids=str)
def test_a_tokens_weight_is_how_often_it_is_there(needs):
    x, dense = correlated(40, 6).view(4, 10, 6), correlated(40, 6, 1).view(4, 10, 6)
    drift = correlated(40, 3, 2).view(4, 10, 3)
    often = torch.randint(0, 4, (4, 10), generator=torch.Generator().manual_seed(0))
    streams = (dense, drift) if CROSS in needs else ()
    heavy, repeated = (Statistics(6, CPU, needs=needs) for _ in range(2))
    heavy.add(x, *streams, weights=often.float())
    times = often.flatten()
    repeated.add(*(part.flatten(0, 1).repeat_interleave(times, 0)[None] for part in (x, *streams)))
    heavy.finish("x"), repeated.finish("x")
    assert heavy.tokens == 40
    for name in ("gram", "square", "cross", "drift"):
        one, two = getattr(heavy, name), getattr(repeated, name)
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)
    w, new = torch.randn(3, 6), torch.randn(3, 6)
    assert heavy.relative_error(w, new) == pytest.approx(repeated.relative_error(w, new), rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("method", [sl.SparseLLM(2), sl.SparseLLM.published(epochs=2)], ids=str)
def test_a_networks_token_counts_as_often_as_it_is_there(method):
    """SparseLLM's whole loop: its weights and errors are those of repeated tokens."""
    torch.manual_seed(0)
    linears = {"up": torch.nn.Linear(12, 24), "down": torch.nn.Linear(24, 12)}
    x = correlated(1600, 12).view(4, 400, 12) / 3  # so many that the damping is the same
    often = torch.randint(1, 4, (4, 400), generator=torch.Generator().manual_seed(0))
    more = x.flatten(0, 1).repeat_interleave(often.flatten(), 0)
    found = []
    for tokens, given in ((x, often.float() * often.numel() / often.sum()), (more[None], None)):
        ffn = FeedForward(linears, tokens[..., 0].numel(), keep_p=not method.realised)
        ffn.add(tokens, weights=given)
        found.append(method.prune_ffn(ffn.finish("x"), dict.fromkeys(linears, Pattern(0.5))))
    (heavy, history), (repeated, other) = found
    for role in linears:
        one, two = heavy[role].solution, repeated[role].solution
        assert (one.mask == two.mask).float().mean() > 0.98
    assert history[-1]["error"] == pytest.approx(other[-1]["error"], rel=0.02)


# in the matrices


def test_rows_that_do_not_matter_are_pruned_first():
    w, rows = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)), torch.ones(6)
    rows[2] = 1e-6
    stats = Statistics.of(correlated(200, 16), needs=(GRAM, NORMS)).finish("x")
    for method in (sl.Magnitude(), sl.Wanda(per="matrix"), sl.SparseGPT(), sl.ADMM(), sl.ALPS()):
        _, solution = method.prune_matrix(w, stats, Pattern(0.5), rows)
        kept = solution.mask.sum(1)
        assert kept[2] == 0 and kept.sum() == 48, method
        _, alike = method.prune_matrix(w, stats, Pattern(0.5), 7 * torch.ones(6))
        _, plain = method.prune_matrix(w, stats, Pattern(0.5))
        assert torch.equal(alike.mask, plain.mask), method
        torch.testing.assert_close(alike.weight, plain.weight, rtol=1e-4, atol=1e-5)


def test_rows_weigh_the_error_that_is_minimised():
    """Against the plain method on a matrix whose rows are that much louder, and quieter again."""
    w, rows = torch.randn(8, 24, generator=torch.Generator().manual_seed(0)), torch.rand(8) + 0.1
    stats = Statistics.of(correlated(300, 24), needs=(GRAM, NORMS)).finish("x")
    loud = rows.sqrt()[:, None]
    for method in (sl.SparseGPT(), sl.SparseGPT(refit=True), sl.ADMM(), sl.Wanda(refit=True)):
        together = method.prune_matrices([w, 2 * w], stats, 2 * [Pattern(0.6)], [rows, None])
        _, alone = method.prune_matrix(w, stats, Pattern(0.6), rows)
        _, plain = method.prune_matrix(loud * w, stats, Pattern(0.6))
        for solution in (together[0][1], alone):
            assert torch.equal(solution.mask, plain.mask)
            torch.testing.assert_close(loud * solution.weight, plain.weight, rtol=1e-3, atol=1e-5)
        _, other = method.prune_matrix(2 * w, stats, Pattern(0.6))
        torch.testing.assert_close(together[1][1].weight, other.weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "dsnot", "swaps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_weights_stay_as_they_are(tiny, windows, method, dtype):
    """Bit by bit, though the rows were made louder in between."""
    tiny = tiny.to(dtype)
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    report = pruned(tiny, windows, method, fisher=True)
    assert report.sparsity == pytest.approx(0.5, abs=0.01) and "fisher=True" in report.title()
    for name, value in tiny.state_dict().items():
        assert torch.equal(value[value != 0], before[name][value != 0])


def test_the_loss_is_lower_with_it(windows):
    """What it is for: SparseGPT at 60 %, the loss on the calibration windows themselves."""
    for family in TINY:
        losses = []
        for fisher in (False, True):
            model = TINY[family](num_hidden_layers=3)
            pruned(model, windows, "sparsegpt", sparsity=0.6, fisher=fisher)
            losses.append(sl.perplexity(model, windows.flatten(), seqlen=32, progress=False))
        assert losses[1] < losses[0]


# in the engine


@pytest.mark.parametrize("method", sl.METHODS)
def test_every_method_takes_it_in_memory_and_streamed(tiny, folder, windows, method, tmp_path):
    whole = pruned(tiny, windows, method, fisher=True)
    report = pruned(folder, windows, method, fisher=True, out=tmp_path / "out")
    found, expected = weights(tmp_path / "out"), tiny.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in found.items())
    assert abs(report.sparsity - 0.5) < 0.01
    assert {"fisher", "solve"} <= {*report.seconds} and "divide" not in whole.seconds


@pytest.mark.parametrize("place", [0, 1])
def test_a_broken_run_goes_on_with_the_same_bits(tiny, folder, windows, place, monkeypatch):
    """Though less memory is free when it does, of what was found before the first block, which is
    kept beside the shards; and the switch must be the same."""
    options = {"method": "sparsegpt", "fisher": True, "divide": True}
    pruned(tiny, windows, **options)
    call = break_off(monkeypatch, place, folder, windows, **options)
    if place:
        with pytest.raises(sl.SparselabError, match="interrupted run with method"):
            sl.prune(folder, windows, **{**call, "fisher": False})
        monkeypatch.setattr("sparselab.runtime.offload.free_bytes", lambda _: 1)
        monkeypatch.setattr("sparselab.engine.loop.fisher_weights", None)
        monkeypatch.setattr("sparselab.engine.loop.divide_zeros", None)
    report = sl.prune(folder, windows, **call)
    assert not [*folder.with_name("out").glob("*.kept")]
    expected = tiny.state_dict()
    for name, value in weights(folder.with_name("out")).items():
        assert torch.equal(expected[name], value)
    assert len(report.rows) == len(sl.linears_of(tiny)) and "allocated" in report.title()


def test_a_dry_run_changes_nothing_and_counts_the_sweep_once(tiny, folder, windows):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    for model in (tiny, folder):
        report = pruned(model, windows, "wanda", fisher=True, divide=True, dry_run=True)
        assert {"fisher", "divide", "solve"} <= {*report.seconds}
        assert {row.layer for row in report.rows} == {0}
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
