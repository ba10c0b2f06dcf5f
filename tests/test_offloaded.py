"""Models whose weights accelerate keeps elsewhere between calls: evaluated as if they were here."""

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook, disk_offload, dispatch_model
from conftest import TINY, VOCABULARY, word_tokenizer

import sparselab as sl
from sparselab import SparselabError
from sparselab.evaluation.zeroshot import loglikelihoods

CPU = torch.device("cpu")


def on_the_cpu(model, folder):
    return cpu_offload(model, execution_device=CPU)


def on_disk(model, folder):
    disk_offload(model, folder, execution_device=CPU)
    return model


def over_a_map(model, folder):
    """Embedding, head and every second block on disk, the rest in memory."""
    blocks = next(name for name, _ in model.named_modules() if name.endswith(".layers"))
    decoder = blocks.removesuffix(".layers")
    places = {
        f"{decoder}.{name}": "cpu" for name, _ in model.get_submodule(decoder).named_children()
    }
    del places[blocks]
    for number in range(len(model.get_submodule(blocks))):
        places[f"{blocks}.{number}"] = ("cpu", "disk")[number % 2]
    places |= {f"{decoder}.embed_tokens": "disk", "lm_head": "disk"}
    return dispatch_model(model, places, main_device="cpu", offload_dir=folder)


def while_it_runs(model, folder):
    """The whole model moves to its device for a call; here that is the CPU."""
    return cpu_offload_with_hook(model, execution_device=CPU)[0]


WAYS = [on_the_cpu, on_disk, over_a_map, while_it_runs]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("way", WAYS)
def test_results_are_those_of_the_model_in_memory(way, family, tokenizer, tmp_path):
    ids = torch.randint(4, VOCABULARY, (200,), generator=torch.Generator().manual_seed(1))
    requests = [("w5 w6 w7", " w8 w9"), ("w10", " w11"), ("w5 w6 w7", " w8 w12")]
    dense, model = TINY[family](), way(TINY[family](), tmp_path)

    found = sl.perplexity(model, ids, seqlen=32, progress=False)
    assert torch.equal(found.losses, sl.perplexity(dense, ids, seqlen=32, progress=False).losses)

    found = loglikelihoods(model, tokenizer, requests, progress=False)
    expected = loglikelihoods(dense, tokenizer, requests, progress=False)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    for (value, _), (wanted, _) in zip(found, expected, strict=True):
        assert value == pytest.approx(wanted, abs=1e-5)

    written = sl.write(model, tokenizer, "w5 w6", tokens=6)
    assert written == sl.write(dense, tokenizer, "w5 w6", tokens=6)


@pytest.mark.parametrize("family", TINY)
def test_weights_that_nothing_brings_are_a_sentence(family, tokenizer):
    model = TINY[family]().to("meta")
    with pytest.raises(SparselabError, match="not in memory"):
        sl.perplexity(model, torch.arange(4, 100), seqlen=32, progress=False)
    with pytest.raises(SparselabError, match="not in memory"):
        loglikelihoods(model, tokenizer, [("w5", " w6")], progress=False)
    with pytest.raises(SparselabError, match="not in memory"):
        sl.write(model, tokenizer, "w5")
