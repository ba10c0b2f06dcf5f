"""SparseLLM, ADMM, refit and dense targets: each sub-problem against brute force, the whole against
the published loop."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import TINY, correlated
from textbook import sparsellm_llama, sparsellm_opt
from torch import nn

import sparselab as sl
from sparselab import Pattern, SparselabError, Statistics
from sparselab.engine.activations import STREAM_SHARE
from sparselab.methods.admm import squared_error
from sparselab.methods.base import regression
from sparselab.methods.feed_forward import (
    FeedForward,
    ridge,
    solve_gated_z,
    solve_p,
    solve_relu_z,
    solve_s,
)
from sparselab.numerics.refit import refit
from sparselab.numerics.statistics import CROSS, GRAM, NORMS
from sparselab.patterns import prune_rows, valid_groups

PATTERNS = [0.5, 0.7, "2:4", "3:4"]
GRID = torch.linspace(-40, 40, 160001, dtype=torch.float64)


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


# --- sub-problems
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha, gamma", [(1, 1), (0.1, 5), (5, 0.1)])
def test_relu_step_equals_a_grid_search(alpha, gamma):
    p, m = random(40, seed=1, scale=3), random(40, seed=2, scale=3)
    cost = lambda z: alpha * (z - m[:, None]) ** 2 + gamma * (p[:, None] - z.relu()) ** 2  # noqa: E731
    ours = cost(solve_relu_z(p, m, alpha, gamma)[:, None])[:, 0]
    torch.testing.assert_close(ours, cost(GRID[None]).min(1).values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alpha, gamma", [(1, 1), (0.1, 5)])
def test_gated_z_step_equals_a_grid_search(alpha, gamma):
    p, m, gate = (
        random(20, seed=1, scale=3),
        random(20, seed=2, scale=3),
        F.silu(random(20, seed=3, scale=3)),
    )
    best = (
        alpha * (GRID - m[:, None]) ** 2 + gamma * (p[:, None] - gate[:, None] * GRID) ** 2
    ).argmin(1)
    torch.testing.assert_close(
        solve_gated_z(p, m, gate, alpha, gamma), GRID[best], rtol=0, atol=5e-4
    )


@pytest.mark.parametrize("ratio", [0.01, 1, 100])
def test_push_through_equals_the_direct_inverse(ratio):
    down, phi, y = random(12, 30, seed=1), random(50, 30, seed=2), random(50, 12, seed=3)
    inner = torch.linalg.cholesky(ridge(down @ down.T, ratio))
    normal = down.T @ down + ratio * torch.eye(30, dtype=torch.float64)
    direct = torch.linalg.solve(normal, (y @ down + ratio * phi).T).T
    torch.testing.assert_close(solve_p(phi, y, down, inner), direct, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [0.1, 4, 60, 1e4])
def test_gate_step_is_finite_and_never_worse_for_any_z(scale):
    s, g, z = (random(500, seed=k, scale=c).float() for k, c in ((1, 5), (2, 5), (3, scale)))
    p = F.silu(s + 1) * z
    cost = lambda s: (s - g) ** 2 + (p - F.silu(s) * z) ** 2  # noqa: E731
    costs = [cost(solve_s(s, p, z, g, 1.0, 1.0, steps)) for steps in (0, 1, 2, 5, 40)]
    for before, after in zip(costs, costs[1:], strict=False):
        assert torch.isfinite(after).all() and (after <= before).all()
    assert costs[-1].sum() < 0.7 * costs[0].sum()


def test_gate_step_reaches_the_minimum_that_a_grid_search_finds():
    s, g, z = random(60, seed=1), random(60, seed=2), random(60, seed=3, scale=4)
    p = F.silu(s) * z + 0.3
    cost = lambda s: (s - g[:, None]) ** 2 + (p[:, None] - F.silu(s) * z[:, None]) ** 2  # noqa: E731
    ours = cost(solve_s(s, p, z, g, 1.0, 1.0, 60)[:, None])[:, 0]
    near = cost(s[:, None] + torch.linspace(-4, 4, 8001, dtype=torch.float64)).min(1).values
    assert (
        ours <= near * 1.001 + 1e-3
    ).float().mean() > 0.9  # the others sit in another local minimum


# --- refit, regression, ADMM
# ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layer():
    """A weight [24, 48], inputs now and in the dense model [600, 48], one channel dead, and their
    statistics."""
    dense = correlated(600, 48)
    x = dense + 0.2 * correlated(600, 48, seed=9)
    x[:, 7] = 0
    w = torch.randn(24, 48, generator=torch.Generator().manual_seed(3))
    stats = Statistics(48, x.device, needs=(GRAM, NORMS, CROSS))
    for a in range(0, 600, 250):
        stats.add(x[a : a + 250], dense[a : a + 250])
    return w, x, dense, stats.finish("x")


def exact_refit(target, mask, hessian):
    """Row by row, the normal equations of the kept weights in float64."""
    new, h = torch.zeros_like(target, dtype=torch.float64), hessian.double()
    for row, t, kept in zip(new, target.double(), mask, strict=True):
        row[kept] = torch.linalg.solve(h[kept][:, kept], (h @ t)[kept])
    return new


@pytest.mark.parametrize("spec", [0.0, 0.9, *PATTERNS])
def test_refit_is_the_exact_minimiser_and_no_step_is_worse(layer, spec):
    w, _, _, stats = layer
    hessian, mask = stats.hessian(), ~prune_rows(w.abs(), Pattern.parse(spec), per_row=True)
    errors = [
        squared_error(w, refit(w, w, mask, hessian, steps=k, tolerance=0), hessian)
        for k in range(0, 60, 3)
    ]
    assert all(
        after <= before * (1 + 1e-5) + 1e-6
        for before, after in zip(errors, errors[1:], strict=False)
    )
    exact = exact_refit(w, mask, hessian)
    assert errors[-1] <= squared_error(w.double(), exact, hessian.double()) * 1.0001 + 1e-4
    quick = refit(w, w, mask, hessian)
    assert torch.equal(quick != 0, quick.ne(0) & mask)
    assert (
        squared_error(w, quick, hessian)
        <= squared_error(w.double(), exact, hessian.double()) * 1.01 + 1e-4
    )


def test_regression_is_the_ridge_solution_in_float64(layer):
    w, x, dense, stats = layer
    x, dense, w64 = x.double(), dense.double(), w.double()
    hessian = stats.hessian().double() * len(x)
    extra = hessian - x.T @ x
    direct = (w64 @ dense.T @ x + w64 @ extra) @ torch.linalg.inv(hessian)
    torch.testing.assert_close(
        regression(w, stats.target_cross(w), stats).double(), direct, rtol=1e-3, atol=1e-3
    )


def test_regression_gives_the_weight_back_where_nothing_has_changed(layer):
    w, x, _, _ = layer
    same = Statistics.of(x, x, needs=(GRAM, NORMS, CROSS)).finish("x")
    torch.testing.assert_close(regression(w, same.target_cross(w), same), w, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spec", [0.0, 0.9, *PATTERNS])
@pytest.mark.parametrize("initial", ["magnitude", "wanda", "sparsegpt"])
def test_admm_is_never_worse_than_its_start(layer, spec, initial):
    w, _, _, stats = layer
    pattern, hessian = Pattern.parse(spec), stats.hessian()
    start = {"magnitude": sl.Magnitude, "wanda": sl.Wanda, "sparsegpt": sl.SparseGPT}[
        initial
    ]().solve(w, stats, pattern)
    found = sl.ADMM(initial).solve(w, stats, pattern)
    assert squared_error(w, found.weight, hessian) <= squared_error(w, start.weight, hessian)
    assert int((~found.mask).sum()) in (pattern.zeros(w.numel()), int((~start.mask).sum()))
    assert torch.equal(found.weight != 0, found.weight.ne(0) & found.mask)
    assert not pattern.m or valid_groups(found.weight, pattern)


def test_admm_halves_the_error_of_magnitude(layer):
    w, _, _, stats = layer
    hessian = stats.hessian()
    errors = [
        squared_error(w, method.solve(w, stats, Pattern(0.7)).weight, hessian)
        for method in (sl.Magnitude(), sl.ADMM())
    ]
    assert errors[1] < 0.5 * errors[0]


# --- the switches in the engine
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["magnitude", "wanda", "sparsegpt", "dsnot", "swaps", "admm", "alps"]
)
def test_every_method_takes_the_switches(tiny, windows, method):
    errors = []
    for switches in (
        {},
        {"refit": True},
        {"targets": "dense-model"},
        {"targets": "dense-stream", "refit": True},
    ):
        model = TINY["opt" if "OPT" in type(tiny).__name__ else "llama"]()
        report = sl.prune(model, windows, method=method, sparsity=0.5, progress=False, **switches)
        assert abs(report.sparsity - 0.5) < 0.01
        assert all(
            f"{name}={value}" in report.settings["method"] for name, value in switches.items()
        )
        errors.append(report.rows[0].error_after)
    assert errors[1] <= errors[0] * 1.0001


class Recorded(sl.Wanda):
    """Wanda that remembers what every matrix aimed at, in the order of pruning."""

    targets_seen = []

    def prune_matrix(self, weight, *rest):
        target, solution = super().prune_matrix(weight, *rest)
        self.targets_seen.append((weight.clone(), target))
        return target, solution


def inputs_of(model, ids, place):
    """What a module receives, [tokens, c]."""
    seen = []
    handle = model.get_submodule(place).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].flatten(0, -2))
    )
    with torch.no_grad():
        model(ids)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("targets", ["dense-model", "dense-stream"])
@pytest.mark.parametrize(
    "family, place, stream",
    [
        ("opt", "model.decoder.layers.1.self_attn.q_proj", None),
        ("opt", "model.decoder.layers.1.fc2", "final_layer_norm"),
        ("llama", "model.layers.1.mlp.down_proj", "post_attention_layernorm"),
        ("llama", "model.layers.1.self_attn.o_proj", ""),
    ],
)
def test_a_dense_target_is_what_the_dense_model_gives(windows, targets, family, place, stream):
    """The target of a matrix of the second block, against a regression in float64 on inputs read
    off two whole models."""
    dense, pruned = TINY[family](), TINY[family]()
    Recorded.targets_seen.clear()
    sl.prune(pruned, windows, method=Recorded(), sparsity=0.6, targets=targets, progress=False)
    names = [name for name in sl.linears_of(dense)]
    w, target = Recorded.targets_seen[names.index(place)]
    assert torch.equal(w, dense.get_submodule(place).weight) and not torch.allclose(
        w, target, atol=1e-3
    )
    x, xd = inputs_of(pruned, windows, place).double(), inputs_of(dense, windows, place).double()
    outputs = xd @ w.double().T  # [tokens, r]
    if targets == "dense-stream" and stream is not None:
        block = place[: place.index(".1") + 2]
        at = f"{block}.{stream}" if stream else block
        outputs += (
            STREAM_SHARE * (inputs_of(dense, windows, at) - inputs_of(pruned, windows, at)).double()
        )
    extra = Statistics.of(x.float()).finish("x").hessian().double() * len(x) - x.T @ x
    direct = (outputs.T @ x + w.double() @ extra) @ torch.linalg.inv(x.T @ x + extra)
    torch.testing.assert_close(target.double(), direct, rtol=2e-2, atol=2e-3)
    first, aim = Recorded.targets_seen[0]
    torch.testing.assert_close(
        first, aim, rtol=1e-3, atol=1e-4
    )  # before anything is pruned, the target is the weight


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: sl.Wanda(targets="dense"), "targets='dense'"),
        (lambda: sl.SparseLLM(epochs=0), "epochs >= 1"),
        (lambda: sl.SparseLLM(initial="owl"), "choose one of"),
        (lambda: sl.SparseLLM(down="x"), "'regression' or 'descent'"),
        (lambda: sl.ADMM(penalty=0), "penalty > 0"),
        (lambda: sl.SparseLLM(alpha=0), "positive"),
    ],
)
def test_wrong_hyper_parameters_get_a_sentence(make, words):
    with pytest.raises(SparselabError, match=words):
        make()


# --- the whole method
# -------------------------------------------------------------------------------------------------


def network(family, x, seed=0):
    """A feed-forward network in training proportions, d = 48, f = 128, and its linears by role."""
    torch.manual_seed(seed)
    roles = ("up", "down") if family == "OPT" else ("gate", "up", "down")
    linears = {
        role: nn.Linear(*((128, 48) if role == "down" else (48, 128)), bias=family == "OPT")
        for role in roles
    }
    for linear in linears.values():
        linear.weight.data *= 2
    ffn = FeedForward(linears, len(x), keep_p=True)
    ffn.add(x)
    return linears, ffn.finish("ffn")


def true_error(linears, weights, x):
    """||FFN(X) - FFN'(X)|| / ||FFN(X) - b2||, in float64."""

    def run(weights):
        hidden = x.double() @ weights["up"].double().T
        if "gate" in weights:
            hidden = F.silu(x.double() @ weights["gate"].double().T) * hidden
        else:
            hidden = F.relu(hidden + linears["up"].bias.double())
        return hidden @ weights["down"].double().T

    dense = run({role: linear.weight for role, linear in linears.items()})
    return ((dense - run(weights)).norm() / dense.norm()).item()


@torch.no_grad()
@pytest.mark.parametrize("family", ["OPT", "LLaMA"])
@pytest.mark.parametrize("spec", PATTERNS)
def test_published_preset_is_as_good_as_the_published_loop(family, spec):
    x, pattern = correlated(1500, 48) / 3, Pattern.parse(spec)
    linears, ffn = network(family, x)
    fits, history = sl.SparseLLM.published(family).prune_ffn(ffn, dict.fromkeys(linears, pattern))
    ours = true_error(linears, {role: fit.solution.weight for role, fit in fits.items()}, x)
    w, nm, x64 = (
        {role: linear.weight.double() for role, linear in linears.items()},
        (pattern.n, pattern.m),
        x.double(),
    )
    if family == "OPT":
        theirs = dict(
            zip(
                ("up", "down"),
                sparsellm_opt(
                    w["up"],
                    linears["up"].bias.double(),
                    w["down"],
                    linears["down"].bias.double(),
                    x64,
                    pattern.sparsity,
                    *nm,
                ),
                strict=True,
            )
        )
    else:
        theirs = dict(
            zip(
                ("up", "gate", "down"),
                sparsellm_llama(w["up"], w["gate"], w["down"], x64, pattern.sparsity, *nm),
                strict=True,
            )
        )
    assert ours <= 1.02 * true_error(linears, theirs, x)
    assert history[-1]["error"] == pytest.approx(ours, rel=1e-3) and len(history) == 4


@torch.no_grad()
@pytest.mark.parametrize("family", ["OPT", "LLaMA"])
@pytest.mark.parametrize("initial", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("improve", [False, True])
def test_the_best_epoch_is_kept_and_the_start_is_one_of_them(family, initial, improve):
    x = correlated(1500, 48) / 3
    linears, ffn = network(family, x)
    ffn.p = None
    method = sl.SparseLLM(epochs=4, initial=initial, improve=improve, tolerance=-1.0)
    fits, history = method.prune_ffn(ffn, dict.fromkeys(linears, Pattern(0.7)))
    ours = true_error(linears, {role: fit.solution.weight for role, fit in fits.items()}, x)
    assert (
        ours == pytest.approx(min(row["error"] for row in history), rel=1e-3) and len(history) == 4
    )
    for role, fit in fits.items():
        assert (
            int((fit.solution.weight == 0).sum())
            >= Pattern(0.7).zeros(linears[role].weight.numel()) - 128
        )


def test_the_default_beats_sparsegpt_on_the_block_output(tiny, windows):
    family = "opt" if "OPT" in type(tiny).__name__ else "llama"
    local, joint = TINY[family](), TINY[family]()
    sl.prune(local, windows, method="sparsegpt", sparsity=0.6, progress=False)
    report = sl.prune(joint, windows, method="sparsellm", sparsity=0.6, progress=False)
    with torch.no_grad():
        dense, a, b = (model(windows).logits for model in (tiny, local, joint))
    assert (b - dense).norm() < (a - dense).norm()
    assert [{*row} for row in report.epochs] == 2 * [{"layer", "epoch", "error"}]
    assert [row.kind for row in report.rows[-len(sl.family_of(tiny).ffn) :]] == list(
        sl.family_of(tiny).ffn
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("preset", ["default", "published"])
@pytest.mark.parametrize("trouble", ["massive", "dead", "rank"])
def test_hard_inputs_stay_finite_and_sparse(tiny, windows, dtype, preset, trouble):
    """|z| = 60 in one channel of the first matrices; a dead input; 32 inputs that span 3
    dimensions."""
    kind = sl.family_of(tiny).name
    for block in sl.blocks_of(tiny):
        norm = block.final_layer_norm if kind == "OPT" else block.post_attention_layernorm
        ups = [block.fc1] if kind == "OPT" else [block.mlp.up_proj, block.mlp.gate_proj]
        if trouble == "massive":
            for up in ups:
                up.weight.data[5] *= 60 / up.weight.data[5].norm()
        elif trouble == "dead":
            norm.weight.data[3] = 0
        else:
            norm.weight.data[3:] = 0
    tiny = tiny.to(dtype)
    method = sl.SparseLLM() if preset == "default" else sl.SparseLLM.published(kind)
    report = sl.prune(tiny, windows, method=method, sparsity=0.5, progress=False)
    assert abs(report.sparsity - 0.5) < 0.01
    with torch.no_grad():
        assert torch.isfinite(tiny(windows).logits).all()
    assert all(0 <= row["error"] < 1.5 for row in report.epochs)


def test_a_part_of_the_network_is_refused(tiny, windows):
    ffn = sl.family_of(tiny).ffn
    with pytest.raises(SparselabError, match="together"):
        sl.prune(
            tiny,
            windows,
            method="sparsellm",
            sparsity=0.5,
            modules=[ffn[-1].split(".")[-1]],
            progress=False,
        )
    attention = sl.prune(
        tiny, windows, method="sparsellm", sparsity=0.5, modules=["q_proj"], progress=False
    )
    assert not attention.epochs and len(attention.rows) == 2


def test_another_activation_is_refused(windows):
    with pytest.raises(SparselabError, match="activation 'gelu'"):
        sl.prune(
            TINY["opt"](activation_function="gelu"),
            windows,
            method="sparsellm",
            sparsity=0.5,
            progress=False,
        )


@pytest.mark.parametrize(
    "method", [sl.SparseLLM(3, targets="dense-block"), sl.SparseLLM.published()], ids=str
)
def test_a_network_without_error_ends_the_loop(windows, method):
    model = TINY["opt"]()
    for block in sl.blocks_of(model):  # no unit of these networks ever fires
        block.fc1.weight.data.zero_()
        block.fc1.bias.data.fill_(-1)
    report = sl.prune(model, windows, method=method, sparsity=0.5, progress=False)
    assert {row["error"] for row in report.epochs} == {0.0}


@pytest.mark.parametrize("kind", ["Olmo2", "Cohere"])
def test_dense_streams_need_outputs_that_are_added_as_they_are(windows, kind):
    """Olmo2 norms the outputs first; Cohere runs attention and network side by side. Nothing
    changes."""
    config, model = (getattr(transformers, f"{kind}{end}") for end in ("Config", "ForCausalLM"))
    model = model(
        config(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
        )
    ).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(
        SparselabError, match="'dense-stream' needs blocks that add the outputs of self_attn.o_proj"
    ):
        sl.prune(model, windows, method="sparsellm", sparsity=0.5, progress=False)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert sl.prune(
        model, windows, method="sparsellm", sparsity=0.5, targets="dense-model", progress=False
    ).epochs


def test_errors_of_the_network_are_those_of_the_rounded_weights(windows):
    model = TINY["llama"](dtype=torch.bfloat16).bfloat16()
    report = sl.prune(
        model, windows, method="sparsellm", sparsity={0: 0.5, 1: 0.001}, progress=False
    )
    rounded = [row for row in report.rows if row.layer == 1 and "mlp" in row.name]
    assert len(rounded) == 3 and all(1e-4 < row.error_after < 0.02 for row in rounded)


def test_the_batch_matters_no_more_than_rounding(tiny, windows):
    """Sums in another order move a few weights that are nearly equal, and the result by next to
    nothing."""
    family, weights, errors = "opt" if "OPT" in type(tiny).__name__ else "llama", [], []
    for batch in (1, 4, 6):
        model = TINY[family]()
        report = sl.prune(
            model, windows, method="sparsellm", sparsity=0.5, batch=batch, progress=False
        )
        weights.append(
            torch.cat([linear.weight.flatten() for linear in sl.linears_of(model).values()])
        )
        errors.append(report.epochs[-1]["error"])
    for other in weights[1:]:
        assert ((other != 0) == (weights[0] != 0)).float().mean() > 0.95
    assert max(errors) < 1.02 * min(errors)
