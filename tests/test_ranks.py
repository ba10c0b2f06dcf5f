"""Several processes find the masks that one finds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import stored, tiny_llama, weights

import sparselab as sl
from sparselab.__main__ import main
from sparselab.runtime import distributed


def run(processes, out, *options):
    call = [
        "prune",
        "--model",
        "opt-mini",
        "--sparsity",
        "0.5",
        "--samples",
        "6",
        "--seqlen",
        "64",
        "--windows",
        "4",
        "--layers",
        "0:2",
        "--out",
        str(out),
        *options,
    ]
    if processes == 1:
        assert main(call) == 0
        return weights(out)
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *start, "-m", "sparselab", *call],
        check=True,
        env=environment,
        timeout=300,
        stdout=subprocess.DEVNULL,
    )
    return weights(out)


@pytest.mark.parametrize(
    "method, stream, agree", [("sparsegpt", False, 0.99), ("sparsellm", True, 0.95)]
)
def test_two_processes_find_the_same_masks(tmp_path, method, stream, agree):
    """But for sums in another order, which ADMM's many steps carry further where tokens are few:
    of 384 here, for up to 1,024 inputs. Where one process has two threads and each of two has one,
    SparseGPT keeps 99.8 % of a mask in the second block, SparseLLM 97.7 % (six settings of
    `tools.machines`)."""
    options = ["--method", method, *(["--stream"] if stream else [])]
    one, two = (run(processes, tmp_path / str(processes), *options) for processes in (1, 2))
    pruned = [
        key for key, value in one.items() if (value == 0).float().mean() > 0.4 and value.ndim == 2
    ]
    assert len(pruned) == 12 and {*one} == {*two}
    for key in pruned:
        assert ((one[key] == 0) == (two[key] == 0)).float().mean() > agree, key


TUNED = {"unit": "sublayer", "rate": 5e-3, "epochs": 3}
CALLS = {  # by name: windows, and what is done with them
    "sparsellm": (6, {"method": "sparsellm"}),
    "guided": (6, {"method": sl.ADMM.guided()}),
    # One step a pass over all windows: the sum over the processes is the gradient of one.
    "tuned": (6, {"reconstruct": sl.Reconstruction(**TUNED, batch=6, held_out=0.0)}),
    "uneven": (
        5,
        {"fisher": True, "divide": True}
        | {"reconstruct": sl.Reconstruction(**TUNED, batch=1, held_out=0.34)},
    ),
}
TOGETHER = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import test_ranks
from sparselab.runtime import distributed
torch.set_num_threads(1)
with distributed.group():
    found = {name: test_ranks.prune_tiny(name) for name in test_ranks.CALLS}
    torch.save(found, f"{sys.argv[2]}-{distributed.rank()}.pt")
"""


def prune_tiny(name):
    """One of the calls on a tiny model: its tensors, the rows of the reconstruction, the shares."""
    count, options = CALLS[name]
    windows = torch.randint(4, 128, (count, 32), generator=torch.Generator().manual_seed(1))
    model = tiny_llama()
    call = {"method": "sparsegpt", "sparsity": 0.5, "progress": False, **options}
    report = sl.prune(model, windows, **call)
    found = {"rows": report.reconstructions, "shares": report.settings.get("shares", {})}
    return {"state": model.state_dict(), "error": report.error, **found}


@pytest.fixture(scope="module")
def found_by(tmp_path_factory):
    """What one and three processes make of all the calls; all of a group have the same."""
    folder = tmp_path_factory.mktemp("ranks")
    script, out = folder / "script.py", folder / "found"
    script.write_text(TOGETHER)
    start = ["torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    call = [sys.executable, "-m", *start, script, Path(__file__).parent, out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(call, check=True, env=environment, timeout=300, stdout=subprocess.DEVNULL)
    first, *others = [torch.load(f"{out}-{rank}.pt") for rank in range(3)]
    for other in others:
        for name in CALLS:
            state = other[name]["state"]
            assert all(torch.equal(first[name]["state"][k], v) for k, v in state.items())
    return {1: {name: prune_tiny(name) for name in CALLS}, 3: first}


@pytest.mark.parametrize("name, agree", [("sparsellm", 0.85), ("guided", 0.85), ("tuned", 0.99)])
def test_three_processes_find_what_one_does(name, agree, found_by):
    """But for sums in another order: of 192 tokens one weight beside a threshold is enough for the
    later masks of SparseLLM and ADMM, as it is where one process takes other batches (of two
    windows instead of one: 0.92 to 1 of the masks, by processor)."""
    one, more = found_by[1][name], found_by[3][name]
    for linear in sl.linears_of(tiny_llama()):
        mine, other = (each["state"][f"{linear}.weight"] for each in (one, more))
        assert ((mine == 0) == (other == 0)).float().mean() > agree, linear
        assert name != "tuned" or (mine - other).norm() < 0.02 * mine.norm(), linear
    assert more["error"] == pytest.approx(one["error"], rel=0.01)
    for share, expected in one["shares"].items():
        assert more["shares"][share] == pytest.approx(expected, abs=0.01)
    for row, expected in zip(more["rows"], one["rows"], strict=True):
        assert row["error"] == pytest.approx(expected["error"], rel=0.02)
        assert row["error"] < row["start"]


@pytest.mark.parametrize("processes", [1, 3])
def test_processes_of_unlike_shares_weigh_divide_and_tune(processes, found_by):
    """Of five windows one has more, and so more steps to go, or none that is held out."""
    one, found = found_by[1]["uneven"], found_by[processes]["uneven"]
    for name, share in one["shares"].items():
        assert found["shares"][name] == pytest.approx(share, abs=0.02)
    assert len(found["rows"]) == 4
    assert all(row["error"] <= row["start"] for row in found["rows"])
    assert sum(row["error"] < row["start"] for row in found["rows"]) >= 2


def test_without_torchrun_nothing_happens():
    x = torch.ones(3)
    distributed.all_reduce(x, None)
    assert (
        distributed.size() == 1
        and distributed.rank() == 0
        and distributed.all_reduce_scalar(5) == 5
        and x.sum() == 3
    )
    work, taken = {"a": lambda: 1, "b": lambda: 2}, {}
    distributed.run_divided(work, taken.__setitem__)
    assert taken == {"a": 1, "b": 2} and not work
    assert torch.equal(
        distributed.shard_windows(torch.arange(6).view(3, 2)), torch.arange(6).view(3, 2)
    )


def test_too_few_windows(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 4)
    with pytest.raises(sl.SparselabError, match="each needs one"):
        distributed.shard_windows(torch.zeros(3, 8, dtype=torch.long))


@pytest.mark.parametrize(
    "variables",
    [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "0"}, {"WORLD_SIZE": "x", "RANK": "0"}],
)
def test_an_environment_that_only_seems_to_be_torchruns(variables, monkeypatch, capsys):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["plan"]) == 1
    assert "Start them with torchrun, or unset WORLD_SIZE" in capsys.readouterr().err


HALVED = """
import json, sys, torch, sparselab as sl
sys.path.insert(0, sys.argv[1])
from conftest import Killed
from sparselab.engine import sources
from sparselab.models.blockwise import Activations
from sparselab.runtime import distributed
torch.set_num_threads(1)
folder, out, ends, short = sys.argv[2:]
windows = torch.randint(4, 128, (12, 16), generator=torch.Generator().manual_seed(1))
advance, finish, sizes = Activations._advance_part, sources.StreamedBlocks.finish, []

def fails(self, place, block, original):
    if short == "True" and self.batches[place] == 6 and distributed.rank() == 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return advance(self, place, block, original)

def watched(self, layer, report, batches):
    if layer == int(ends):
        raise Killed
    sizes.append(batches)
    finish(self, layer, report, batches)

Activations._advance_part, sources.StreamedBlocks.finish = fails, watched
with distributed.group():
    try:
        sl.prune(
            folder, windows, method="sparsegpt", sparsity=0.5, out=out, batch=6, progress=False
        )
    except Killed:
        distributed.barrier()
    with open(f"{out}-{distributed.rank()}.json", "w") as file:
        json.dump(sizes, file)
"""


def test_each_process_goes_on_with_its_own_batches(tmp_path):
    """Memory runs out in the second process alone; both are killed two blocks later, and the
    resumed ones, which have memory enough, make the bits of the unbroken run."""
    script = tmp_path / "script.py"
    script.write_text(HALVED)
    folder = stored(tmp_path / "model", tiny_llama(num_hidden_layers=4))

    def start(out, ends, short):
        call = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
        call += [Path(__file__).parent, folder, tmp_path / out, ends, short]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, *map(str, call)],
            check=True,
            env=environment,
            timeout=200,
            stdout=subprocess.DEVNULL,
        )
        return [json.loads((tmp_path / f"{out}-{rank}.json").read_text()) for rank in (0, 1)]

    unbroken = start("whole", -1, True)
    assert unbroken == [[[6]] * 4, [[3, 3]] * 4]
    assert start("out", 2, True) == [sizes[:2] for sizes in unbroken]
    assert start("out", -1, False) == unbroken
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert {*one} == {*two} and all(torch.equal(one[key], two[key]) for key in one)
