"""LLaMA-2-13b's exact shape, from shards on disk to shards on disk, by each method: seconds by phase, peaks, speeds.

    python bench/llama13b.py [--shape 13b|7b|1b|125m|tiny] [--methods wanda,dsnot,sparsegpt,sparsellm]
                             [--samples 128] [--seqlen 2048] [--device cuda] [--blocks N] [--folder DIR] [--csv FILE]

The weights are random, with the statistics that matter to pruning: embeddings whose norms differ, and a few channels of
the residual stream thirty times as loud as the others, so that the Hessians are as ill-conditioned as real ones. The
floor is what no method avoids: two forward passes through all blocks, and the files read and written once. `--blocks`
makes a shorter model (every block costs the same); its seconds are printed as they are.
"""
import argparse
import datetime
import json
import shutil
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

import sparselab as sl
from sparselab.checkpoint import INDEX, Checkpoint
from sparselab.engine import Stream
from sparselab.memory import peak_bytes
from sparselab.models import OPT_MINI, blocks_of
from sparselab.planning import product_speed
from sparselab.streaming import Streamed

SHAPES = {"13b": (5120, 13824, 40, 40, 32000), "7b": (4096, 11008, 32, 32, 32000), "125m": (768, 2048, 12, 12, 32000),
          "1b": (2048, 5504, 30, 16, 32000), "tiny": (256, 688, 4, 4, 4096)}
GOALS = {"wanda": 45, "dsnot": 75, "sparsegpt": 100, "sparsellm": 480}
LOUD, GAIN = 6, 30.0


def make(folder: Path, shape: str, blocks: int | None, dtype: torch.dtype) -> int:
    """Write the model, one shard a block; its bytes."""
    width, inner, count, heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks or count,
                         num_attention_heads=heads, num_key_value_heads=heads, vocab_size=vocabulary,
                         max_position_embeddings=4096, tie_word_embeddings=False)
    config.dtype, index, total = dtype, {}, 0
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    shards: dict[str, dict] = {}
    for name, like in model.state_dict().items():
        shards.setdefault(name.split(".")[2] if ".layers." in name else "outside", {})[name] = like
    for number, (part, names) in enumerate(shards.items()):
        torch.manual_seed(number)
        tensors = {name: tensor(name, like, width) for name, like in names.items()}
        save_file(tensors, folder / f"model-{part}.safetensors", metadata={"format": "pt"})
        index |= dict.fromkeys(names, f"model-{part}.safetensors")
        total += sum(value.nbytes for value in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    config.save_pretrained(folder)
    for file in OPT_MINI.glob("tokenizer*"):
        shutil.copy(file, folder)
    return total


def tensor(name: str, like: torch.Tensor, width: int) -> torch.Tensor:
    """Random weights: embeddings with loud channels, linears that keep the scale."""
    if like.ndim == 1:
        return torch.ones(like.shape, dtype=like.dtype)
    values = torch.randn(like.shape) / (1 if "embed" in name else like.shape[1]**0.5)
    if "embed" in name:
        values *= torch.rand(len(values), 1) + 0.5
        values[:, torch.randperm(width)[:LOUD]] *= GAIN
    return values.to(like.dtype)


@torch.no_grad()
def floor(folder: Path, windows: torch.Tensor, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of two forward passes through one block, times the blocks, and of reading its file."""
    checkpoint = Checkpoint(folder)
    source = Streamed(folder, folder.with_name("nowhere"), dtype, device)
    started = time.perf_counter()
    block = source.load(0)
    read, stream = time.perf_counter() - started, Stream(source.model, windows, dense=False, offload="auto")
    timings = []
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for part in stream.parts:
            part.through(block, part.hidden)
        if device.type == "cuda":
            torch.cuda.synchronize()
        timings.append(time.perf_counter() - started)
    source.abandon()
    count = len(blocks_of(checkpoint.skeleton(dtype)))
    return {"read": read * count, "two passes": 2 * min(timings) * count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="13b", choices=SHAPES)
    parser.add_argument("--methods", default=",".join(GOALS))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sparselab-bench")
    parser.add_argument("--csv", type=Path, help="add the rows to this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    model = args.folder / f"{args.shape}-{args.blocks or 'all'}-{str(dtype).removeprefix('torch.')}"
    if not (model / "config.json").exists():
        shutil.rmtree(model, ignore_errors=True)
        started = time.perf_counter()
        total = make(model, args.shape, args.blocks, dtype)
        print(f"made {model.name}: {total / 1e9:.1f} GB in {time.perf_counter() - started:.0f} s", flush=True)
    vocabulary = SHAPES[args.shape][-1]
    windows = torch.randint(0, vocabulary, (args.samples, args.seqlen), generator=torch.Generator().manual_seed(0))
    card = torch.cuda.get_device_name() if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    peak = {str(kind).removeprefix("torch."): product_speed(device, kind, 8192 if device.type == "cuda" else 1024) / 1e12
            for kind in (dtype, torch.float32)}
    print(f"LLaMA {args.shape}, {args.samples} x {args.seqlen} tokens, {card}, torch {torch.__version__}; large products: "
          + ", ".join(f"{kind} {value:.2f} TFLOP/s" for kind, value in peak.items()), flush=True)
    least = floor(model, windows, device, dtype)
    print("floor: " + ", ".join(f"{name} {value:.1f} s" for name, value in least.items()), flush=True)
    rows = []
    for method in args.methods.split(","):
        out = args.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(out.with_name("out.part"), ignore_errors=True)
        print(str(sl.plan(model, method, args.samples, args.seqlen, device, dtype=dtype)).splitlines()[-2], flush=True)
        report = sl.prune(model, windows, method=method, sparsity=0.5, out=out, dtype=dtype, device=device)
        gpu = peak_bytes(device) / 2**30 if device.type == "cuda" else float("nan")
        rows.append({"shape": args.shape, "blocks": report.settings["blocks"], "method": method, "samples": args.samples,
                     "seqlen": args.seqlen, "device": card, "torch": torch.__version__, "dtype": report.settings["dtype"],
                     **{phase: round(value, 2) for phase, value in report.seconds.items()},
                     "floor": round(sum(least.values()), 2), "goal": GOALS[method] if args.shape == "13b" else "",
                     "gpu_gib": round(gpu, 2), "host_gib": round(peak_bytes(torch.device("cpu")) / 2**30, 2),
                     "output_error": round(report.error, 4), "date": datetime.date.today().isoformat()})
        print(f"{method}: {report.footer()}; {report.seconds['total'] / sum(least.values()):.2f} x the floor", flush=True)
        shutil.rmtree(out)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if args.csv:
        table.to_csv(args.csv, mode="a", header=not args.csv.exists(), index=False)


if __name__ == "__main__":
    main()
