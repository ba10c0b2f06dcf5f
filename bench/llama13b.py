"""LLaMA-2-13b's exact shape, from shards on disk to shards on disk, by one method a call: seconds
by phase, peaks, speeds, beside what `sl.plan` said.

    python bench/llama13b.py [--model 13b|7b|1b|125m|tiny] [--methods wanda] [--samples 128]
                             [--seqlen 2048] [--device cuda] [--blocks N] [--minutes 8]
                             [--folder DIR] [--json FILE]

On a card that is lent for ten minutes a call, the first call makes the model and runs one method,
each further one another:

    python bench/llama13b.py --methods wanda     --json bench/llama13b.json
    python bench/llama13b.py --methods sparsegpt --json bench/llama13b.json
    python bench/llama13b.py --methods sparsellm --json bench/llama13b.json
    python bench/llama13b.py --methods dsnot     --json bench/llama13b.json

The whole of it on a CPU, in half a minute, as tests/test_bench.py has it:

    python bench/llama13b.py --model tiny --samples 4 --seqlen 64 --device cpu --json /tmp/tiny.json

The weights are random, drawn on the device, with the statistics that matter to pruning: embeddings
whose norms differ, and a few channels of the residual stream thirty times as loud as the others, so
that the Hessians are as ill-conditioned as real ones. The floor is what no method avoids: two
forward passes through all blocks. `--blocks` makes a shorter model (every block costs the same);
its seconds are printed as they are. Where the floor and the plan say that a call would take more
than `--minutes`, only the first blocks are pruned, as many as there is time for, and the row says
how many; the others are copied.

Of the columns read, check, capture, collect, solve, error, replay and write are the engine's
phases, which add up to the total. forward, gram and factor are parts of them (forward passes
through blocks, Gram matrices, their factors), timed where they run; TFLOP/s are their operations,
counted as they are called, over these seconds: the products with the blocks' weights, the triangle
of a Gram matrix in nine sixteenths of its square, 2/3 c^3 for a factor. Their share of the card is
that of the speed which a large product reaches on it in the weights' dtype, just before the run.

`--json` adds the rows to a file, a list of them; the last line printed belongs into
data/papers/registry.toml, above the entry of the method's table of time.
"""

import argparse
import datetime
import json
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
import transformers
from safetensors.torch import save_file
from torch.nn.modules.module import register_module_forward_hook
from transformers import AutoModelForCausalLM, LlamaConfig

import sparselab as sl
from sparselab.engine.activations import ActivationBatch, CalibrationActivations
from sparselab.engine.planning import GIB, product_speed
from sparselab.engine.sources import StreamedBlocks
from sparselab.methods.registry import named_method
from sparselab.models.embedded import OPT_MINI
from sparselab.models.shards import INDEX
from sparselab.numerics import statistics
from sparselab.runtime.files import DISTRIBUTION
from sparselab.runtime.memory import peak_bytes, reset_peak

SHAPES = {
    "13b": (5120, 13824, 40, 40, 32000),
    "7b": (4096, 11008, 32, 32, 32000),
    "125m": (768, 2048, 12, 12, 32000),
    "1b": (2048, 5504, 30, 16, 32000),
    "tiny": (256, 688, 4, 4, 4096),
}
GOALS = {"wanda": 45, "dsnot": 75, "sparsegpt": 100, "sparsellm": 480}  # seconds, on one H100
SPARE = 1.3  # times the planned seconds are set aside: a plan is an estimate
LOUD, GAIN = 6, 30.0
HOST = torch.device("cpu")


def make(
    folder: Path, shape: str, blocks: int | None, dtype: torch.dtype, device: torch.device = HOST
) -> int:
    """Write the model, one shard a block; its bytes. A GPU draws 13 billion numbers in seconds."""
    width, inner, count, heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks or count,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    config.dtype, index, total = dtype, {}, 0
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    shards: dict[str, dict] = {}
    for name, like in model.state_dict().items():
        shards.setdefault(name.split(".")[2] if ".layers." in name else "outside", {})[name] = like
    for number, (part, names) in enumerate(shards.items()):
        torch.manual_seed(number)
        tensors = {name: tensor(name, like, width, device) for name, like in names.items()}
        save_file(tensors, folder / f"model-{part}.safetensors", metadata={"format": "pt"})
        index |= dict.fromkeys(names, f"model-{part}.safetensors")
        total += sum(value.nbytes for value in tensors.values())
    (folder / INDEX).write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    config.save_pretrained(folder)
    for file in OPT_MINI.glob("tokenizer*"):
        shutil.copy(file, folder)
    return total


def tensor(name: str, like: torch.Tensor, width: int, device: torch.device) -> torch.Tensor:
    """Random weights: embeddings with loud channels, linears that keep the scale."""
    if like.ndim == 1:
        return torch.ones(like.shape, dtype=like.dtype)
    values = torch.randn(like.shape, device=device) / (
        1 if "embed" in name else like.shape[1] ** 0.5
    )
    if "embed" in name:
        values *= torch.rand(len(values), 1, device=device) + 0.5
        values[:, torch.randperm(width, device=device)[:LOUD]] *= GAIN
    return values.to("cpu", like.dtype)


@torch.no_grad()
def floor(
    folder: Path, windows: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """Seconds of two forward passes through a block, and of reading its file, times the blocks."""
    source = StreamedBlocks(folder, folder.with_name("nowhere"), dtype, device)
    started = time.perf_counter()
    block = source.load(0)
    read, stream = (
        time.perf_counter() - started,
        CalibrationActivations(source.model, windows, dense=False, offload="auto"),
    )
    timings = []
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for place, part in enumerate(stream.parts):
            part.through(block, stream.fetch(place)[0])
        if device.type == "cuda":
            torch.cuda.synchronize()
        timings.append(time.perf_counter() - started)
    source.close()
    count = len(source.blocks)
    return {"read": read * count, "two passes": 2 * min(timings) * count}


class Watch:
    """Seconds and operations of three things inside the engine's phases. On a GPU by events, so
    that nothing waits."""

    PLACES = {
        "forward": (ActivationBatch, "through"),
        "gram": (statistics.Statistics, "add"),
        "factor": (statistics, "inverse_factor"),
    }

    def __init__(self, device: torch.device):
        self.cuda, self.marks = device.type == "cuda", {name: [] for name in self.PLACES}
        self.operations = dict.fromkeys(self.PLACES, 0.0)

    def __enter__(self) -> "Watch":
        self.before = {name: getattr(*place) for name, place in self.PLACES.items()}
        for name, place in self.PLACES.items():
            setattr(*place, self._timed(name, self.before[name]))
        self.hook = register_module_forward_hook(self._count_linear)
        return self

    def __exit__(self, *_) -> None:
        self.hook.remove()
        for name, place in self.PLACES.items():
            setattr(*place, self.before[name])

    def _timed(self, name: str, work):
        def timed(*arguments):
            started = self._now()
            try:
                return work(*arguments)
            finally:  # a pass may end early, by an exception
                self.marks[name].append((started, self._now()))
                self.operations[name] += self._count(name, *arguments)

        return timed

    def _now(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def _count(name: str, first, *others) -> float:
        if name == "gram":  # first: Statistics; others: x [..., c], ...
            each = 9 / 8 * (first.gram is not None) + 2 * (first.cross is not None)
            return each * others[0].numel() * others[0].shape[-1]
        return 2 / 3 * len(first) ** 3 if name == "factor" else 0  # forward passes: by the hook

    def _count_linear(self, module, _, output) -> None:
        if isinstance(module, torch.nn.Linear):
            self.operations["forward"] += 2 * output.numel() * module.in_features

    def row(self, peak: dict[str, float]) -> dict[str, float]:
        """Seconds and TFLOP/s of each, and its share of the card's speed, `peak` TFLOP/s: of
        products of the weights' dtype, but for a factor, which is float32."""
        if self.cuda:
            torch.cuda.synchronize()
        found = {}
        for name, marks in self.marks.items():
            seconds = sum(a.elapsed_time(b) / 1000 if self.cuda else b - a for a, b in marks)
            reached = self.operations[name] / 1e12 / max(seconds, 1e-9)
            found |= {
                name: round(seconds, 2),
                f"{name}_tflops": round(reached, 3),
                f"{name}_share": round(reached / peak["float32" if name == "factor" else ""], 3),
            }
        return found


def options() -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", "--shape", dest="shape", default="13b", choices=SHAPES)
    parser.add_argument("--methods", default="wanda", help="with commas between them")
    parser.add_argument("--minutes", type=float, default=8.0, help="of this call, from its start")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--blocks", type=int)
    parser.add_argument(
        "--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "sparselab-bench"
    )
    parser.add_argument("--json", type=Path, help="add the rows to this file")
    return parser.parse_args()


def made(args: argparse.Namespace, dtype: torch.dtype) -> Path:
    """The model's folder, written unless it is there."""
    model = args.folder / f"{args.shape}-{args.blocks or 'all'}-{str(dtype).removeprefix('torch.')}"
    if not (model / "config.json").exists():
        shutil.rmtree(model, ignore_errors=True)
        started = time.perf_counter()
        total = make(model, args.shape, args.blocks, dtype, args.device)
        print(
            f"made {model.name}: {total / 1e9:.1f} GB in {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    return model


def blocks_in_time(plan: sl.Plan, blocks: int, started: float, minutes: float) -> int:
    """How many of the model's blocks can be pruned in what is left of the minutes; all, at best."""
    needed = SPARE * sum(plan.seconds.values()) / blocks
    left = 60 * minutes - (time.perf_counter() - started)
    return max(1, min(blocks, int(left / max(needed, 1e-9))))


def run(
    name: str,
    model: Path,
    windows: torch.Tensor,
    args: argparse.Namespace,
    peak: dict[str, float],
    started: float,
) -> dict:
    """One method, from files to files: what was planned and what it took."""
    out, method = args.folder / "out", named_method(name, "LLaMA")
    for leftover in (out, out.with_name("out.part")):
        shutil.rmtree(leftover, ignore_errors=True)
    dtype = dtype_on(args.device)
    plan = sl.plan(model, method, args.samples, args.seqlen, args.device, dtype=dtype)
    print(plan, flush=True)
    count = args.blocks or SHAPES[args.shape][2]
    blocks = blocks_in_time(plan, count, started, args.minutes)
    reset_peak(HOST)
    with Watch(args.device) as watch:
        report = sl.prune(
            model,
            windows,
            method=method,
            sparsity=0.5,
            layers=range(blocks),
            out=out,
            dtype=dtype,
            device=args.device,
        )
    gpu = peak_bytes(args.device) / GIB if args.device.type == "cuda" else None
    shutil.rmtree(out)
    print(f"{name}: {report.footer()}", flush=True)
    return {
        "shape": args.shape,
        "blocks": report.settings["blocks"],
        "blocks_pruned": blocks,
        "method": str(method),
        "samples": args.samples,
        "seqlen": args.seqlen,
        "dtype": report.settings["dtype"],
        "seconds": {phase: round(value, 2) for phase, value in report.seconds.items()},
        "planned_seconds": {phase: round(value, 2) for phase, value in plan.seconds.items()},
        **watch.row(peak),
        "goal": GOALS.get(name) if args.shape == "13b" and blocks == count else None,
        "gpu_gib": gpu and round(gpu, 2),
        "planned_gib": round(plan.total("device") / GIB, 2),
        "host_gib": round(peak_bytes(HOST) / GIB, 2),
        "output_error": round(report.error, 4),
    }


def dtype_on(device: torch.device) -> torch.dtype:
    """Of the weights."""
    return torch.float16 if device.type == "cuda" else torch.float32


def machine(device: torch.device) -> dict:
    """What the numbers belong to."""
    found = {"device": f"{device}, {torch.get_num_threads()} threads"}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found = {"device": card.name, "device_gib": round(card.total_memory / GIB, 1)}
        found["cuda"] = torch.version.cuda
    return {
        **found,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sparselab": version(DISTRIBUTION),
        "date": datetime.date.today().isoformat(),
    }


def registry_line(row: dict) -> str:
    """A measured run in one line, a comment of TOML."""
    part = "" if row["blocks_pruned"] == row["blocks"] else f" (the first {row['blocks_pruned']})"
    held = row["gpu_gib"] if row["gpu_gib"] is not None else row["host_gib"]
    return (
        f"# measured {row['date']}, {row['device']}, torch {row['torch']}: LLaMA {row['shape']}'s"
        f" shape, random weights, {row['blocks']} blocks{part}, {row['method']},"
        f" {row['samples']} x {row['seqlen']} tokens, {row['dtype']}: {row['seconds']['total']} s,"
        f" floor {row['floor']} s, {held} GiB"
    )


def main() -> None:
    """Make the model, measure the machine and the floor, then each method."""
    args, started = options(), time.perf_counter()
    dtype = dtype_on(args.device)
    model = made(args, dtype)
    windows = torch.randint(
        0,
        SHAPES[args.shape][-1],
        (args.samples, args.seqlen),
        generator=torch.Generator().manual_seed(0),
    )
    width = 8192 if args.device.type == "cuda" else 1024
    speeds = [product_speed(args.device, kind, width) / 1e12 for kind in (dtype, torch.float32)]
    peak, this = dict(zip(("", "float32"), speeds, strict=True)), machine(args.device)
    print(
        f"LLaMA {args.shape}, {args.samples} x {args.seqlen} tokens, {this['device']}, torch"
        f" {this['torch']}; large products: {dtype} {speeds[0]:.2f}, float32 {speeds[1]:.2f}"
        " TFLOP/s",
        flush=True,
    )
    least = floor(model, windows, args.device, dtype)
    print(
        "floor: " + ", ".join(f"{name} {value:.1f} s" for name, value in least.items()), flush=True
    )
    for name in args.methods.split(","):
        row = this | run(name, model, windows, args, peak, started)
        row |= {
            "floor": round(least["two passes"], 2),
            "product_tflops": round(speeds[0], 2),
            "product_tflops_float32": round(speeds[1], 2),
        }
        if args.json:
            rows = json.loads(args.json.read_text()) if args.json.exists() else []
            args.json.write_text(json.dumps([*rows, row], indent=1) + "\n")
        print(pd.Series(row).to_string())
        print(f"{name}: {row['seconds']['total'] / row['floor']:.2f} x the two passes")
        print(registry_line(row), flush=True)


if __name__ == "__main__":
    main()
