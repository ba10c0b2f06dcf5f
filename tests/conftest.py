"""Tiny models of both families, correlated inputs, and the reference data where it is at hand."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
VOCABULARY, CONTEXT = 128, 64


def tiny_opt(**changes) -> OPTForCausalLM:
    """Two blocks of width 32, with OPT's ReLU, biases and learned positions."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "word_embed_proj_dim": 32,
        "dropout": 0.1,
        "init_std": 0.1,
    }
    return OPTForCausalLM(OPTConfig(**{**settings, **changes})).eval()


def tiny_llama(**changes) -> LlamaForCausalLM:
    """Two blocks of width 32, with LLaMA's gated SiLU, rotary positions and grouped-query
    attention."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.1,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Two words, so that a folder is complete."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    )


def word_tokenizer() -> PreTrainedTokenizerFast:
    """The words w0, w1, ..., one for each token of the tiny models, with spaces between them."""
    vocabulary = {f"w{number}": number for number in range(VOCABULARY)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w1")


def stored(path: Path, model, **options) -> Path:
    """A folder with a model and a tokenizer."""
    model.save_pretrained(path, **options)
    tiny_tokenizer().save_pretrained(path)
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in the safetensors files of a folder."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


class Killed(BaseException):
    """The end of a run that is killed, in the same process."""


def break_off(monkeypatch, place, folder, windows, **call):
    """A run that dies before its manifest names so many blocks; the settings that make it go on."""
    import sparselab as sl
    from sparselab.engine import sources

    call = {
        "method": "wanda",
        "sparsity": 0.5,
        "out": folder.with_name("out"),
        "progress": False,
        **call,
    }
    write = sources.write_json

    def dies(file, content):
        if len(content.get("blocks", [])) == place:
            raise Killed
        write(file, content)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sources, "write_json", dies)
        sl.prune(folder, windows, **call)
    return call


TINY = {"opt": tiny_opt, "llama": tiny_llama}


@pytest.fixture(params=TINY)
def tiny(request):
    """A tiny model of each family."""
    return TINY[request.param]()


@pytest.fixture
def windows():
    """Calibration ids for the tiny models, [6, 32]."""
    return torch.randint(4, VOCABULARY, (6, 32), generator=torch.Generator().manual_seed(1))


def correlated(tokens: int, width: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    """Inputs [tokens, width] with correlations and two outlier channels, as in a language model."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    x = torch.randn(tokens, width, generator=generator, dtype=torch.float64) @ (
        mix + 0.5 * torch.eye(width)
    )
    x[:, :2] *= 10
    return x.to(dtype)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of reference texts; a test that needs it is skipped where it is absent."""
    folder = Path(os.environ.get("SPARSELAB_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "wikitext2-raw-test.txt").exists():
        pytest.skip(
            f"needs the reference texts, which are not part of the project ({folder} is absent)"
        )
    return folder
