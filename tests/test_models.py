"""Loading: the three sizes, the families, and one sentence for everything that can go wrong."""

import json

import pytest
import torch
from conftest import ROOT, tiny_llama, tiny_opt
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import AutoConfig, GPT2Config, MixtralConfig

import sparselab as sl
from sparselab import SparselabError
from sparselab.models import embedded, hub, loading


@pytest.fixture
def folder(tmp_path):
    """A local folder with a tiny LLaMA and opt-mini's tokenizer."""
    tiny_llama().save_pretrained(tmp_path)
    sl.load("opt-mini")[1].save_pretrained(tmp_path)
    return tmp_path


def test_opt_mini_is_an_opt():
    model, tokenizer = sl.load("opt-mini")
    config = model.config
    assert type(model).__name__ == "OPTForCausalLM" and sl.family_of(model).name == "OPT"
    assert (
        config.activation_function == "relu" and config.do_layer_norm_before and config.enable_bias
    )
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    assert tokenizer("A ship").input_ids[0] == tokenizer.bos_token_id == 2
    assert (
        tokenizer.decode(tokenizer("A ship sailed.").input_ids, skip_special_tokens=True)
        == "A ship sailed."
    )
    size = sum(file.stat().st_size for file in (ROOT / "data" / "opt-mini").iterdir())
    assert size < 40e6


def test_smollm2_is_a_llama_with_grouped_queries():
    model, tokenizer = sl.load("smollm2-135m", dtype="bfloat16")
    assert sl.family_of(model).name == "LLaMA" and len(sl.blocks_of(model)) == 30
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(134.5e6, rel=1e-3)
    assert "Paris" in sl.write(
        model, tokenizer, "Question: What is the capital of France? Answer:", tokens=12
    )


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(_, folder):
        (folder / "half").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setenv("SPARSELAB_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "smollm2_package", lambda: tmp_path / "file.gguf")
    monkeypatch.setattr(embedded, "_dequantise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded.smollm2_folder()
    assert not list(tmp_path.iterdir())


def test_a_local_folder(folder):
    model, tokenizer = sl.load(folder)
    assert sl.family_of(model).name == "LLaMA" and len(tokenizer) == 4096
    assert sl.load(str(folder), dtype=torch.float16)[0].dtype == torch.float16


@pytest.mark.parametrize(
    "name, words",
    [
        ("opt-mni", "Did you mean 'opt-mini'"),
        ("nothing at all", "no folder of this name"),
        ("./missing", "no folder"),
        ("facebook/opt-125m", "Hub cannot be reached"),
    ],
)
def test_missing_models_get_a_sentence(name, words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SparselabError, match=words):
        sl.load(name)


@pytest.mark.parametrize(
    "cause, words",
    [
        (GatedRepoError, "is gated: accept its licence"),
        (RepositoryNotFoundError, "there is no model"),
        (ConnectionError, "Hub cannot be reached"),
        (torch.OutOfMemoryError, "not enough memory"),
    ],
)
def test_errors_of_the_hub_get_a_sentence(cause, words, monkeypatch):
    def fail(*_, **__):
        try:
            error = cause.__new__(cause)  # the Hub's own classes want a response object
            Exception.__init__(error, "from far below")
            raise error
        except Exception as error:
            raise OSError("a long chain of exceptions") from error

    monkeypatch.setattr(AutoConfig, "from_pretrained", fail)
    monkeypatch.setattr(loading, "online", lambda: True)
    with pytest.raises(SparselabError, match=words):
        sl.load("meta-llama/Llama-2-13b-hf")


@pytest.mark.parametrize(
    "config, words",
    [
        (GPT2Config(n_embd=32, n_layer=1, n_head=2), "not built like the OPT or LLaMA family"),
        (
            MixtralConfig(
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
            ),
            "mixture of experts",
        ),
    ],
)
def test_wrong_families_are_refused_before_any_weight_is_read(tmp_path, config, words):
    config.save_pretrained(tmp_path)
    with pytest.raises(SparselabError, match=words):
        sl.load(tmp_path)


def test_encoder_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(SparselabError, match="OPT or LLaMA family"):
        sl.load(tmp_path)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save(tiny_llama().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(SparselabError, match="safetensors"):
        sl.load(folder)


def test_a_folder_without_tokenizer_or_config_is_a_sentence(tmp_path):
    with pytest.raises(SparselabError, match="could not be loaded"):
        sl.load(tmp_path)


def test_unknown_dtype_and_absent_gpu():
    with pytest.raises(SparselabError, match="Did you mean 'float16'"):
        sl.load("opt-mini", dtype="flat16")
    with pytest.raises(SparselabError, match="unknown device 'gpu'"):
        sl.load("opt-mini", device="gpu")
    with pytest.raises(SparselabError, match="torch sees .* GPU here"):
        sl.load("opt-mini", device="cuda:99" if torch.cuda.is_available() else "cuda")


def test_linears_are_named_as_in_the_model():
    for model in (tiny_opt(), tiny_llama()):
        for name, linear in sl.linears_of(model).items():
            assert model.get_submodule(name) is linear
    assert list(sl.linears_of(tiny_llama(), [1])) == [
        f"model.layers.1.{name}"
        for name in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    ]


def test_groups_share_their_input():
    """What the families claim: the linears of a group receive the same values."""
    for model in (tiny_opt(), tiny_llama()):
        seen, block = {}, sl.blocks_of(model)[0]
        for name, module in block.named_modules():
            module.register_forward_pre_hook(
                lambda _, args, name=name, seen=seen: (
                    seen.update({name: args}) if isinstance(_, torch.nn.Linear) else None
                )
            )
        with torch.no_grad():
            model(torch.arange(4, 12)[None])
        for group in sl.family_of(model).groups:
            assert all(torch.equal(seen[name][0], seen[group[0]][0]) for name in group)


def test_online_respects_the_environment(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub.online()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for key in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(key, raising=False)
    assert not hub.online()


def test_a_folder_may_be_named_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model, _ = sl.load("opt-mini")
    sl.save(model, sl.Report({}), "~/mine")
    assert (tmp_path / "mine").is_dir() and sl.load("~/mine")[
        0
    ].config.hidden_size == model.config.hidden_size
