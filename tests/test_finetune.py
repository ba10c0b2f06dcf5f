"""Fine-tuning keeps every zero and lowers the loss."""

import pytest
import torch
from conftest import TINY

import sparselab as sl
from sparselab.engine import finetuning as module


@pytest.mark.parametrize("family", TINY)
def test_zeros_stay_and_the_loss_falls(family, windows, monkeypatch):
    model = TINY[family]()
    sl.prune(model, windows, method="magnitude", sparsity=0.7, progress=False)
    masks = {name: linear.weight != 0 for name, linear in sl.linears_of(model).items()}
    seen, keep = [], module.keep_zeros

    def watched(given):
        keep(given)
        seen.append(
            all(
                not linear.weight[~masks[name]].any()
                for name, linear in sl.linears_of(model).items()
            )
        )

    monkeypatch.setattr(module, "keep_zeros", watched)
    result = sl.finetune(model, windows, steps=30, batch=4, rate=1e-3, progress=False)
    assert len(seen) == 30 and all(seen)  # after every step
    assert result.losses[-1] < result.losses[0] - 0.05
    assert result.sparsity[1] >= result.sparsity[0] == pytest.approx(0.7, abs=0.01)
    assert not any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("sparsity", [0.7, 0.8, "2:4"])
def test_the_zeros_are_the_same_after_every_call(method, sparsity, windows):
    """One step a call, as the notebook shows it: the set of zeros neither grows nor shrinks where a
    weight is kept."""
    model = TINY["opt"]()
    sl.prune(model, windows, method=method, sparsity=sparsity, progress=False)
    zero = {name: linear.weight == 0 for name, linear in sl.linears_of(model).items()}
    for seed in range(5):
        result = sl.finetune(model, windows, steps=1, batch=2, rate=1e-2, seed=seed, progress=False)
        assert all(
            torch.equal(linear.weight == 0, zero[name])
            for name, linear in sl.linears_of(model).items()
        )
        assert result.sparsity[0] == result.sparsity[1]


def test_the_same_seed_gives_the_same_weights(windows):
    results = []
    for _ in range(2):
        model = TINY["opt"]()
        sl.finetune(model, windows, steps=3, batch=2, progress=False)
        results.append(model.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_wrong_settings_are_refused(windows):
    for name, value in (("steps", 0), ("batch", 1.5), ("rate", -1), ("rate", float("nan"))):
        with pytest.raises(sl.SparselabError, match=rf"finetune\({name}={value}\)"):
            sl.finetune(TINY["opt"](), windows, **{name: value})
    with pytest.raises(sl.SparselabError, match=r"must be \[samples, seqlen\]"):
        sl.finetune(TINY["opt"](), windows[0])
    with pytest.raises(sl.SparselabError, match="float16"):
        sl.finetune(TINY["opt"]().half(), windows, steps=1)
