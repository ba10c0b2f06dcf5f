"""What the mean and the spread of fc1's rows are worth, each restored without the other, judged by
the whole model's perplexity.

    python bench/mean_and_spread.py

A pruned row gives outputs with another mean and another spread than the dense row on the same
inputs. A number added to its bias restores the mean, a factor on its weights the spread; no zero
moves. Lesson 05 makes the rows of the first draw of the calibration text itself, and shows these.
"""

import argparse
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn

import sparselab as sl
from sparselab.experiments.results import append
from sparselab.experiments.sweep import Sweep
from sparselab.models.architecture import dense_weights, restore

STARTS = {"wanda": sl.Wanda(), "swaps": sl.Swaps(candidates=1)}
CHANGES = ("as pruned", "mean restored", "spread restored")
WINDOWS = 16  # of the calibration text, for means and spreads
LARGEST = 3.0  # factor of a row


@torch.no_grad()
def repair(model: nn.Module, windows: torch.Tensor, dense: dict, change: str) -> float:
    """Change the rows of every fc1, block after block, each on what the repaired ones before it
    give; the mean over the blocks of fc1's relative error after that. windows [samples, seqlen]."""
    errors, hooks = [], []
    for name, linear in sl.linears_of(model).items():
        if name.endswith("fc1"):
            look = partial(_repair_rows, dense=dense[name], change=change, errors=errors)
            hooks.append(linear.register_forward_pre_hook(look))
    model(windows)
    for hook in hooks:
        hook.remove()
    return sum(errors) / len(errors)


def _repair_rows(
    linear: nn.Linear, args: tuple, dense: torch.Tensor, change: str, errors: list[float]
) -> None:
    """Of one fc1 with the inputs of args; dense [r, c]: the weight before it was pruned."""
    x, weight = args[0].flatten(0, -2).T, linear.weight  # [c, N], [r, c]
    whole, part = dense @ x, weight @ x  # [r, N], both without the bias
    shift = torch.zeros(len(dense))
    if change == "spread restored":
        factor = (whole.std(1) / part.std(1)).nan_to_num(1).clamp(max=LARGEST)
        weight *= factor[:, None]
        shift = (part * (1 - factor[:, None])).mean(1)  # the mean stays as it was pruned
    if change == "mean restored":
        shift = (whole - part).mean(1)
    linear.bias += shift
    errors.append(((weight @ x + shift[:, None] - whole).norm() / whole.norm()).item())


def main() -> None:
    """The runs that are missing in the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=[*STARTS])
    parser.add_argument("--sparsity", default="0.7")
    parser.add_argument("--out", type=Path, default=Path("bench/mean-and-spread.csv"))
    args = parser.parse_args()
    sweep = Sweep(
        model="opt-mini", corpus="demo", samples=64, seqlen=256, texts=("demo",), windows=64
    )
    model, tokenizer = sl.load(sweep.model)
    unpruned = sweep.perplexities(model)
    dense = dense_weights(model)
    for start, seed in product(args.starts, args.seeds):
        there = sweep.rows_in(args.out, pattern=args.sparsity, seed=seed)
        runs = {change: f"{start}, {change}" for change in CHANGES}
        if not there.empty and {*runs.values()} <= {*there.method}:
            continue
        windows = sl.calibration(
            tokenizer, sweep.corpus, samples=sweep.samples, seqlen=sweep.seqlen, seed=seed
        )
        restore(model, dense)
        report = sl.prune(
            model, windows, method=STARTS[start], sparsity=args.sparsity, progress=False
        )
        pruned = dense_weights(model)
        for change, name in runs.items():
            restore(model, pruned)
            error = repair(model, windows[:WINDOWS], dense, change)
            rows = sweep.evaluate(
                model, report, unpruned, seed=seed, pattern=args.sparsity, method=name
            )
            append(args.out, [{**row, "fc1_error": error} for row in rows])
            print(seed, name, error, [row["perplexity"] for row in rows], flush=True)


if __name__ == "__main__":
    main()
