"""Models in files: pruned a block at a time, with the same bits as in memory; killed runs go on;
broken files are named."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
from conftest import Killed, break_off, stored, tiny_llama, tiny_opt, tiny_tokenizer, weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import sparselab as sl
from sparselab.engine import sources as streaming
from sparselab.models.checkpoint import Checkpoint
from sparselab.models.shards import INDEX, tensors_in
from sparselab.runtime.offload import ActivationStore

FAMILIES = {"OPT": tiny_opt, "LLaMA": tiny_llama}


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    """A tiny model of four blocks in several shards."""
    model = FAMILIES[request.param](num_hidden_layers=4)
    stored(tmp_path / "model", model, max_shard_size="30KB")
    assert (tmp_path / "model" / INDEX).exists()
    return tmp_path / "model"


@pytest.fixture
def windows():
    return torch.randint(2, 60, (6, 16), generator=torch.Generator().manual_seed(0))


def in_memory(folder, windows, **options):
    model, _ = sl.load(folder)
    report = sl.prune(model, windows, progress=False, **options)
    return {key: value for key, value in model.state_dict().items()}, report


def same(a, b):
    shared = {*a} & {*b}
    assert len(shared) >= 4 * 6 and all(torch.equal(a[key], b[key]) for key in shared)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "dsnot", "sparsellm"])
def test_same_bits_as_in_memory(folder, windows, tmp_path, method):
    expected, whole = in_memory(folder, windows, method=method, sparsity=0.5)
    report = sl.prune(
        folder, windows, method=method, sparsity=0.5, out=tmp_path / "out", progress=False
    )
    same(weights(tmp_path / "out"), expected)
    assert [row.name for row in report.rows] == [row.name for row in whole.rows]
    model, _ = sl.load(tmp_path / "out")
    same(dict(model.state_dict()), expected)
    assert (
        not list(tmp_path.glob("*.part")) and (tmp_path / "out" / "sparselab-report.json").exists()
    )


@pytest.mark.parametrize(
    "options",
    [{"layers": [1, 2]}, {"modules": ["q_proj"]}, {"targets": "dense-model", "refit": True}],
)
def test_options_hold_for_streamed_models(folder, windows, tmp_path, options):
    expected, _ = in_memory(folder, windows, method="sparsegpt", sparsity="2:4", **options)
    sl.prune(
        folder,
        windows,
        method="sparsegpt",
        sparsity="2:4",
        out=tmp_path / "out",
        progress=False,
        **options,
    )
    same(weights(tmp_path / "out"), expected)


def test_a_block_read_ahead_keeps_the_dtype_of_its_file(folder, windows, tmp_path):
    """And is in memory of its own: float16 takes half the room until its turn comes."""
    model, _ = sl.load(folder, dtype=torch.float16)
    model.save_pretrained(tmp_path / "half")
    tiny_tokenizer().save_pretrained(tmp_path / "half")
    source = streaming.StreamedBlocks(tmp_path / "half", None, torch.float32, torch.device("cpu"))
    block, ahead = source.load(0), source.ahead[1].result().tensors
    assert {p.dtype for p in block.parameters()} == {torch.float32} and {
        p.dtype for p in ahead.values()
    } == {torch.float16}
    source.close()
    whole, _ = sl.load(tmp_path / "half", dtype=torch.float32)
    sl.prune(whole, windows, method="sparsegpt", sparsity=0.5, progress=False)
    sl.prune(
        tmp_path / "half",
        windows,
        method="sparsegpt",
        sparsity=0.5,
        out=tmp_path / "out",
        dtype=torch.float32,
        progress=False,
    )
    same(weights(tmp_path / "out"), dict(whole.state_dict()))


def test_after_the_first_block_the_embeddings_take_no_memory(
    folder, windows, tmp_path, monkeypatch
):
    sizes, real = [], streaming.StreamedBlocks.load

    def load(self, layer, *args, **kwargs):
        weight = self.model.get_input_embeddings().weight
        sizes.append((weight.untyped_storage().nbytes(), weight.numel() * weight.element_size()))
        return real(self, layer, *args, **kwargs)

    monkeypatch.setattr(streaming.StreamedBlocks, "load", load)
    sl.prune(folder, windows, method="wanda", sparsity=0.5, out=tmp_path / "out", progress=False)
    assert sizes[0][0] == sizes[0][1]  # before the first block
    assert all(held <= 8 for held, _ in sizes[-2:])


def test_an_output_head_of_its_own_is_copied_and_never_loaded(tmp_path, windows):
    model = tiny_llama(tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    source = streaming.StreamedBlocks(tmp_path / "model", None, None, torch.device("cpu"))
    assert (
        source.model.lm_head.weight.is_meta
        and not source.model.get_input_embeddings().weight.is_meta
    )
    source.close()
    sl.prune(
        tmp_path / "model",
        windows,
        method="wanda",
        sparsity=0.5,
        out=tmp_path / "out",
        progress=False,
    )
    assert torch.equal(weights(tmp_path / "out")["lm_head.weight"], model.lm_head.weight)


@pytest.mark.parametrize("method", ["wanda", "sparsellm"])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_broken_run_goes_on_with_the_same_bits(
    folder, windows, tmp_path, monkeypatch, method, place
):
    expected, whole = in_memory(folder, windows, method=method, sparsity=0.5)
    report = sl.prune(
        folder, windows, **break_off(monkeypatch, place, folder, windows, method=method)
    )
    same(weights(tmp_path / "out"), expected)
    assert [row.name for row in report.rows] == [row.name for row in whole.rows]
    assert len(report.epochs) == len(whole.epochs)


def test_an_allocation_is_streamed_resumed_and_not_mixed_up(folder, windows, tmp_path, monkeypatch):
    blocks = len(sl.blocks_of(sl.load(folder)[0]))
    shares = {block: 0.4 + 0.1 * (block % 3) for block in range(blocks)}
    expected, whole = in_memory(folder, windows, method="wanda", sparsity=shares)
    call = break_off(monkeypatch, 2, folder, windows, sparsity=shares)
    with pytest.raises(
        sl.SparselabError, match="shares"
    ):  # the same mean and extremes, other blocks
        sl.prune(folder, windows, **{**call, "sparsity": {**shares, 0: shares[1], 1: shares[0]}})
    report = sl.prune(folder, windows, **call)
    same(weights(tmp_path / "out"), expected)
    assert report.settings["shares"] == whole.settings["shares"] and "allocated" in report.title()


RUN = """
import sys, torch, sparselab as sl
torch.set_num_threads(1)
windows = torch.randint(2, 60, (6, 16), generator=torch.Generator().manual_seed(0))
sl.prune(sys.argv[1], windows, method="sparsegpt", sparsity=0.5, out=sys.argv[2], progress=False)
"""


def test_killed_by_the_system(tmp_path, windows):
    """kill -9 at moments spread over the run; twenty of them on a larger model: bench/kills.py."""
    folder = tmp_path / "model"
    tiny_llama(num_hidden_layers=24).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    torch.set_num_threads(1)
    expected, _ = in_memory(folder, windows, method="sparsegpt", sparsity=0.5)
    kills = 0
    for wait in (0.0, 0.15, 0.3):
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, folder, tmp_path / "out"], stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not list(tmp_path.glob("out.part/*-manifest.json")):
            time.sleep(0.01)
        time.sleep(wait)
        kills += process.poll() is None
        process.kill()
        process.wait()
    if not (tmp_path / "out").exists():
        subprocess.run([sys.executable, "-c", RUN, folder, tmp_path / "out"], check=True)
    same(weights(tmp_path / "out"), expected)
    assert kills


def test_other_settings_are_refused(folder, windows, tmp_path, monkeypatch):
    def stop(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(streaming.StreamedBlocks, "complete", stop)
        sl.prune(
            folder, windows, method="wanda", sparsity=0.5, out=tmp_path / "out", progress=False
        )
    for change in (
        {"sparsity": 0.6},
        {"sparsity": 0.50001},
        {"method": "magnitude"},
        {"layers": [0]},
    ):
        with pytest.raises(sl.SparselabError, match="interrupted run with"):
            sl.prune(
                folder,
                windows,
                **{"method": "wanda", "sparsity": 0.5, **change},
                out=tmp_path / "out",
                progress=False,
            )
    with pytest.raises(sl.SparselabError, match="calibration"):
        sl.prune(
            folder,
            windows.flip(0),
            method="wanda",
            sparsity=0.5,
            out=tmp_path / "out",
            progress=False,
        )


def test_a_broken_run_goes_on_with_the_same_bits_in_other_memory(folder, windows, monkeypatch):
    expected, _ = in_memory(folder, windows, method="sparsegpt", sparsity=0.5)
    call = break_off(monkeypatch, 2, folder, windows, method="sparsegpt")
    monkeypatch.setattr(
        "sparselab.runtime.memory.free_bytes", lambda _: 0
    )  # a window at a time, if it were a new run
    sl.prune(folder, windows, **call)
    same(weights(folder.with_name("out")), expected)


@pytest.mark.parametrize("event", ["another folder appears", "killed"])
def test_a_finished_run_is_not_lost_at_its_last_step(folder, windows, tmp_path, monkeypatch, event):
    call = {"method": "wanda", "sparsity": 0.5, "out": tmp_path / "out", "progress": False}
    complete = streaming.StreamedBlocks._complete

    def another(self, report):  # while the run goes on
        call["out"].mkdir()
        (call["out"] / "log").write_text("")
        complete(self, report)

    def killed(*_, **__):
        raise Killed

    with (
        monkeypatch.context() as patch,
        pytest.raises((Killed, sl.SparselabError), match="appeared|^$"),
    ):
        if event == "killed":
            patch.setattr(streaming, "put_in_place", killed)
        else:
            patch.setattr(streaming.StreamedBlocks, "_complete", another)
        sl.prune(folder, windows, **call)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    monkeypatch.setattr(sl.Wanda, "prune_matrices", killed)  # nothing is pruned anew
    sl.prune(folder, windows, **call)
    assert (
        not (tmp_path / "out.part").exists()
        and not (tmp_path / "out" / streaming.MANIFEST).exists()
    )
    assert len(sl.blocks_of(sl.load(tmp_path / "out")[0])) == 4


def test_a_folder_of_others_is_left_alone(folder, windows, tmp_path):
    part = tmp_path / "out.part"
    part.mkdir()
    (part / "thesis.txt").write_text("precious")
    refused(folder, windows, tmp_path, "holds thesis.txt")
    assert (part / "thesis.txt").read_text() == "precious"
    (part / "thesis.txt").rename(
        part / "model-00001-of-00005.safetensors"
    )  # a run killed before its first manifest
    sl.prune(folder, windows, method="wanda", sparsity=0.5, out=tmp_path / "out", progress=False)


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json"])
def test_another_model_under_the_same_name_is_refused(
    folder, windows, tmp_path, monkeypatch, changed
):
    call = break_off(monkeypatch, 2, folder, windows)
    if changed == "config.json":
        content = json.loads((folder / changed).read_text())
        (folder / changed).write_text(json.dumps({**content, "bos_token_id": 5}))
    else:
        file = sorted(folder.glob("*.safetensors"))[-1]
        save_file(
            {key: 1.5 * value for key, value in load_file(file).items()},
            file,
            metadata={"format": "pt"},
        )
    refused(folder, windows, tmp_path, "interrupted run with weights", **call)


def test_another_path_to_the_same_model_goes_on(folder, windows, tmp_path, monkeypatch):
    call = break_off(monkeypatch, 2, folder, windows)
    monkeypatch.chdir(tmp_path)
    assert len(sl.prune("model/", windows, **call).rows) == 4 * len(
        sl.linears_of(sl.load(folder)[0], [0])
    )


def test_the_exact_sparsity_is_compared(windows):
    settings = {
        "model": "m",
        "method": "wanda",
        "pattern": "0.5",
        "layers": [0],
        "dtype": "float32",
        "device": "cpu",
        "versions": {},
        "modules": [],
        "samples": 6,
        "seqlen": 16,
    }
    prints = [
        streaming.fingerprint({**settings, "sparsity": sparsity}, windows)
        for sparsity in (0.50001, 0.50004)
    ]
    assert prints[0] != prints[1]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"settings": {'])
def test_a_broken_manifest_is_named(folder, windows, tmp_path, monkeypatch, content):
    call = break_off(monkeypatch, 2, folder, windows)
    (tmp_path / "out.part" / streaming.MANIFEST).write_text(content)
    refused(folder, windows, tmp_path, "manifest.json is broken .* Delete", **call)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_a_broken_shard_of_the_result_is_found_when_going_on(
    folder, windows, tmp_path, monkeypatch, number, damage
):
    call = break_off(monkeypatch, 2, folder, windows)
    file = tmp_path / "out.part" / f"model-{number:05d}-of-00005.safetensors"
    if damage == "another":
        shutil.copy(file.with_name("model-00003-of-00005.safetensors"), file)
    else:
        content = file.read_bytes()
        file.unlink()
        if damage == "cut":
            file.write_bytes(content[:-50])
    refused(folder, windows, tmp_path, f"{file.name} is broken .* Delete", **call)


def test_what_belongs_to_a_model_is_written_along(windows, tmp_path):
    """The ends of a chat model's answers, and its tokenizer's limit, which `load` lifts."""
    model, words = tiny_llama(), tiny_tokenizer()
    model.generation_config.eos_token_id, words.model_max_length = [2, 7, 9], 64
    model.save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    sl.prune(
        tmp_path / "model",
        windows,
        method="wanda",
        sparsity=0.5,
        out=tmp_path / "out",
        progress=False,
    )
    assert AutoModelForCausalLM.from_pretrained(
        tmp_path / "out"
    ).generation_config.eos_token_id == [2, 7, 9]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 64


def refused(folder, windows, tmp_path, words, **options):
    call = {
        "method": "wanda",
        "sparsity": 0.5,
        "out": tmp_path / "out",
        "progress": False,
        **options,
    }
    with pytest.raises(sl.SparselabError, match=words):
        sl.prune(folder, windows, **call)


def test_missing_shard(folder, windows, tmp_path):
    sorted(folder.glob("*.safetensors"))[1].unlink()
    refused(folder, windows, tmp_path, "is missing")


def test_broken_shard(folder, windows, tmp_path):
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, windows, tmp_path, "is broken")


def test_wrong_index(folder, windows, tmp_path):
    content = json.loads((folder / INDEX).read_text())
    files = sorted(set(content["weight_map"].values()))
    key = next(key for key, file in content["weight_map"].items() if file == files[0])
    content["weight_map"][key] = files[1]
    (folder / INDEX).write_text(json.dumps(content))
    refused(folder, windows, tmp_path, "and it is not")


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": []}'])
def test_broken_index(folder, windows, tmp_path, content):
    (folder / INDEX).write_text(content)
    refused(folder, windows, tmp_path, "index.json is broken")


def test_no_tokenizer(folder, windows, tmp_path):
    (folder / "tokenizer.json").unlink()
    refused(folder, windows, tmp_path, "the tokenizer's files")


def test_packed(folder, windows, tmp_path):
    model, _ = sl.load(folder)
    sl.save(model, sl.Report({}), tmp_path / "packed", packed=True)
    refused(tmp_path / "packed", windows, tmp_path, "is packed")


def test_missing_tensor(folder, windows, tmp_path):
    content = weights(folder)
    key = next(key for key in content if "q_proj.weight" in key)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(
        {name: value for name, value in content.items() if name != key},
        folder / "model.safetensors",
    )
    refused(folder, windows, tmp_path, "hold no tensor")


def test_another_shape(folder, windows, tmp_path):
    file = sorted(folder.glob("*.safetensors"))[-1]
    content = load_file(file)
    key = next(iter(content))
    save_file({**content, key: content[key][:1].clone()}, file)
    refused(folder, windows, tmp_path, "do not belong together")


def test_nan_in_a_late_block(folder, windows, tmp_path):
    content = weights(folder)
    key = next(key for key in content if ".3." in key and "q_proj.weight" in key)
    content[key][0, 0] = torch.nan
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, windows, tmp_path, "NaN")


def test_out_is_needed_new_and_writable(folder, windows, tmp_path):
    refused(folder, windows, tmp_path, "say where", out=None)
    (tmp_path / "there").mkdir()
    refused(folder, windows, tmp_path, "exists already", out=tmp_path / "there")
    (tmp_path / "file").write_text("")
    refused(folder, windows, tmp_path, "cannot be written", out=tmp_path / "file" / "out")


def test_in_memory_options(folder, windows, tmp_path):
    model, _ = sl.load(folder)
    with pytest.raises(sl.SparselabError, match="sl.save"):
        sl.prune(model, windows, method="wanda", sparsity=0.5, out=tmp_path / "out")
    refused(folder, windows, tmp_path, "global", method=sl.Magnitude(scope="global"))
    refused(folder, windows, tmp_path, "offload", offload="moon")


def test_full_disk(folder, windows, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(streaming, "save_file", full)
        refused(folder, windows, tmp_path, "is full")
    assert not list(tmp_path.glob("out.part/*.unfinished"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1000))
    shutil.rmtree(tmp_path / "out.part")
    refused(folder, windows, tmp_path, "MiB free")
    assert not (tmp_path / "out.part").exists()


def test_prefix_left_out(tmp_path, windows):
    """Some checkpoints of the base model leave 'model.' out."""
    folder = tmp_path / "model"
    model = tiny_opt()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    content = {
        key.removeprefix("model."): value
        for key, value in load_file(folder / "model.safetensors").items()
    }
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
    expected = dict(tiny_opt().state_dict())
    opened = Checkpoint(folder)
    names = {
        key: value
        for key, value in opened.skeleton(None).state_dict().items()
        if key.endswith("fc1.weight")
    }
    read = opened.read(names)
    assert len(read) == 2 and all(torch.equal(value, expected[key]) for key, value in read.items())


@pytest.mark.parametrize("place", ["cpu", "disk"])
@pytest.mark.parametrize("targets", ["dense-block", "dense-stream"])
def test_where_activations_wait_does_not_matter(windows, place, targets, monkeypatch):
    results = []
    for offload in ("device", place):
        model = tiny_llama()
        if offload == "cpu":  # as if the device were another
            monkeypatch.setattr(ActivationStore, "_room", lambda self, like: torch.empty_like(like))
            monkeypatch.setattr(
                ActivationStore,
                "keep",
                lambda self, new, old=None: (
                    self._room(new) if old is None or old is new else old
                ).copy_(new),
            )
        sl.prune(
            model,
            windows,
            method="sparsegpt",
            sparsity=0.5,
            targets=targets,
            offload=offload,
            progress=False,
        )
        results.append(model.state_dict())
    same_all = all(torch.equal(results[0][key], results[1][key]) for key in results[0])
    assert same_all


def test_shelf_chooses_by_size(monkeypatch):
    model = tiny_opt()
    for free, place in ((1e9, "device"), (1e3, "disk")):
        monkeypatch.setattr("sparselab.runtime.offload.free_bytes", lambda _, free=free: free)
        assert ActivationStore.choose("auto", model, 1000).place == place


def test_header(folder):
    file = sorted(folder.glob("*.safetensors"))[0]
    with safe_open(file, "pt") as opened:
        assert tensors_in(file) == list(opened.keys())


def test_other_batches_have_other_bits_and_are_refused(folder, windows, monkeypatch):
    call = break_off(monkeypatch, 1, folder, windows, method="wanda")
    with pytest.raises(
        sl.SparselabError, match="interrupted run with batch = None, and this one has 1"
    ):
        sl.prune(folder, windows, batch=1, **call)
    sl.prune(folder, windows, **call)
