"""What a streamed run holds in the host's memory, measured by the operating system, against a
stated bound.

    python bench/host_peak.py [--shape 1b] [--methods wanda,sparsellm,admm:guided] [--samples 4]
                              [--seqlen 128] [--dtype float32] [--blocks N] [--layers N]
                              [--folder DIR] [--record FILE]

The bound: three blocks as the run holds them, the activations, and 1 GB for Python, torch, and what
is outside the blocks. The model, of 3.3 GB in 16 bits, has LLaMA's shape and random weights
(bench/llama13b.py makes it). Each run has a process of its own, so that its peak is its own. Pages
of files mapped into memory count as well; the largest share of them is printed beside the peak.
`--layers N` prunes the first N blocks and copies the others from file to file, one by one as well,
and `--blocks N` makes a model of so many: the peak of a block does not depend on how many there
are. A method may be written as sweeps do, such as 'admm:guided;steps=2': steps take time, and no
memory.
"""

import argparse
import datetime
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

MB = 1e6
OVERHEAD = 1000  # MB
BYTES = ("block", "activations", "plan", "solver", "peak", "mapped")


def alone(work, *arguments):
    """The result of a function in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def make(folder: Path, shape: str, blocks: int | None) -> None:
    """The model's files, float16, one a block."""
    import torch
    from llama13b import make

    make(folder, shape, blocks, torch.float16)


class MappedPages(threading.Thread):
    """The most bytes of mapped files that this process held, looked at every 20 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most = 0

    def run(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            self.most = max(
                self.most,
                next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssFile")),
            )
            time.sleep(0.02)


def prune(
    folder: Path, name: str, samples: int, seqlen: int, dtype: str, layers: int | None
) -> dict:
    """Prune from files to files; bytes of a block, of the activations, and the peak."""
    pages = MappedPages()
    pages.start()
    import torch
    from sparsegpt_solver import machine

    import sparselab as sl
    from sparselab.engine.planning import peak
    from sparselab.methods.registry import named_method
    from sparselab.runtime.memory import peak_bytes

    method = named_method(name, "LLaMA")
    started = time.perf_counter()
    windows = torch.randint(0, 32000, (samples, seqlen), generator=torch.Generator().manual_seed(0))
    report = sl.prune(
        folder,
        windows,
        method=method,
        sparsity=0.5,
        out=folder.with_name("out"),
        device="cpu",
        dtype=getattr(torch, dtype),
        progress=False,
        layers=layers and range(layers),
    )
    terms = sl.plan(
        folder, method, samples, seqlen, "cpu", dtype=getattr(torch, dtype), measure=False
    ).bytes
    return {
        "block": terms["next block, read ahead"][1],
        "activations": terms["activations"][1],
        "sparsity": report.sparsity,
        "plan": peak(terms, "device"),
        "blocks": report.settings["blocks"],
        "solver": terms["statistics"][1] + terms["solver"][1],
        "machine": machine(),
        "peak": peak_bytes(torch.device("cpu")),
        "mapped": pages.most,
        "pruned": len(report.settings["layers"]),
        "at": max(report.rows, key=lambda row: row.peak_bytes).name,
        "seconds": time.perf_counter() - started,
    }


def lines(found: dict, title: str) -> list[str]:
    """The measured peak against the bound, in words; the last word of the third line says whether
    it is kept."""
    mb = {key: value / MB for key, value in found.items() if key in BYTES}
    bound = 3 * mb["block"] + mb["activations"] + OVERHEAD
    blocks = f"{found['blocks']} blocks" + f", the first {found['pruned']} pruned" * (
        found["pruned"] < found["blocks"]
    )
    return [
        (
            f"{datetime.date.today()}, {found['machine']}: {title.format(blocks=blocks)},"
            f" {found['seconds']:.0f} s"
        ),
        (
            f"  peak {mb['peak']:.0f} MB, after {found['at']} (pages of mapped files: at most"
            f" {mb['mapped']:.0f} MB)"
        ),
        f"  bound 3 x {mb['block']:.0f} + {mb['activations']:.0f} + {OVERHEAD} = {bound:.0f} MB: "
        + ("kept" if mb["peak"] < bound else "MISSED"),
        f"  sl.plan says {mb['plan']:.0f} MB, of it statistics and solver {mb['solver']:.0f} MB",
    ]


def options() -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="1b")
    parser.add_argument("--methods", default="wanda,sparsegpt")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seqlen", type=int, default=128)
    parser.add_argument("--dtype", default="float32", help="of the run; the files are float16")
    parser.add_argument("--blocks", type=int, help="of the model; default: the shape's")
    parser.add_argument("--layers", type=int, help="prune so many blocks")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "sparselab-bench"
    )
    parser.add_argument("--record", type=Path, help="add the lines to this file too")
    return parser.parse_args()


def main() -> None:
    """Make the model, prune it by each method, and fail where a bound is missed."""
    args, missed = options(), False
    model = args.folder / f"{args.shape}-{args.blocks or 'all'}-float16"
    if not (model / "config.json").exists():
        shutil.rmtree(model, ignore_errors=True)
        alone(make, model, args.shape, args.blocks)
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    for method in args.methods.split(","):
        for leftover in ("out", "out.part"):
            shutil.rmtree(args.folder / leftover, ignore_errors=True)
        found = alone(prune, model, method, args.samples, args.seqlen, args.dtype, args.layers)
        text = lines(
            found,
            f"LLaMA {args.shape}, {{blocks}}, {size / 1e9:.2f} GB in files; {method} 0.5, "
            f"{args.samples} x {args.seqlen} tokens, {args.dtype}",
        )
        print("\n".join(text), flush=True)
        if args.record:
            with args.record.open("a") as file:
                file.write("\n".join(text) + "\n")
        missed |= text[2].endswith("MISSED")
        shutil.rmtree(args.folder / "out")
    sys.exit(missed)


if __name__ == "__main__":
    main()
