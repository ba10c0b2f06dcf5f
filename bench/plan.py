"""What `sl.plan` says of a streamed run on the CPU against what the run took: peak memory by the
operating system, seconds by the clock.

    python bench/plan.py [--shapes wide,words,long,opt] [--folder DIR] [--record FILE]

Four shapes with random weights, each with another largest term: wide blocks, many parameters
outside the blocks, much calibration text, OPT's form. Prints a line for each, and fails where a
peak is more than 15 % from the plan. What Python and torch take themselves is most of so small a
run; so that it does not hide the rest, the rest is printed by itself too. All runs share a process,
whose peak is counted anew for each.
"""

import argparse
import datetime
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from sparsegpt_solver import machine
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

import sparselab as sl
from sparselab.models.embedded import OPT_MINI
from sparselab.runtime.memory import peak_bytes, reset_peak

# Family, width, inner width, heads, vocabulary; calibration windows, tokens in each; methods.
SHAPES = {
    "wide": ("llama", 1536, 4096, 16, 4096, 4, 128, ("wanda", "sparsegpt")),
    "words": ("llama", 256, 704, 4, 128256, 4, 128, ("wanda", "guided")),
    "long": ("llama", 256, 704, 4, 4096, 48, 512, ("sparsegpt", "sparsellm")),
    "opt": ("opt", 512, 2048, 8, 50272, 8, 256, ("sparsegpt", "tuned")),
}
METHODS = {
    "guided": sl.ADMM.guided(),
    "tuned": sl.SparseGPT(reconstruct=sl.Reconstruction(epochs=1, unit="block")),
}
CPU, MB, WITHIN = torch.device("cpu"), 1e6, 0.15


def make(folder: Path, shape: str) -> None:
    """The model's files, float32, random weights, two blocks."""
    family, width, inner, heads, vocabulary, *_ = SHAPES[shape]
    common = {
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": family == "opt",
    }
    if family == "llama":
        config = LlamaConfig(intermediate_size=inner, num_key_value_heads=heads, **common)
    else:
        config = OPTConfig(ffn_dim=inner, word_embed_proj_dim=width, **common)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size="100MB")
    for file in OPT_MINI.glob("tokenizer*"):
        shutil.copy(file, folder)


def line(folder: Path, shape: str, name: str, itself: int) -> tuple[str, bool]:
    """What was planned and taken, in words, and whether it is near; `itself`: bytes that Python and
    torch hold."""
    *_, vocabulary, samples, seqlen, _ = SHAPES[shape]
    call = {"method": METHODS.get(name, name), "device": "cpu", "dtype": torch.float32}
    ids = torch.randint(
        4, vocabulary, (samples, seqlen), generator=torch.Generator().manual_seed(0)
    )
    plan = sl.plan(folder, samples=samples, seqlen=seqlen, **call)
    held = reset_peak(CPU)
    out = folder.with_name("out")
    report = sl.prune(folder, ids, sparsity=0.5, out=out, progress=False, **call)
    rest = peak_bytes(CPU) - held
    shutil.rmtree(out)
    total, planned = itself + rest, plan.total("device")
    own = planned - plan.bytes["Python and torch"][1]
    ratio, seconds = planned / total, dict(report.seconds)
    taken = seconds.pop("total")
    return (
        f"{shape}, {name}, {samples} x {seqlen} tokens: planned {planned / MB:.0f} MB, peak"
        f" {total / MB:.0f} MB, ratio {ratio:.2f}; without Python and torch {own / MB:.0f} and"
        f" {rest / MB:.0f} MB; planned {sum(plan.seconds.values()):.1f} s ("
        + ", ".join(f"{phase} {value:.1f}" for phase, value in plan.seconds.items())
        + f"), taken {taken:.1f} s ("
        + ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items())
        + ")"
    ), abs(ratio - 1) <= WITHIN


def warm(folder: Path) -> int:
    """Bytes that are held when all libraries were used once: what they keep is no run's own."""
    shutil.rmtree(folder / "warm", ignore_errors=True)
    ids = torch.randint(4, 4096, (2, 32), generator=torch.Generator().manual_seed(0))
    call = {"method": "sparsegpt", "sparsity": 0.5, "device": "cpu", "progress": False}
    sl.prune("opt-mini", ids, layers=[0], out=folder / "warm", **call)
    shutil.rmtree(folder / "warm")
    return reset_peak(CPU)


def options() -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--record", type=Path, help="add the lines to this file too")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "sparselab-plan"
    )
    return parser.parse_args()


def main() -> None:
    """Each shape by its methods."""
    args, missed = options(), []
    itself = warm(args.folder)
    said = [
        f"{datetime.date.today()}, {machine()}; Python and torch themselves {itself / MB:.0f} MB"
    ]
    print(said[0], flush=True)
    for shape in args.shapes.split(","):
        folder = args.folder / shape
        if not (folder / "config.json").exists():
            make(folder, shape)
        shutil.rmtree(args.folder / "out.part", ignore_errors=True)
        for name in SHAPES[shape][-1]:
            words, near = line(folder, shape, name, itself)
            print(words, flush=True)
            said.append(words)
            missed += [] if near else [f"{shape}, {name}"]
    said.append(f"more than {WITHIN:.0%} from the plan: {'; '.join(missed) or 'none'}")
    print(said[-1])
    if args.record:
        with args.record.open("a") as file:
            file.write("\n".join(said) + "\n")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
