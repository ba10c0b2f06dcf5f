"""Whole-model time of each method, as a multiple of the two forward passes through the blocks that
no method can avoid.

    python bench/whole_model.py [--model opt-mini] [--samples 128] [--seqlen 256] [--json FILE]

One pass measures the inputs of a block while it is dense, a second makes the inputs of the next
one. The baseline runs exactly these, in the same batches, and nothing else. Everything is measured
in one run; the ratio is what counts.
"""

import argparse
import json
import time

import torch

import sparselab as sl
from sparselab.engine.activations import CalibrationActivations
from sparselab.models.architecture import restore
from sparselab.runtime.memory import reset_peak

GOALS = {
    "magnitude": None,
    "wanda": 1.2,
    "sparsegpt": 2.0,
    "dsnot": None,
    "swaps": None,
    "admm": None,
    "sparsellm": 3.5,
}


@torch.no_grad()
def two_passes(model, windows) -> float:
    """Seconds of two forward passes through all blocks (the second of the last block is not needed
    by anybody)."""
    stream, started = CalibrationActivations(model, windows), time.perf_counter()
    blocks = sl.blocks_of(model)
    for block in blocks:
        for place, part in enumerate(stream.parts):
            part.through(block, stream.fetch(place)[0])
        if block is not blocks[-1]:
            stream.replay(block)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="opt-mini")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--sparsity", default="0.7")
    parser.add_argument(
        "--repeat", type=int, default=3, help="the fastest of so many runs counts, for both sides"
    )
    parser.add_argument("--json", help="write the rows to this file too")
    parser.add_argument("--methods", default=",".join(GOALS), help="comma-separated")
    args = parser.parse_args()
    goals = {name: GOALS[name] for name in args.methods.split(",")}
    model, tokenizer = sl.load(args.model)
    windows = sl.calibration(tokenizer, "demo", samples=args.samples, seqlen=args.seqlen)
    dense = {name: linear.weight.detach().clone() for name, linear in sl.linears_of(model).items()}
    base, reports = [], {name: [] for name in goals}
    for _ in range(args.repeat):  # interleaved: a slow minute hits all alike
        restore(model, dense)
        base.append(two_passes(model, windows))
        for name in goals:
            restore(model, dense)
            reset_peak(windows.device)  # of this run alone
            reports[name].append(
                sl.prune(model, windows, method=name, sparsity=args.sparsity, progress=False)
            )
    device = next(model.parameters()).device
    print(
        f"{args.model}, {args.samples} x {args.seqlen} calibration tokens, sparsity"
        f" {args.sparsity}, {device}, {torch.get_num_threads()} threads; two forward passes:"
        f" {min(base):.2f} s"
    )
    rows = []
    for name, goal in goals.items():
        best = min(reports[name], key=lambda report: report.seconds["total"])
        ratio = best.seconds["total"] / min(base)
        rows.append({"method": name, "ratio": ratio, "goal": goal, **best.seconds})
        print(f"  {name:10} {ratio:5.2f} x two passes (goal {goal or '-'}): {best.footer()}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {"setting": vars(args), "two_passes": min(base), "rows": rows}, file, indent=1
            )


if __name__ == "__main__":
    main()
