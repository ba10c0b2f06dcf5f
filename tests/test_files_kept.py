"""Results in files: old or new at every moment, one writer at a time, no litter, and one sentence
where the system refuses."""

import errno
import inspect
import io
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import TINY, break_off, stored, tiny_llama, weights
from safetensors.torch import load_file, save_file

import sparselab as sl
from sparselab.__main__ import main
from sparselab.engine import activations, fisher, reconstruction, sources
from sparselab.engine.activations import CalibrationActivations
from sparselab.models import blockwise
from sparselab.runtime import distributed, files
from sparselab.runtime.memory import is_out_of_memory

SMALL = "prune --method wanda --samples 2 --seqlen 16 --windows 2 --layers 0:1 --out".split()
CALL = {"method": "wanda", "sparsity": 0.5, "progress": False}


@pytest.fixture
def folder(tmp_path):
    return stored(tmp_path / "model", tiny_llama(num_hidden_layers=4), max_shard_size="30KB")


@pytest.fixture
def windows():
    return torch.randint(2, 60, (6, 16), generator=torch.Generator().manual_seed(0))


def same(a, b):
    a, b = weights(a), weights(b)
    return {*a} == {*b} and all(torch.equal(a[key], b[key]) for key in a)


def names(folder):
    return sorted(os.listdir(folder))


def refused(words, work):
    with pytest.raises(sl.SparselabError, match=words):
        work()


# A save is old or new.


@pytest.fixture
def target(tmp_path):
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "precious").write_text("the only copy")
    return tmp_path / "pruned"


@pytest.mark.parametrize("exchange", [True, False])
def test_an_overwritten_folder_is_replaced_whole(target, exchange, monkeypatch):
    if not exchange:
        monkeypatch.setattr(files, "_renameat2", lambda *_: False)
    sl.save(tiny_llama(), sl.Report({}), target, overwrite=True)
    assert not (target / "precious").exists() and (target / "model.safetensors").exists()
    assert names(target.parent) == ["pruned"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("number", [1, 2])
def test_a_renaming_that_fails_leaves_the_old_folder(target, error, number, monkeypatch):
    """Without the call that exchanges names: at the first and at the second renaming."""
    monkeypatch.setattr(files, "_renameat2", lambda *_: False)
    rename, calls = files.Path.rename, []

    def fails(self, to):
        calls.append(to)
        if len(calls) == number:
            raise error
        return rename(self, to)

    monkeypatch.setattr(files.Path, "rename", fails)
    with pytest.raises((KeyboardInterrupt, sl.SparselabError)):
        sl.save(tiny_llama(), sl.Report({}), target, overwrite=True)
    assert names(target) == ["precious"] and names(target.parent) == ["pruned"]


def test_a_link_is_replaced_and_what_it_points_to_stays(target):
    link = target.with_name("link")
    link.symlink_to(target)
    sl.save(tiny_llama(), sl.Report({}), link, overwrite=True)
    assert not link.is_symlink() and names(target) == ["precious"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_appears_during_a_save_is_not_deleted(tmp_path, overwrite, monkeypatch):
    target, write = tmp_path / "pruned", sl.Report.save

    def another(self, file):
        target.mkdir()
        (target / "log").write_text("another's")
        write(self, file)

    monkeypatch.setattr(sl.Report, "save", another)
    refused(
        "changed|appeared",
        lambda: sl.save(tiny_llama(), sl.Report({}), target, overwrite=overwrite),
    )
    assert names(target) == ["log"] and names(tmp_path) == ["pruned"]


def test_a_file_that_appears_in_the_old_folder_is_not_deleted(target, monkeypatch):
    write = sl.Report.save

    def another(self, file):
        (target / "log").write_text("another's")
        write(self, file)

    monkeypatch.setattr(sl.Report, "save", another)
    refused("changed", lambda: sl.save(tiny_llama(), sl.Report({}), target, overwrite=True))
    assert names(target) == ["log", "precious"]


def test_the_next_save_removes_what_a_killed_one_left(tmp_path):
    (tmp_path / ".pruned.part-dead").mkdir()
    (tmp_path / ".pruned.part-dead" / "model.safetensors").write_text("half")
    alive = files.lock_folder(tmp_path / ".pruned.part-alive")  # a save that goes on
    (tmp_path / ".other.part-dead").mkdir()
    sl.save(tiny_llama(), sl.Report({}), tmp_path / "pruned")
    os.close(alive)
    assert names(tmp_path) == [".other.part-dead", ".pruned.part-alive", "pruned"]


# One run at a time.


def test_a_second_run_to_the_same_folder_is_refused(folder, windows, tmp_path):
    held = files.lock_folder(tmp_path / "out.part")
    refused(
        "another run is writing", lambda: sl.prune(folder, windows, out=tmp_path / "out", **CALL)
    )
    os.close(held)
    sl.prune(folder, windows, out=tmp_path / "out", **CALL)
    assert not (tmp_path / "out.part").exists()


def test_a_lock_dies_with_its_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path;"
        " from sparselab.runtime.files import lock_folder;"
        " print(lock_folder(Path(sys.argv[1])), flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "part"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().strip().isdecimal()
    assert files.lock_folder(tmp_path / "part") is None
    process.kill()
    process.wait()
    handle = files.lock_folder(tmp_path / "part")
    assert handle is not None and names(tmp_path / "part") == []
    os.close(handle)


def test_a_run_that_fails_lets_go_of_its_folder(folder, windows, tmp_path, monkeypatch):
    break_off(monkeypatch, 2, folder, windows)
    sl.prune(folder, windows, out=tmp_path / "out", **CALL)
    assert (tmp_path / "out").exists()


# A killed run: its litter, its bits.


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_litter_of_a_kill_inside_a_shard(folder, windows, tmp_path, monkeypatch, blocks):
    """safetensors writes to .tmpXXXXXX and renames."""
    whole = tmp_path / "whole"
    sl.prune(folder, windows, out=whole, **CALL)
    break_off(monkeypatch, blocks, folder, windows)
    for name in (".tmpAb1xYz", "model-00009.unfinished", "sparselab-manifest.json.unfinished"):
        (tmp_path / "out.part" / name).write_text("half")
    sl.prune(folder, windows, out=tmp_path / "out", **CALL)
    assert same(tmp_path / "out", whole) and names(tmp_path / "out") == names(whole)


def test_litter_of_a_kill_at_the_very_last_step(folder, windows, tmp_path):
    sl.prune(folder, windows, out=tmp_path / "out", **CALL)
    (tmp_path / "out" / sources.MANIFEST).write_text("{}")  # the renaming was done
    refused("exists already", lambda: sl.prune(folder, windows, out=tmp_path / "out", **CALL))
    assert not (tmp_path / "out" / sources.MANIFEST).exists()


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("damage", ["a bit of a weight", "a bit of the header", "dtype", "shape"])
def test_a_finished_shard_that_changed_is_found(
    folder, windows, tmp_path, monkeypatch, number, damage
):
    break_off(monkeypatch, 3, folder, windows)
    file = tmp_path / "out.part" / f"model-{number:05d}-of-00005.safetensors"
    if damage.startswith("a bit"):
        content = bytearray(file.read_bytes())
        content[-3 if damage.endswith("weight") else 20] ^= 0x10
        file.write_bytes(content)
    else:
        tensors = load_file(file)
        key = next(key for key, value in tensors.items() if value.ndim == 2)
        changed = tensors[key].half() if damage == "dtype" else tensors[key][:4].clone()
        save_file(tensors | {key: changed}, file, metadata={"format": "pt"})
    refused(
        f"{file.name} is broken", lambda: sl.prune(folder, windows, out=tmp_path / "out", **CALL)
    )


def _change_manifest(content, damage):
    blocks = content["blocks"]
    if damage == "settings":
        content["settings"] = []
    elif damage == "block null":
        content["blocks"] = [None] * len(blocks)
    elif damage == "batch":
        content["batch"] = "x"
    elif damage == "shards":
        content["shards"] = {}
    elif damage == "rows":
        blocks[0].pop("rows")
    elif damage == "batches":
        blocks[0]["batches"] = 6
    elif damage == "windows":
        blocks[0]["batches"][0].pop()
    elif damage == "shape":
        blocks[0]["rows"][0].pop("shape")
    elif damage == "field":
        blocks[1]["rows"][0]["another"] = 1
    elif damage == "epochs":
        blocks[1]["epochs"] = [3]


@pytest.mark.parametrize(
    "damage", "settings,block null,batch,shards,rows,batches,windows,shape,field,epochs".split(",")
)
def test_a_manifest_of_another_form_is_named(folder, windows, tmp_path, monkeypatch, damage):
    break_off(monkeypatch, 3, folder, windows)
    file = tmp_path / "out.part" / sources.MANIFEST
    content = json.loads(file.read_text())
    _change_manifest(content, damage)
    file.write_text(json.dumps(content))
    refused(
        f"{file.name} is broken .* Delete",
        lambda: sl.prune(folder, windows, out=tmp_path / "out", **CALL),
    )


@pytest.mark.parametrize("phase", ["_advance_part", "_gather"])
def test_windows_halved_in_the_middle_stay_halved_for_a_resumed_run(
    folder, windows, tmp_path, monkeypatch, phase
):
    """Memory runs out once, in the second block; the resumed run has memory enough, and takes as
    many windows at once as the interrupted one did."""
    sizes = []

    def short_of_memory_once(patch):
        holder = CalibrationActivations if phase == "_advance_part" else activations
        work, calls = getattr(holder, phase), []

        def fails(*arguments):
            part = arguments[0].parts[arguments[1]] if phase == "_advance_part" else arguments[3]
            calls.append(len(part.ids))
            if calls[-1] == 6 and calls.count(6) == 2:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
            return work(*arguments)

        patch.setattr(holder, phase, fails)

    finish = sources.StreamedBlocks.finish

    def watched(self, layer, report, batches):
        sizes.append(list(batches))
        finish(self, layer, report, batches)

    monkeypatch.setattr(sources.StreamedBlocks, "finish", watched)
    with monkeypatch.context() as patch:
        short_of_memory_once(patch)
        sl.prune(folder, windows, out=tmp_path / "whole", **(CALL | {"method": "sparsegpt"}))
    unbroken, sizes[:] = list(sizes), []
    with monkeypatch.context() as patch:
        short_of_memory_once(patch)
        break_off(monkeypatch, 3, folder, windows, method="sparsegpt")
    sizes.clear()
    sl.prune(folder, windows, out=tmp_path / "out", **(CALL | {"method": "sparsegpt"}))
    assert [3, 3] in unbroken and sizes == unbroken
    assert same(tmp_path / "out", tmp_path / "whole")


PHASES = {  # where memory runs out, and of how many windows at once that is told
    "capture": (blockwise.Activations, "_capture", lambda self, ids: len(ids)),
    "gradients": (fisher, "_back", lambda block, part, *_: len(part.ids)),
    "collect": (activations, "_gather", lambda block, original, sinks, part, *_: len(part.ids)),
    "replay": (blockwise.Activations, "_advance_part", lambda self, k, *_: self.batches[k]),
    "descent": (reconstruction.Tuner, "_error", lambda self, rows, _: len(rows)),
}


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("phase", PHASES)
def test_a_run_whose_windows_were_halved_goes_on_with_the_halves(
    tmp_path, windows, monkeypatch, phase, family
):
    """Memory runs out once, in the first block or before it, and a run is killed two blocks later;
    the resumed one has memory enough, and makes the bits of the unbroken one. OPT's embeddings go
    through a linear, whose bits are those of its batch."""
    sizes = {"word_embed_proj_dim": 16} if family == "opt" else {}
    folder = stored(tmp_path / "model", TINY[family](num_hidden_layers=4, **sizes))
    call = {
        "method": "sparsegpt",
        "batch": 6,
        "fisher": phase == "gradients",
        "divide": phase == "gradients",
        "reconstruct": sl.Reconstruction("sublayer", epochs=1, batch=5),
    }
    holder, name, count = PHASES[phase]
    work, finish, captured = getattr(holder, name), sources.StreamedBlocks.finish, []
    found = []

    def watched(self, layer, report, batches):
        found.append(list(batches))
        captured.append(self.captured or self.manifest["captured"][0])
        finish(self, layer, report, batches)

    def short_of_memory_once(patch):
        thrown = []

        def fails(*arguments):
            if not thrown and count(*arguments) > 3:
                thrown.append(True)
                raise torch.OutOfMemoryError("CUDA out of memory")
            return work(*arguments)

        patch.setattr(holder, name, fails)

    monkeypatch.setattr(sources.StreamedBlocks, "finish", watched)
    with monkeypatch.context() as patch:
        short_of_memory_once(patch)
        sl.prune(folder, windows, out=tmp_path / "whole", **(CALL | call))
    unbroken, found[:] = list(found), []
    with monkeypatch.context() as patch:
        short_of_memory_once(patch)
        break_off(monkeypatch, 3, folder, windows, **call)
    found.clear()
    sl.prune(folder, windows, out=tmp_path / "out", **(CALL | call))
    assert found == unbroken == ([[6]] if phase == "gradients" else [[3, 3]]) * 4
    assert {*captured} == {3 if phase == "capture" else 6}
    assert same(tmp_path / "out", tmp_path / "whole")


def test_what_one_process_lacks_all_make_anew(folder, tmp_path, monkeypatch):
    """Killed while some had written their gradients and others had not: they are made together, or
    those that lack them would wait for ever."""
    source, made = sources.StreamedBlocks(folder, tmp_path / "out", None, torch.device("cpu")), []
    source.part.mkdir()

    def make():
        made.append(torch.ones(2) * len(made))
        return {"of all": made[-1]}

    for times in (1, 1):
        found = source.kept("gradients", make)
        assert len(made) == times and torch.equal(found["of all"], made[-1])
    monkeypatch.setattr(distributed, "all_reduce_scalar", lambda mine: mine + 1)  # another's
    assert torch.equal(source.kept("gradients", make)["of all"], torch.ones(2)) and len(made) == 2
    source.close()


# What the system refuses.


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("dangling", "exists already"),
        ("n" * 252, "File name too long"),
        ("n" * 300, "File name too long"),
        ("a\0b", "NUL"),
        ("file/out", "Not a directory"),
    ],
)
def test_a_result_that_cannot_have_its_name(folder, windows, tmp_path, out, words):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    target = f"{tmp_path}/{out}"
    refused(words, lambda: sl.prune(folder, windows, out=target, **CALL))
    words = "exists|" + words
    refused(words, lambda: sl.save(tiny_llama(), sl.Report({}), target))
    assert names(tmp_path) == ["dangling", "file", "model"]


def test_an_empty_name_is_refused(folder, windows):
    refused("say where", lambda: sl.prune(folder, windows, out="", **CALL))


def test_a_limit_of_the_size_of_files(tmp_path):
    stored(tmp_path / "model", tiny_llama(hidden_size=128, intermediate_size=256))
    code = """
import resource, signal, sys, torch, sparselab as sl
folder, out = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model, _ = sl.load(folder)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
windows = torch.randint(2, 60, (6, 16))
for work in (
    lambda: sl.prune(folder, windows, method="wanda", sparsity=0.5, out=out, progress=False),
    lambda: sl.save(model, sl.Report({}), out),
    lambda: sl.save(model, sl.Report({}), out, packed=True),
):
    try:
        work()
    except sl.SparselabError as error:
        print(error)
"""
    run = [sys.executable, "-c", code, tmp_path / "model", tmp_path / "out"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all("File too large. Raise the limit" in line for line in lines)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("place", ["missing", "file"])
def test_a_scratch_folder_that_is_none(tmp_path, windows, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSELAB_SCRATCH", str(tmp_path / place))
    model = tiny_llama()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    refused("Set SPARSELAB_SCRATCH", lambda: sl.prune(model, windows, offload="disk", **CALL))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_full_disk_under_the_scratch_folder(windows, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    refused(
        "the disk is full.*offload='cpu'",
        lambda: sl.prune(tiny_llama(), windows, offload="disk", **CALL),
    )


# Standard output that fails.


class Latin(io.TextIOWrapper):
    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding)


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


OUTPUTS = {
    "pipe": (closed_pipe, 0),
    "full": (lambda: open("/dev/full", "w", buffering=1), 1),
    "ascii": (lambda: Latin("ascii"), 0),
    "latin-2": (lambda: Latin("iso8859-2"), 0),
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
@pytest.mark.parametrize("kind", OUTPUTS)
def test_no_output_loses_a_model(kind, tmp_path, monkeypatch, capsys):
    make, status = OUTPUTS[kind]
    out = tmp_path / "pruned"
    monkeypatch.setattr(sys, "stdout", make())
    assert main([*SMALL, str(out)]) == status
    monkeypatch.undo()
    assert (out / "model.safetensors").exists()
    assert ("was not written: No space left" in capsys.readouterr().err) == (status == 1)


def test_room_for_the_result_is_looked_at_before_pruning(tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    assert main([*SMALL, str(tmp_path / "pruned")]) == 1
    printed = capsys.readouterr()
    assert "MiB free" in printed.err and "dense:" not in printed.out


# Found by a reader of the code.


def test_the_part_folder_as_out_keeps_its_manifest(folder, windows, tmp_path, monkeypatch):
    break_off(monkeypatch, 2, folder, windows)
    part = tmp_path / "out.part"
    refused("exists already", lambda: sl.prune(folder, windows, out=part, **CALL))
    assert (part / sources.MANIFEST).exists()
    sl.prune(folder, windows, out=tmp_path / "out", **CALL)


def test_an_old_folder_put_aside_by_a_killed_save_gets_its_name_back(target):
    """Where the system cannot exchange names: killed between the two renamings."""
    target.rename(files.aside_of(target))
    refused("exists already", lambda: sl.save(tiny_llama(), sl.Report({}), target))
    assert names(target) == ["precious"] and names(target.parent) == ["pruned"]


@pytest.mark.parametrize("now", [[1] * 8, [4, 4], [3, 5], [8], [2, 2, 4]])
@pytest.mark.parametrize("then", [[8], [4, 4], [2, 2, 2, 2], [5, 3]])
@pytest.mark.parametrize("dense", [False, True])
def test_windows_are_regrouped_and_none_is_lost(now, then, dense):
    model = tiny_llama()
    ids = torch.randint(2, 60, (8, 16), generator=torch.Generator().manual_seed(0))
    activations = CalibrationActivations(model, ids, 8, dense=dense)
    whole = activations.parts[0].hidden.clone()
    activations.cut(now)
    activations.cut(then)
    assert activations.batches == then
    for name in ("ids", "hidden", "dense") if dense else ("ids", "hidden"):
        found = torch.cat([getattr(part, name) for part in activations.parts])
        assert torch.equal(found, ids if name == "ids" else whole)
    activations.replay(sl.blocks_of(model)[0])


def test_a_hub_id_is_fetched_with_what_the_library_takes(tmp_path, folder, windows, monkeypatch):
    import huggingface_hub

    signature = inspect.signature(huggingface_hub.snapshot_download)

    def snapshot(*args, **kwargs):
        signature.bind(*args, **kwargs)
        assert kwargs["ignore_patterns"] == "*/*"
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    sl.prune("someone/model", windows, out=tmp_path / "out", **CALL)
    assert (tmp_path / "out").exists()


def test_settings_of_generation_that_a_user_changed_are_saved(tmp_path):
    model = tiny_llama()
    model.generation_config.temperature = 0.5
    for packed in (False, True):
        out = sl.save(model, sl.Report({}), tmp_path / str(packed), packed=packed)
        found = json.loads((out / "generation_config.json").read_text())
        assert found["temperature"] == 0.5 == model.generation_config.temperature


def test_weights_may_be_read_by_whom_the_umask_allows(folder, windows, tmp_path):
    mask = os.umask(0o022)
    try:
        sl.prune(folder, windows, out=tmp_path / "out", **CALL)
        sl.save(tiny_llama(), sl.Report({}), tmp_path / "saved")
    finally:
        os.umask(mask)
    for file in [*tmp_path.glob("out/*.safetensors"), *tmp_path.glob("saved/*.safetensors")]:
        assert file.stat().st_mode & 0o777 == 0o644, file


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_output_that_the_shell_closed(stream, monkeypatch):
    monkeypatch.setattr(sys, stream, None)
    assert main(["plan", "--samples", "2", "--seqlen", "16"]) == 0


def test_errors_of_memory_are_not_those_of_a_disk():
    for error in (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), RuntimeError("x (3)")):
        with pytest.raises(type(error)), files.naming_file_errors("it cannot be", "Do."):
            raise error
    for words in ("CUDA error: out of memory\nCUDA kernel", "cuBLAS: CUBLAS_STATUS_ALLOC_FAILED"):
        assert is_out_of_memory(RuntimeError(words))
