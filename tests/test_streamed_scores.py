"""Models in files are scored a block at a time: the same numbers as in memory, in little memory,
and nothing is left behind."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import (
    CONTEXT,
    VOCABULARY,
    stored,
    tiny_llama,
    tiny_opt,
    tiny_tokenizer,
    word_tokenizer,
)
from safetensors.torch import save_file
from transformers import LlamaConfig

import sparselab as sl
from sparselab import SparselabError
from sparselab.evaluation.zeroshot import loglikelihoods
from sparselab.models.blockwise import ActivationBatch
from sparselab.models.checkpoint import Checkpoint, empty_model
from sparselab.models.packed import stored_tensors
from sparselab.models.shards import INDEX
from sparselab.models.streaming import BlockReader
from sparselab.runtime.offload import ActivationStore

MODELS = {
    "OPT": lambda: tiny_opt(num_hidden_layers=4),
    "OPT-350m": lambda: tiny_opt(do_layer_norm_before=False, word_embed_proj_dim=16),
    "LLaMA": lambda: tiny_llama(num_hidden_layers=4),
    "a head of its own": lambda: tiny_llama(tie_word_embeddings=False),
    "one block": lambda: tiny_llama(num_hidden_layers=1),
}


@pytest.fixture(params=MODELS)
def folder(request, tmp_path):
    """A tiny model in several shards."""
    return stored(tmp_path / "model", MODELS[request.param](), max_shard_size="30KB")


@pytest.fixture
def llama(tmp_path):
    """One tiny model in several shards."""
    return stored(tmp_path / "model", MODELS["LLaMA"](), max_shard_size="30KB")


@pytest.fixture
def text():
    """300 tokens for the tiny models: 9 windows of 32."""
    return torch.randint(4, VOCABULARY, (300,), generator=torch.Generator().manual_seed(2))


def in_memory(folder, text, **options):
    return sl.perplexity(sl.load(folder, **options)[0], text, seqlen=32, progress=False)


@pytest.mark.parametrize("offload", ["auto", "disk"])
def test_the_same_bits_as_in_memory(folder, text, offload):
    found = sl.perplexity(folder, text, seqlen=32, offload=offload, progress=False)
    expected = in_memory(folder, text)
    assert torch.equal(found.losses, expected.losses) and found.windows == 9
    assert found.losses.std() > 0.01 and found.ratio(expected) == (0, 0)


def test_several_batches_and_the_name_as_a_text(llama, text, monkeypatch):
    monkeypatch.setattr("sparselab.runtime.memory.TOKENS_AT_ONCE", 128)  # four windows at once
    found = sl.perplexity(str(llama), text, seqlen=32, progress=False)
    assert torch.equal(found.losses, in_memory(llama, text).losses)


def test_other_dtypes_are_those_of_load(llama, text):
    options = {"dtype": "bfloat16", "device": "cpu"}
    found = sl.perplexity(llama, text, seqlen=32, progress=False, **options)
    assert torch.equal(found.losses, in_memory(llama, text, **options).losses)
    assert not torch.equal(found.losses, in_memory(llama, text).losses)


def test_log_likelihoods_are_those_in_memory(folder):
    """Of texts of many lengths, in padded batches; some share a pass, and one is cut on the left.
    The tokenizer is the folder's."""
    word_tokenizer().save_pretrained(folder)
    requests = []
    for length in (*range(1, 25, 3), 2 * CONTEXT):
        context = " ".join(f"w{5 + number % 90}" for number in range(length))
        requests += [(context, " w7"), (context, " w9"), (context, " w9 w8 w7")]
    found = loglikelihoods(folder, None, requests, progress=False)
    assert found == loglikelihoods(*sl.load(folder), requests, progress=False)
    assert len({value for value, _ in found}) == len(requests)


def test_each_block_is_read_once_after_the_proof(llama, text, monkeypatch):
    loads, held = [], []
    load = BlockReader.load

    def watched(self, layer, then=None):
        block = load(self, layer, then)
        loads.append(layer)
        held.append(sum(not next(each.parameters()).is_meta for each in self.blocks))
        return block

    monkeypatch.setattr(BlockReader, "load", watched)
    sl.perplexity(llama, text, seqlen=32, progress=False)
    assert loads == [0, 1, 0, 1, 2, 3] and held == [1, 2, 1, 1, 1, 1]


@pytest.mark.parametrize("where", ["blocks", "head"])
def test_memory_that_runs_out_halves_a_batch_and_reads_nothing_anew(
    llama, text, monkeypatch, where
):
    expected, loads = in_memory(llama, text), []
    owner = ActivationBatch if where == "blocks" else type(tiny_llama())
    name = "through" if where == "blocks" else "forward"
    work, load = getattr(owner, name), BlockReader.load

    def limited(self, first, *args, **kwargs):
        rows = len(self.ids) if where == "blocks" else len(first)
        before_head = where == "head" and len(self.model.layers) > 1
        if rows > 2 and not before_head:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(self, first, *args, **kwargs)

    def watched(self, layer, then=None):
        loads.append(layer)
        return load(self, layer, then)

    monkeypatch.setattr(owner, name, limited)
    monkeypatch.setattr(BlockReader, "load", watched)
    found = sl.perplexity(llama, text, seqlen=32, progress=False)
    assert torch.allclose(found.losses, expected.losses, rtol=1e-5) and len(loads) == 6


@pytest.mark.parametrize(
    "ids, seqlen, words",
    [
        (torch.arange(4, 20), 32, "at least seqlen=32 tokens"),
        (torch.ones(99), 32, "LongTensor"),
        (torch.full((99,), VOCABULARY), 32, "another model's tokenizer"),
        (torch.ones(99, dtype=torch.long), CONTEXT + 1, f"Pass seqlen={CONTEXT} or less"),
    ],
)
def test_a_wrong_text_is_a_sentence_before_a_weight_is_read(llama, ids, seqlen, words, monkeypatch):
    monkeypatch.setattr(Checkpoint, "read", lambda *_, **__: pytest.fail("a weight was read"))
    with pytest.raises(SparselabError, match=words):
        sl.perplexity(llama, ids, seqlen=seqlen, progress=False)
    with pytest.raises(SparselabError, match="come after a context"):
        loglikelihoods(llama, None, [("", "")], progress=False)


def test_a_wrong_model_is_a_sentence(llama, text, tmp_path):
    def refused(words, name, **options):
        with pytest.raises(SparselabError, match=words):
            sl.perplexity(name, text, seqlen=32, progress=False, **options)

    refused("no folder of this name", tmp_path / "nowhere")
    refused("not on this machine", "owner/name")
    refused("unknown device", llama, device="moon")
    refused("offload='moon'", llama, offload="moon")
    model, _ = sl.load(llama)
    refused("belong to a model given by name", model, device="cpu")
    sl.save(model, sl.Report({}), tmp_path / "packed", packed=True)
    refused("is packed, and a packed file is not read block by block", tmp_path / "packed")
    shard = sorted(llama.glob("*.safetensors"))[-1]
    shard.rename(tmp_path / shard.name)
    refused("a shard is missing", llama)
    for file in llama.glob("*.safetensors*"):
        file.unlink()
    refused("holds no safetensors file", llama)


def test_a_broken_weight_is_a_sentence(tmp_path, text):
    model = tiny_llama()
    sl.blocks_of(model)[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    folder = stored(tmp_path / "model", model)
    with pytest.raises(SparselabError, match="9 of 9 windows' losses are not finite|nan of the"):
        sl.perplexity(folder, text, seqlen=32, progress=False)


def test_an_interrupted_run_leaves_nothing(llama, text, tmp_path, monkeypatch):
    scratch, kept = tmp_path / "scratch", []
    scratch.mkdir()
    monkeypatch.setenv("SPARSELAB_SCRATCH", str(scratch))
    files, keep, load = sorted(llama.iterdir()), ActivationStore.keep, BlockReader.load

    def interrupt(self, layer, then=None):
        if len(kept) > 2 and layer == 2:
            raise KeyboardInterrupt
        return load(self, layer, then)

    def watched(self, new, old=None):
        kept.append(self.place)
        return keep(self, new, old)

    monkeypatch.setattr(ActivationStore, "keep", watched)
    monkeypatch.setattr(BlockReader, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sl.perplexity(llama, text, seqlen=32, offload="disk", progress=False)
    assert "disk" in kept and list(scratch.iterdir()) == [] and sorted(llama.iterdir()) == files


# --- memory
# --------------------------------------------------------------------------------------------------

MEASURED = """
import sys, torch, sparselab as sl
from sparselab.runtime.memory import peak_rss
torch.set_num_threads(1)
held = peak_rss()
ids = torch.randint(2, 1000, (8 * 32,), generator=torch.Generator().manual_seed(0))
found = sl.perplexity(sys.argv[1], ids, seqlen=32, device="cpu", progress=False)
print(held, peak_rss(), float(found))
"""


def large(folder):
    """A model of 1 GB, a file for each block, which is never whole in memory here either; bytes of
    all of it, and of a block."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=20,
        num_attention_heads=16,
        max_position_embeddings=CONTEXT,
    )
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    files, sizes = {}, {}
    for name, like in stored_tensors(empty_model(config)).items():
        part = name.split(".")[2] if ".layers." in name else "outside"
        files.setdefault(f"{part}.safetensors", []).append((name, like.shape))
    for file, tensors in files.items():
        values = {name: torch.randn(shape) / shape[-1] ** 0.5 for name, shape in tensors}
        save_file(values, folder / file, metadata={"format": "pt"})
        sizes[file] = sum(value.nbytes for value in values.values())
    names = {name: file for file, tensors in files.items() for name, _ in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return sum(sizes.values()), sizes["0.safetensors"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_three_blocks_are_enough(tmp_path):
    """And the activations, and 0.1 GB, beyond what Python and torch hold before (0.45 GB here)."""
    folder = tmp_path / "large"
    try:
        total, block = large(folder)
        command = [sys.executable, "-c", MEASURED, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        shutil.rmtree(folder)
    held, peak, perplexity = map(float, done.stdout.split())
    activations = 8 * 32 * 1024 * 4
    print(f"MB: model {total / 1e6:.0f}, block {block / 1e6:.0f}, ", end="")
    print(f"peak {peak / 1e6:.0f}, of it before {held / 1e6:.0f}")
    assert total > 1e9 and perplexity > 1
    assert peak - held < 3 * block + activations + 0.1e9 < total / 3
