"""What a run will cost: memory by term against what tensors really take, time from one block, and
advice."""

import pytest
import torch
from conftest import TINY
from transformers import LlamaConfig

import sparselab as sl
from sparselab.engine.planning import GIB, Shape, memory_terms


def llama13b():
    config = LlamaConfig(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        vocab_size=32000,
    )
    config.dtype = torch.float16
    return config


def test_shape_of_llama_2_13b():
    shape = Shape.of(llama13b())
    assert shape.blocks * shape.block + shape.outside == 13_015_864_320
    assert shape.groups == ((5120, 3 * 5120), (5120, 5120), (5120, 2 * 13824), (13824, 5120))


@pytest.mark.parametrize(
    "method, most", [("wanda", 20), ("dsnot", 20), ("sparsegpt", 24), ("sparsellm", 40)]
)
def test_llama_2_13b_fits_the_goal(method, most):
    """128 x 2,048 tokens in fp16 on one GPU: at most 40 GB."""
    terms = memory_terms(
        Shape.of(llama13b()), sl.METHODS[method](), 128 * 2048, 2048, 2, "cuda", "device"
    )
    assert sum(amount for where, amount in terms.values() if where == "device") / GIB < most


@pytest.mark.parametrize("family", TINY)
def test_terms_are_what_tensors_take(family, windows):
    model = TINY[family]()
    shape = Shape.of(model.config)
    block = sum(p.numel() for p in sl.blocks_of(model)[0].parameters())
    terms = memory_terms(
        shape, sl.SparseGPT(), windows.numel(), windows.shape[1], 4, "cpu", "device"
    )
    assert terms["block"][1] == 4 * block
    assert terms["activations"][1] == 4 * windows.numel() * model.config.hidden_size
    widths = {linear.in_features for linear in sl.linears_of(model, [0]).values()}
    assert terms["statistics"][1] == 4 * (3 * min(widths) ** 2 + max(widths) ** 2)


def test_advice_names_the_knob(monkeypatch):
    monkeypatch.setattr("sparselab.engine.planning.free_bytes", lambda _: 8 * GIB)
    text = str(
        sl.plan(llama13b(), "sparsegpt", 2048, 2048, "cpu", dtype=torch.float16, measure=False)
    )
    assert "does not fit" in text and "fewer samples" in text
    assert "fits" in str(sl.plan("opt-mini", "wanda", 16, 256, "cpu", measure=False))


def test_a_plan_for_a_gpu_that_is_not_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = sl.plan(llama13b(), "sparsegpt", 128, 2048, "cuda")
    assert 15 < plan.total("device") / GIB < 24 and not plan.seconds
    assert "no such device here" in str(plan) and "min:" not in str(plan)


@pytest.mark.parametrize("gigabytes, batch", [(16, 5), (24, 7), (40, 12), (80, 25), (192, 32)])
def test_a_smaller_card_takes_fewer_windows_at_once(gigabytes, batch):
    """As many as the engine takes with that much free, and a smaller forward pass; SparseGPT goes
    on 16 GB."""
    plan = sl.plan(
        llama13b(), "sparsegpt", 128, 2048, "cuda", memory=gigabytes * 1e9, measure=False
    )
    assert plan.batch == batch and f"{batch} windows at once" in plan.title
    assert plan.bytes["forward pass"][1] == 2 * batch * 2048 * (8 * 5120 + 4 * 13824)
    assert plan.free["device"] == gigabytes * 1e9 and "fits" in plan.advice()
    assert "not" not in plan.advice()


def test_a_card_holds_what_is_sent_ahead():
    """The next block, and where activations wait in the host's memory, two parts of them."""
    shape, size = Shape.of(llama13b()), 2
    for method, streams in ((sl.SparseGPT(), 1), (sl.SparseLLM(), 2)):
        call = shape, method, 128 * 2048, 2048, size
        there, host = (memory_terms(*call, "cuda", place) for place in ("device", "cpu"))
        assert there["next block, sent ahead"] == ("device", size * shape.block)
        assert host["activations, sent ahead"] == ("device", 2 * streams * size * 65536 * 5120)
        assert host["activations"] == ("host", there["activations"][1])
        assert not any("sent" in term for term in memory_terms(*call, "cpu", "disk"))


def test_seconds_come_from_this_machine():
    plan = sl.plan("opt-mini", "sparsellm", 16, 256, "cpu")
    assert {"forward passes", "solve", "feed-forward sub-problems"} <= {*plan.seconds}
    assert all(0 < value < 600 for value in plan.seconds.values())


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("method", ["wanda", "sparsellm"])
def test_dry_run_leaves_the_model_as_it_was(family, method, windows):
    model = TINY[family]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = sl.prune(model, windows, method=method, sparsity=0.5, dry_run=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {row.layer for row in report.rows} == {0} and "dry run of block 0" in report.title()
    assert report.seconds["total"] == pytest.approx(
        sum(v for k, v in report.seconds.items() if k != "total")
    )


@pytest.mark.parametrize(
    "given, words",
    [
        ({"model": "opt-minni"}, "unknown model"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "meta"}, "'cpu' or 'cuda'"),
        ({"samples": -3}, "samples=-3"),
        ({"seqlen": 0}, "seqlen=0"),
        ({"offload": "auto"}, "when the run begins"),
    ],
)
def test_what_cannot_be_planned_is_refused(given, words):
    with pytest.raises(sl.SparselabError, match=words):
        sl.plan(**{"model": "opt-mini", "method": "wanda", "measure": False, **given})


def test_a_plan_for_a_model_in_memory():
    model = TINY["opt"]()
    assert (
        sl.plan(model, "wanda", 4, 32, measure=False).bytes
        == sl.plan(model.config, "wanda", 4, 32, measure=False).bytes
    )
