"""Random configurations, kills, memory limits and hyper-parameters, for as long as you like.

    python bench/soak.py [--minutes 30] [--seed 0] [--out bench/soak.md]

Four kinds of trials, in turn, each with a seed of its own; `--only SEED` repeats one of them.
`config`: a tiny model of a random family, method, hyper-parameters (some that make no sense),
sparsity, layers and modules: pruned with exact counts, finite and nothing else touched; or one
sentence and an unchanged model. `kill`: a streamed run, killed with -9 at random moments, half of
them while a file is being written, and repeated until it ends: the bits and the list of files of an
unbroken run. `save`: a save killed at a random moment, over an older one: the old or the new model,
and no litter after the next save. `memory`: a streamed run or one in memory under a limit of the
address space: it ends, or says one sentence.
"""

import argparse
import collections
import datetime
import os
import platform
import random
import resource
import signal
import subprocess
import tempfile
import threading
import time
import traceback
from pathlib import Path

import torch
import tqdm
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

import sparselab as sl
from sparselab.experiments.results import machine

FAMILIES = ("opt", "llama", "mistral", "qwen2")
METHODS = {
    "Magnitude": {"scope": ["matrix", "global", "row"]},
    "Wanda": {"per": ["row", "matrix"]},
    "SparseGPT": {"damp": [0.01, 0.1, 1e300, float("nan"), -1, "x"], "block": [4, 128, 0, 1.5]},
    "DSnoT": {"max_cycles": [0, 5, 1.5], "threshold": [0.1, float("nan")]},
    "Swaps": {"candidates": [1, 8, 0], "max_cycles": [3, None]},
    "ADMM": {"steps": [1, 8, -1, float("inf")]},
    "SparseLLM": {"epochs": [1, 2, 0, 1.5], "alpha": [0.1, 5, float("nan")], "ridge": [0.01, -1]},
}
SPARSITIES = [0, 0.3, 0.5, 0.77, 0.999, "2:4", "4:8", "1:4", "3:4", 1.0, -0.1, float("nan"), "4:2"]
GRADIENTS = {  # what a killed run does beside its method
    "": {},
    ", guided": {"fisher": True, "divide": True, "targets": "dense-stream"},
    ", tuned": {"reconstruct": sl.Reconstruction(epochs=1, batch=2, unit="sublayer")},
}


class Fault(Exception):
    """What must not happen."""


def tiny_model(rng: random.Random, family: str, width: int = 32, blocks: int = 2):
    torch.manual_seed(rng.randrange(2**31))
    heads = rng.choice([2, 4])
    shape = {
        "vocab_size": 128,
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([1, heads]),
        "intermediate_size": width + 16 * rng.randrange(4),
        "ffn_dim": width + 16 * rng.randrange(4),
        "word_embed_proj_dim": width,
        "max_position_embeddings": 64,
        "tie_word_embeddings": rng.random() < 0.5,
    }
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**shape))
    return model.eval().to(rng.choice([torch.float32, torch.bfloat16]))


def tiny_windows(rng: random.Random, count: int = 6, length: int = 16):
    draw = torch.Generator().manual_seed(rng.randrange(2**31))
    return torch.randint(4, 128, (count, length), generator=draw)


def write_folder(model, path: Path) -> Path:
    model.save_pretrained(path, max_shard_size="60KB")
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(path)
    return path


def random_call(rng: random.Random) -> dict:
    name = rng.choice([*METHODS])
    options = {
        key: rng.choice(values) for key, values in METHODS[name].items() if rng.random() < 0.4
    }
    call = {"method": (name, options), "sparsity": rng.choice(SPARSITIES), "progress": False}
    if rng.random() < 0.3:
        call["layers"] = rng.choice([[0], [1], range(2), "first half", [7], [-1], 1.5])
    if rng.random() < 0.3:
        call["modules"] = rng.choice([["q_proj"], ["k_proj", "v_proj"], ["nothing"], 5])
    if rng.random() < 0.3:
        call["targets"] = rng.choice(["dense-block", "dense-model", "dense-stream", "sparse"])
    if rng.random() < 0.3:
        call["batch"] = rng.choice([1, 2, 100, 0, 1.5, "4"])
    return call


def prune(model, windows, call: dict, **more):
    """The call, with its method made here: bad hyper-parameters are refused there or at once."""
    name, options = call["method"]
    return sl.prune(model, windows, **{**call, **more, "method": getattr(sl, name)(**options)})


def weights(folder: Path) -> dict:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same(a: dict, b: dict) -> bool:
    return {*a} == {*b} and all(torch.equal(a[key], b[key]) for key in a)


def copy_of(model) -> dict:
    return {key: value.clone() for key, value in model.state_dict().items()}


def config_trial(rng: random.Random, base: Path) -> str:
    model, windows, call = (
        tiny_model(rng, rng.choice([*FAMILIES])),
        tiny_windows(rng),
        random_call(rng),
    )
    before = copy_of(model)
    try:
        report = prune(model, windows, call)
    except sl.SparselabError as error:
        late = "not finite" in str(
            error
        )  # found when a matrix is solved; others are pruned by then
        if not late and not same(copy_of(model), before):
            raise Fault(f"{call}: refused ({error}), and the model has changed") from error
        finite = all(bool(value.isfinite().all()) for value in model.state_dict().values())
        if not finite:
            raise Fault(f"{call}: not finite") from error
        return "refused"
    _check_counts(model, before, report, call)
    return "pruned"


def _check_counts(model, before: dict, report, call: dict) -> None:
    after, chosen = model.state_dict(), {f"{row.name}.weight": row for row in report.rows}
    for key, value in after.items():
        if not value.isfinite().all():
            raise Fault(f"{call}: {key} is not finite")
        if key not in chosen and not torch.equal(value, before[key]):
            raise Fault(f"{call}: {key} was not to be pruned, and has changed")
    pattern = sl.Pattern.parse(call["sparsity"])
    zeros = {key: int((after[key] == 0).sum()) for key in chosen}
    if pattern.m:
        for key in chosen:
            groups = (after[key] == 0).view(-1, pattern.m).sum(1)
            if (groups < pattern.n).any():
                raise Fault(f"{call}: {key} has a group with fewer than {pattern.n} zeros")
    elif call["method"][1].get("scope") != "global":
        for key, row in chosen.items():
            if zeros[key] < int(pattern.sparsity * after[key].numel() * 0.9):
                raise Fault(f"{call}: {key} has {zeros[key]} zeros, {row}")


def in_child(work) -> int:
    """The pid of a child process that does the work; its exit status: 0 done, 3 one sentence, 4 a
    raw error."""
    pid = os.fork()
    if pid:
        return pid
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    status = 4
    try:
        work()
        status = 0
    except sl.SparselabError:
        status = 3
    except BaseException:
        Path(os.environ["SOAK_ERROR"]).write_text(traceback.format_exc())
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """A child's exit status; a negative one is a signal."""
    until = time.perf_counter() + 120
    while time.perf_counter() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise Fault("a run that does not end")


def raw_error() -> str:
    file = Path(os.environ["SOAK_ERROR"])
    return file.read_text()[-1500:] if file.exists() else "killed by a signal"


def kill_trial(rng: random.Random, base: Path) -> str:
    family = rng.choice([*FAMILIES])
    model = tiny_model(rng, family, width=64, blocks=rng.choice([3, 6]))
    folder, windows = write_folder(model, base / "model"), tiny_windows(rng)
    name = rng.choice(["Magnitude", "Wanda", "SparseGPT", "ADMM", "SparseLLM"])
    call = {"method": (name, {}), "sparsity": rng.choice([0.5, 0.77, "2:4"]), "progress": False}
    gradients = rng.choice([*GRADIENTS])
    call |= GRADIENTS[gradients]
    started = time.perf_counter()
    prune(folder, windows, call, out=base / "whole")
    seconds, kills = time.perf_counter() - started, 0
    while not (base / "out").exists():
        pid = in_child(lambda: prune(folder, windows, call, out=base / "out"))
        if kills < 12:
            if rng.random() < 0.5:
                _wait_for_a_write(pid, base / "out.part", rng)
            else:
                time.sleep(rng.random() * seconds)
            os.kill(pid, signal.SIGKILL)
        status = ended(pid)
        kills += status == -signal.SIGKILL
        if status in (3, 4) or (status == 0 and not (base / "out").exists()):
            raise Fault(f"{call}: status {status} after {kills} kills: {raw_error()}")
    if not same(weights(base / "out"), weights(base / "whole")):
        raise Fault(f"{call}: other bits after {kills} kills")
    litter = {*os.listdir(base / "out")} ^ {*os.listdir(base / "whole")}
    if litter - {"sparselab-manifest.json"} or (base / "out.part").exists():
        raise Fault(f"{call}: litter {litter} after {kills} kills")
    return f"{kills} kills of {name}{gradients}"


def _wait_for_a_write(pid: int, part: Path, rng: random.Random) -> None:
    """Until an unfinished file appears there, or two seconds have passed."""
    skip, until = rng.randrange(6), time.perf_counter() + 2
    while (
        time.perf_counter() < until
        and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    ):
        try:
            names = os.listdir(part)
        except FileNotFoundError:
            continue
        if any(name.startswith(".tmp") or name.endswith(".unfinished") for name in names):
            if not skip:
                return
            skip -= 1


def save_trial(rng: random.Random, base: Path) -> str:
    old, new = (tiny_model(rng, "llama", width=128) for _ in range(2))
    packed = rng.random() < 0.5
    sl.save(old, sl.Report({}), base / "model")
    started = time.perf_counter()
    sl.save(new, sl.Report({}), base / "probe", packed=packed)
    seconds = time.perf_counter() - started
    killed = 0
    for _ in range(8):
        pid = in_child(
            lambda: sl.save(new, sl.Report({}), base / "model", overwrite=True, packed=packed)
        )
        time.sleep(1.2 * seconds * rng.random())
        os.kill(pid, signal.SIGKILL)
        status = ended(pid)
        killed += status == -signal.SIGKILL
        if status == 4:
            raise Fault(raw_error())
        names = [name for name in os.listdir(base / "model") if name != "sparselab-report.json"]
        whole = {"config.json", "generation_config.json"} <= {*names}
        if not whole or not any(name.endswith(".safetensors") for name in names):
            raise Fault(f"neither the old nor the new model: {names}")
    sl.save(new, sl.Report({}), base / "model", overwrite=True)
    if litter := {*os.listdir(base)} - {"model", "probe", "error"}:
        raise Fault(f"litter {litter}")
    return f"{killed} kills"


def memory_trial(rng: random.Random, base: Path) -> str:
    model = tiny_model(rng, rng.choice([*FAMILIES]), width=512, blocks=2)
    windows = tiny_windows(rng, count=rng.choice([16, 64]), length=64)
    name = rng.choice(["Magnitude", "Wanda", "SparseGPT", "ADMM", "SparseLLM", "DSnoT"])
    call = {"method": (name, {}), "sparsity": rng.choice([0.5, "2:4"]), "progress": False}
    room, streamed = rng.choice([0, 1, 2, 4, 8, 16, 32]) * 2**20, rng.random() < 0.5
    source = write_folder(model, base / "model") if streamed else model

    def work() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        more = {"out": base / "out"} if streamed else {"batch": rng.choice([None, len(windows)])}
        prune(source, windows, call, **more)
        if not streamed and not all(p.isfinite().all() for p in model.state_dict().values()):
            raise Fault("not finite")

    status = ended(in_child(work))
    if status not in (0, 3):
        raise Fault(f"{call}, {room / 2**20:.0f} MiB, streamed {streamed}: {status} {raw_error()}")
    return "pruned" if status == 0 else "one sentence"


TRIALS = {"config": config_trial, "kill": kill_trial, "save": save_trial, "memory": memory_trial}


def trial(kind: str, seed: int) -> tuple[str, str]:
    """What came out, and the fault, empty where there is none."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        os.environ["SOAK_ERROR"] = str(Path(folder) / "error")
        try:
            return TRIALS[kind](random.Random(seed), Path(folder)), ""
        except Fault as fault:
            return "fault", str(fault)
        except Exception:
            return "fault", traceback.format_exc()[-1500:]


MEANING = """config: a random call prunes exactly, or is refused and the model is unchanged. kill: a
streamed run is killed up to 12 times and ends with the bits and the files of an unbroken run. save:
a save is killed while it replaces a folder, which holds the old or the new model afterwards.
memory: a run under a limit of the address space ends, or stops with one sentence. A fault is
anything else."""


def commit() -> str:
    """What was tried."""
    call = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()


def page(counts: dict, faults: list[str], seed: int, minutes: float) -> str:
    """The result as a page."""
    lines = [
        "# A soak",
        "",
        f"`python bench/soak.py --minutes {minutes:.0f} --seed {seed}` on {machine()},"
        f" {platform.system()}, torch {torch.__version__}, one thread,"
        f" {datetime.date.today().isoformat()}, commit {commit()}.",
        "",
        MEANING,
        "",
        "| kind | trials | what came out |",
        "| --- | ---: | --- |",
    ]
    for kind, found in counts.items():
        kills = collections.Counter()
        for key, count in found.items():
            number, is_kill, of = key.partition(" kills")
            if is_kill:
                kills[of] += int(number) * count
        others = [f"{key} {count}" for key, count in sorted(found.items()) if "kills" not in key]
        each = [f"{count} kills{of}" for of, count in sorted(kills.items())]
        words = "; ".join(others + each)
        lines.append(f"| {kind} | {sum(found.values())} | {words} |")
    lines += ["", f"Faults: {len(faults)}."]
    lines += [f"- {fault}" for fault in faults]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat the trial of this seed")
    parser.add_argument("--kinds", default=",".join(TRIALS))
    parser.add_argument("--out", type=Path, help="write the page here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # Forked children would share its lock between processes, which a killed one keeps for ever.
    tqdm.tqdm.set_lock(threading.RLock())
    kinds, faults = args.kinds.split(","), []
    counts = {kind: collections.Counter() for kind in kinds}
    until, seed = time.time() + 60 * args.minutes, args.seed * 1_000_000
    if args.only is not None:
        until, seed = time.time(), args.only
    while True:
        kind = kinds[seed % len(kinds)]
        found, fault = trial(kind, seed)
        counts[kind][found] += 1
        if fault:
            faults.append(f"seed {seed}, {kind}: {fault}")
            print(faults[-1], flush=True)
        seed += 1
        if time.time() >= until:
            break
    text = page(counts, faults, args.seed, args.minutes)
    print(text)
    if args.out:
        args.out.write_text(text)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
