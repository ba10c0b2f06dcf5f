"""The real embedded models against the published rules, on the same inputs (the guide's formulae,
tests/textbook.py)."""

import pytest
import torch
from textbook import magnitude_mask, relative_error, sparsegpt, wanda_mask

import sparselab as sl
from sparselab import Pattern

MATRICES = {
    "opt-mini": ("self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"),
    "smollm2-135m": ("self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"),
}


@pytest.fixture(scope="module", params=MATRICES)
def case(request):
    """A model, a calibration, and the inputs [tokens, c] of some linears of its second block, all
    dense."""
    model, tokenizer = sl.load(request.param)
    windows = sl.calibration(tokenizer, "demo", samples=16, seqlen=128)
    linears = {
        name: linear
        for name, linear in sl.linears_of(model, [1]).items()
        if name.endswith(MATRICES[request.param])
    }
    inputs = {}
    handles = []
    for name, linear in linears.items():

        def keep(_, args, name=name):
            inputs.setdefault(name, []).append(args[0].detach().flatten(0, -2))

        handles.append(linear.register_forward_pre_hook(keep))
    with torch.no_grad():
        for ids in windows:
            model(ids[None])
    for handle in handles:
        handle.remove()
    dense = {name: linear.weight.detach().clone() for name, linear in linears.items()}
    yield model, windows, linears, {name: torch.cat(x) for name, x in inputs.items()}, dense
    for name, linear in linears.items():
        linear.weight.data.copy_(dense[name])


@pytest.mark.parametrize("spec", [0.5, 0.7, "2:4", "3:4"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_against_the_published_rules(case, method, spec):
    model, windows, linears, inputs, dense = case
    for name, linear in linears.items():
        linear.weight.data.copy_(dense[name])
    pattern = Pattern.parse(spec)
    nm = {"n": pattern.n, "m": pattern.m}
    sl.prune(
        model,
        windows,
        method=method,
        sparsity=spec,
        layers=[1],
        progress=False,
        modules=[name.split(".")[-1] for name in linears],
    )
    for name, linear in linears.items():
        w, x, new = dense[name], inputs[name], linear.weight.detach()
        if method == "sparsegpt":
            theirs = sparsegpt(w, x, pattern.sparsity, **nm)
            assert relative_error(w, new, x) <= 1.02 * relative_error(w, theirs, x), name
        else:
            rule = (
                magnitude_mask(w, pattern.sparsity, **nm)
                if method == "magnitude"
                else wanda_mask(w, x, pattern.sparsity, **nm)
            )
            assert ((new == 0) == rule).float().mean() >= 0.985, name
