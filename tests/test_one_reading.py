"""A checkpoint is what transformers says it is: the same files, tensors and numbers on every path
through the package, or one sentence."""

import json
import os
import shutil

import pytest
import torch
from conftest import stored, tiny_llama, tiny_opt, weights
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import sparselab as sl
from sparselab.models.shards import INDEX

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = (
    "opt llama mistral ministral ministral3 qwen2 qwen3 gemma gemma2 gemma3_text"
    " gemma4_unified_text cohere cohere2 cwm diffllama ernie4_5 exaone exaone4 flint granite"
    " granite_swa helium hunyuan_v1_dense hyperclovax internlm3 iquestcoder olmo olmo2 olmo3"
    " seed_oss smollm3 stablelm vaultgemma bitnet"
).split()
MORE = {"gemma4_unified_text": {"global_head_dim": 8}}
PATHS = ("load", "stream", "save", "packed", "reload")


def windows(count=4):
    return torch.randint(3, 60, (count, 32), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model):
    return model(windows(2), use_cache=False).logits


def loaded_by_transformers(path):
    return AutoModelForCausalLM.from_pretrained(path, use_safetensors=True).eval()


def edit(file, **changes):
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value != "DROP"}))


def streamed(path, out, **options):
    call = {"method": "wanda", "sparsity": 0.0, "progress": False, **options}
    sl.prune(path, windows(), out=out, **call)
    return out


def by_every_path(source, base):
    """The logits at sparsity 0, or what the package says in their place, by path."""

    def saved(packed):
        model, _ = sl.load(source)
        report = sl.prune(model, windows(), method="wanda", sparsity=0.0, progress=False)
        return sl.save(model, report, base / f"saved-{packed}", packed=packed)

    def reload():
        model, _ = sl.load(saved_plain)
        return sl.load(sl.save(model, sl.Report({}), base / "again", packed=True))[0]

    saved_plain = None
    found = {}
    for path in PATHS:
        try:
            if path == "load":
                found[path] = logits(sl.load(source)[0])
            elif path == "stream":
                found[path] = logits(loaded_by_transformers(streamed(source, base / "streamed")))
            elif path == "save":
                saved_plain = saved(packed=False)
                found[path] = logits(loaded_by_transformers(saved_plain))
            elif path == "packed":
                found[path] = logits(sl.load(saved(packed=True))[0])
            elif saved_plain:
                found[path] = logits(reload())
        except sl.SparselabError as error:
            found[path] = str(error)
    return found


def random_model(kind):
    """A tiny model of a family, with random numbers where the initial ones are all alike."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[kind](**SHAPE, **MORE.get(kind, {}))
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("kind", FAMILIES)
def test_logits_at_sparsity_0_are_those_of_transformers(kind, tmp_path, capsys):
    source = stored(tmp_path / "model", random_model(kind), max_shard_size="20KB")
    want, found = logits(loaded_by_transformers(source)), by_every_path(source, tmp_path)
    cells = {
        path: "refused"
        if isinstance(got, str)
        else ("equal" if torch.equal(got, want) else "OTHER")
        for path, got in found.items()
    }
    with capsys.disabled():
        print(f"\n{kind:20}", *(f"{path}: {cell}" for path, cell in cells.items()), sep="  ")
    assert cells["load"] == "equal"
    for path, got in found.items():
        assert isinstance(got, str) or cells[path] == "equal", path


@pytest.mark.parametrize("kind", FAMILIES)
def test_losses_block_by_block_are_those_of_the_whole_model(kind, tmp_path):
    """Or they are refused, with the words that refuse to prune it so."""
    source = stored(tmp_path / "model", random_model(kind), max_shard_size="20KB")
    call = {"tokens": windows(9).flatten(), "seqlen": 32, "progress": False}
    try:
        streamed(source, tmp_path / "out")
    except sl.SparselabError as error:
        with pytest.raises(sl.SparselabError) as refused:
            sl.perplexity(source, **call)
        assert str(refused.value) == str(error)
        return
    expected = sl.perplexity(sl.load(source)[0], **call)
    assert torch.equal(sl.perplexity(source, **call).losses, expected.losses)


# Which files and tensors count.


def other_weights(path, name):
    """A stray file: the same tensors with other numbers."""
    tensors = load_file(path / "model.safetensors")
    save_file({k: 2 * v for k, v in tensors.items()}, path / name, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name", ["model_ema.safetensors", "a.safetensors", "zz.safetensors", "consolidated.safetensors"]
)
def test_a_stray_file_is_not_the_model(name, tmp_path):
    source = stored(tmp_path / "model", tiny_llama())
    other_weights(source, name)
    want = logits(loaded_by_transformers(source))
    assert torch.equal(logits(sl.load(source)[0]), want)
    assert torch.equal(logits(loaded_by_transformers(streamed(source, tmp_path / "out"))), want)


def test_a_single_file_goes_before_an_index(tmp_path):
    """As in transformers; here the shards of the index are of another model."""
    source = stored(tmp_path / "model", tiny_llama(), max_shard_size="20KB")
    shards = weights(source)
    save_file(
        {key: 2 * value for key, value in shards.items()},
        source / "model.safetensors",
        metadata={"format": "pt"},
    )
    want = logits(loaded_by_transformers(source))
    assert torch.equal(logits(sl.load(source)[0]), want)
    assert torch.equal(logits(loaded_by_transformers(streamed(source, tmp_path / "out"))), want)


def change(path, **tensors):
    """Other tensors in a model's single file; None removes one."""
    content = load_file(path / "model.safetensors") | tensors
    content = {key: value for key, value in content.items() if value is not None}
    save_file(content, path / "model.safetensors", metadata={"format": "pt"})


def both_refuse(path, words, tmp_path):
    for work in (lambda: sl.load(path), lambda: streamed(path, tmp_path / "out")):
        with pytest.raises(sl.SparselabError, match=words):
            work()
    assert not (tmp_path / "out.part").exists()


@pytest.mark.parametrize(
    "key",
    [
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
    ],
)
def test_a_missing_tensor_is_named(key, tmp_path):
    source = stored(tmp_path / "model", tiny_llama())
    change(source, **{key: None})
    both_refuse(source, f"hold no tensor {key}", tmp_path)


def test_tensors_that_config_does_not_foresee_are_named(tmp_path):
    biases = stored(tmp_path / "biases", tiny_llama(attention_bias=True))
    edit(biases / "config.json", attention_bias=False)
    both_refuse(biases, "k_proj.bias and 7 more, for which", tmp_path)
    layers = stored(tmp_path / "layers", tiny_llama(num_hidden_layers=3))
    edit(layers / "config.json", num_hidden_layers=2)
    both_refuse(layers, "layers.2.* no place", tmp_path)
    prefixed = stored(tmp_path / "prefixed", tiny_llama())
    tensors = load_file(prefixed / "model.safetensors")
    save_file(
        {f"_orig_mod.{key}": value for key, value in tensors.items()},
        prefixed / "model.safetensors",
        metadata={"format": "pt"},
    )
    both_refuse(prefixed, "hold no tensor", tmp_path)
    scales = stored(tmp_path / "scales", tiny_opt())
    change(scales, **{"model.decoder.layers.0.fc1.weight_scale": torch.ones(1)})
    both_refuse(scales, "weight_scale, for which", tmp_path)


@pytest.mark.parametrize("family", [tiny_llama, tiny_opt])
def test_an_output_head_that_differs_is_kept(family, tmp_path):
    source = stored(tmp_path / "model", family(tie_word_embeddings=False))
    edit(source / "config.json", tie_word_embeddings=True)
    want = logits(loaded_by_transformers(source))
    found = by_every_path(source, tmp_path)
    assert all(torch.equal(found[path], want) for path in PATHS), found


def test_a_tied_head_that_is_stored_twice_is_one(tmp_path):
    source = stored(tmp_path / "model", tiny_llama(tie_word_embeddings=True))
    change(
        source,
        **{
            "lm_head.weight": load_file(source / "model.safetensors")[
                "model.embed_tokens.weight"
            ].clone()
        },
    )
    want = logits(loaded_by_transformers(source))
    out = streamed(source, tmp_path / "out")
    assert torch.equal(logits(loaded_by_transformers(out)), want)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"]


# Weights that are codes.


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
@pytest.mark.parametrize("told", [True, False])
def test_quantised_weights_are_not_read_as_numbers(kind, told, tmp_path):
    source = stored(tmp_path / "model", tiny_llama())
    key = "model.layers.0.mlp.up_proj.weight"
    change(source, **{key: load_file(source / "model.safetensors")[key].to(kind)})
    if told:
        edit(source / "config.json", quantization_config={"quant_method": "fp8"})
    both_refuse(source, "quantised", tmp_path)


# Adapters.


def test_an_adapter_is_merged_or_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    source = stored(tmp_path / "model", tiny_llama())
    config = LoraConfig(
        r=4, lora_alpha=32, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(loaded_by_transformers(source), config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    want = logits(adapted)
    adapted.save_pretrained(source)
    model, _ = sl.load(source)
    assert torch.allclose(logits(model), want, atol=1e-5)
    report = sl.prune(model, windows(), method="wanda", sparsity=0.5, progress=False)
    assert report.sparsity == 0.5 and not any("lora" in name for name in model.state_dict())
    again = sl.load(sl.save(model, report, tmp_path / "saved"))[0]
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(sl.SparselabError, match="holds an adapter .* sl.load"):
        streamed(source, tmp_path / "out")
    alone = tmp_path / "alone"
    adapted.save_pretrained(alone)
    both_refuse(alone, "adapter without its model", tmp_path)


# The dtype and the settings of generation.


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shards", [True, False])
def test_dtype_auto_without_a_dtype_in_config_is_that_of_the_files(kind, shards, tmp_path):
    options = {"max_shard_size": "20KB"} if shards else {}
    source = stored(tmp_path / "model", tiny_llama().to(kind), **options)
    edit(source / "config.json", dtype="DROP")
    assert sl.load(source, dtype="auto")[0].dtype == kind
    out = streamed(source, tmp_path / "out", dtype="auto")
    assert {value.dtype for value in weights(out).values()} == {kind}


def test_settings_of_generation_are_the_same_on_every_path(tmp_path):
    """With a temperature where nothing is drawn, which transformers refuses to save."""
    source = stored(tmp_path / "model", tiny_llama())
    settings = {"eos_token_id": [2, 7], "temperature": 0.6, "do_sample": False, "max_length": 99}
    (source / "generation_config.json").write_text(json.dumps(settings))
    model, _ = sl.load(source)
    plain = sl.save(model, sl.Report({}), tmp_path / "plain")
    packed = sl.save(model, sl.Report({}), tmp_path / "packed", packed=True)
    for folder in (plain, packed, streamed(source, tmp_path / "out")):
        found = json.loads((folder / "generation_config.json").read_text())
        assert {key: found.get(key) for key in settings if settings[key]} == {
            key: value for key, value in settings.items() if value
        }, folder.name


# Checkpoints that lie.


def test_an_index_may_not_point_outside_its_folder(tmp_path):
    source = stored(tmp_path / "model", tiny_llama(), max_shard_size="20KB")
    content = json.loads((source / INDEX).read_text())
    first = sorted(set(content["weight_map"].values()))[0]
    shutil.move(source / first, tmp_path / first)
    for place in (f"../{first}", str(tmp_path / first), f"sub/../../{first}"):
        moved = {
            key: place if file == first else file for key, file in content["weight_map"].items()
        }
        (source / INDEX).write_text(json.dumps({**content, "weight_map": moved}))
        both_refuse(source, "not in the folder itself", tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "swoosh"}, "cannot build the model .*swoosh"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "spiral"),
        ({"num_attention_heads": 5}, "config.json"),
        ({"hidden_size": -1}, "config.json"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(changes, words, tmp_path):
    source = stored(tmp_path / "model", tiny_llama())
    edit(source / "config.json", **changes)
    both_refuse(source, words, tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    source = stored(tmp_path / "model", tiny_llama())
    (source / "model.safetensors").chmod(0)
    both_refuse(source, "cannot be read", tmp_path)
