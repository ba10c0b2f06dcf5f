"""Perplexity by its definition, and what it refuses."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from conftest import CONTEXT, VOCABULARY, tiny_llama

import sparselab as sl
from sparselab import Perplexity, SparselabError


@pytest.fixture
def text():
    """300 tokens for the tiny models."""
    return torch.randint(4, VOCABULARY, (300,), generator=torch.Generator().manual_seed(2))


def test_the_papers_definition(tiny, text):
    """Windows that do not overlap, the rest dropped, each scored on its seqlen - 1 inner
    predictions."""
    losses = []
    for a in range(0, 300 - 31, 32):
        ids = text[a : a + 32][None]
        logits = tiny(ids).logits.double()
        losses.append(F.cross_entropy(logits[0, :-1], ids[0, 1:]).item())
    result = sl.perplexity(tiny, text, seqlen=32, progress=False)
    assert float(result) == pytest.approx(math.exp(sum(losses) / 9), rel=1e-5)
    assert result.windows == 9 and result.seqlen == 32
    spread = torch.tensor(losses).std().item() / 3
    assert result.stderr == pytest.approx(float(result) * spread, rel=1e-3)
    assert repr(result) == f"{float(result):.2f} ± {result.stderr:.2f} (9 windows of 32 tokens)"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_give_the_same_to_their_precision(tiny, text, dtype):
    exact = sl.perplexity(tiny, text, seqlen=32, progress=False)
    half = sl.perplexity(copy.deepcopy(tiny).to(dtype), text, seqlen=32, progress=False)
    assert (
        float(half) == pytest.approx(float(exact), rel=0.03) and half.losses.dtype == torch.float32
    )


def test_memory_that_runs_out_changes_nothing(text, monkeypatch):
    model = tiny_llama()
    expected = sl.perplexity(model, text, seqlen=32, progress=False)
    forward = type(model).forward

    def limited(self, input_ids, **kwargs):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", limited)
    limited_result = sl.perplexity(model, text, seqlen=32)
    assert limited_result.windows == 9 and float(limited_result) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_paired_ratio_and_pickling():
    a, b = (
        Perplexity(torch.tensor([1.0, 2.0, 3.0]), 8),
        Perplexity(torch.tensor([1.5, 2.5, 3.5]), 8),
    )
    assert b.ratio(a) == (0.5, 0.0)
    again = pickle.loads(pickle.dumps(b))
    assert again == b and torch.equal(again.losses, b.losses) and isinstance(b, float)
    assert Perplexity(torch.tensor([1000.0]), 8) == math.inf


@pytest.mark.parametrize(
    "ids, seqlen, words",
    [
        (torch.arange(4, 20), 32, "at least seqlen=32 tokens"),
        (torch.zeros(0, dtype=torch.long), 32, "at least"),
        (torch.ones(2, 64, dtype=torch.long), 32, "one row"),
        (torch.ones(99), 32, "LongTensor"),
        (torch.ones(99, dtype=torch.int32), 32, r"\.long\(\)"),
        (torch.full((99,), VOCABULARY), 32, "another model's tokenizer"),
        (torch.ones(99, dtype=torch.long), 1, "2 tokens"),
        (torch.ones(99, dtype=torch.long), CONTEXT + 1, f"Pass seqlen={CONTEXT} or less"),
    ],
)
def test_bad_input_gets_a_sentence(tiny, ids, seqlen, words):
    with pytest.raises(SparselabError, match=words):
        sl.perplexity(tiny, ids, seqlen=seqlen)


@pytest.mark.parametrize("part", ["", "model"])
def test_training_mode_is_refused(tiny, text, part):
    tiny.get_submodule(part).train()
    with pytest.raises(SparselabError, match=r"model.eval"):
        sl.perplexity(tiny, text, seqlen=32)


def test_a_broken_weight_is_a_sentence(tiny, text):
    next(iter(sl.linears_of(tiny).values())).weight.data[0, 0] = math.nan
    with pytest.raises(SparselabError, match="9 of 9 windows' losses are not finite"):
        sl.perplexity(tiny, text, seqlen=32, progress=False)
    assert math.isnan(Perplexity(torch.tensor([math.nan]), 8))


@pytest.mark.parametrize("losses, seqlen", [([1.0], 8), ([1.0, 2.0], 8), ([1.0, 2.0, 3.0], 16)])
def test_other_windows_cannot_be_compared(losses, seqlen):
    with pytest.raises(SparselabError, match="on the same windows"):
        Perplexity(torch.tensor([1.0, 2.0, 3.0]), 8).ratio(Perplexity(torch.tensor(losses), seqlen))


def test_known_dense_perplexities_carry_their_protocol():
    assert sl.known_dense("facebook/opt-125m", "wikitext2", 2048) == 27.66
    assert sl.known_dense("facebook/opt-125m", "wikitext2", 1024) is None


def test_writing_is_greedy_and_repeatable():
    model, tokenizer = sl.load("opt-mini")
    text = sl.write(model, tokenizer, "The old man", tokens=8)
    assert text == sl.write(model, tokenizer, "The old man", tokens=8)
    ids = tokenizer("The old man", return_tensors="pt").input_ids
    for _ in range(8):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    assert text == tokenizer.decode(ids[0], skip_special_tokens=True)
    with pytest.raises(SparselabError, match="fit the 256 positions"):
        sl.write(model, tokenizer, "The old man " * 80)
