"""Kill a streaming run with -9 at random moments, start it again with the same call, and compare
the final bits.

    python bench/kills.py [--model opt-mini] [--kills 20] [--method sparsegpt] [--samples 8]
                          [--seqlen 256]

A method may be written as the command line takes it: admm:guided, sparsegpt:reconstruct=tm. Many
more kills an hour, of tiny models, by all of it: python bench/soak.py --kinds kill.

Each run starts as a process of its own and is killed after a random share of the time that an
unbroken run takes; when one survives, its result is compared with the unbroken one, removed, and
the next begins from nothing.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file


def command(args, out: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "sparselab",
        "prune",
        "--model",
        args.model,
        "--method",
        args.method,
        "--sparsity",
        "0.5",
        "--samples",
        str(args.samples),
        "--seqlen",
        str(args.seqlen),
        "--stream",
        "--out",
        str(out),
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        key: value
        for file in sorted(folder.glob("*.safetensors"))
        for key, value in load_file(file).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="opt-mini")
    parser.add_argument("--method", default="sparsegpt")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seqlen", type=int, default=256)
    args, quiet = parser.parse_args(), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        started = time.perf_counter()
        subprocess.run(command(args, whole), check=True, **quiet)
        seconds, expected = time.perf_counter() - started, weights(whole)
        killed = survived = differ = 0
        while killed < args.kills or not survived:
            process = subprocess.Popen(command(args, broken), **quiet)
            try:
                process.wait(None if killed >= args.kills else random.uniform(0.2, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
                continue
            found = weights(broken)
            survived += 1
            differ += {*found} != {*expected} or not all(
                torch.equal(found[key], expected[key]) for key in expected
            )
            shutil.rmtree(broken)
    print(
        f"{args.model}, {args.method} 0.5, {args.samples} x {args.seqlen} tokens, an unbroken run"
        f" takes {seconds:.1f} s: killed {killed} times with -9, {survived} runs reached their end,"
        f" {differ} of them with other bits"
    )
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
