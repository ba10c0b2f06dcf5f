"""SparseLLM's loop on a model of the LLaMA family, with the released steps for a gate's s in all
blocks, judged by the whole model's perplexity.

    python bench/gated_loop.py

smollm2-135m at 70 %, 16 windows of 512 tokens of the demo's web pages. `sparsellm:published` is the
same loop with bounded steps (its rows are in bench/seeds.csv); here it takes two steps of a fixed
rate, as released, and nothing else changes.

First it prints how small the smallest eigenvalue is of what the feed-forward networks receive, here
and in opt-mini, where the loop fails along the direction that belongs to it.
"""

import argparse
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import silu

import sparselab as sl
from sparselab.course.layers import inputs_of
from sparselab.experiments.sweep import Sweep, jobs_of
from sparselab.methods import feed_forward
from sparselab.models.architecture import dense_weights, restore

METHOD = "sparsellm:published"
GRADIENT = f"{METHOD}, gradient steps"
PENALTY, RATE, STEPS = 5.0, 0.01, 2  # alpha = gamma, as released


def gradient_steps(s: Tensor, p: Tensor, z: Tensor, g: Tensor, *penalties: float) -> Tensor:
    """The released steps for s, in place of `feed_forward.solve_s`; its penalties are not used."""
    for _ in range(STEPS):
        sigmoid = torch.sigmoid(s)
        slope = sigmoid * (1 + s * (1 - sigmoid))
        gradient = 2 * PENALTY * ((s - g) - (p - silu(s) * z) * z * slope)
        s = s - RATE * gradient
    return s


def smallest_eigenvalues(name: str) -> list[float]:
    """For each block, the smallest eigenvalue of the feed-forward network's inputs, as a share of
    their mean."""
    model, tokenizer = sl.load(name)
    windows, found = sl.calibration(tokenizer, "demo", samples=16, seqlen=256), []
    for block in sl.blocks_of(model):
        first = block.fc1 if hasattr(block, "fc1") else block.mlp.up_proj
        x = inputs_of(model, windows, first).double()
        values = torch.linalg.eigvalsh(x @ x.T)
        found.append((values[0] / values.mean()).item())
    return found


def main() -> None:
    """The eigenvalues, then the runs that are missing in the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("bench/gated_loop.csv"))
    args = parser.parse_args()
    for name in ("opt-mini", "smollm2-135m"):
        shares = sorted(smallest_eigenvalues(name))
        print(
            f"{name}: smallest eigenvalue of the feed-forward inputs, as a share of the mean one:"
            f" {shares[0]:.1e} to {shares[-1]:.1e} by block"
        )
    sweep = Sweep(
        model="smollm2-135m", samples=16, seqlen=512, texts=("demo", "wikitext2"), windows=24
    )
    model, _ = sl.load(sweep.model)
    unpruned, dense = sweep.perplexities(model), dense_weights(model)

    def make(job: dict) -> list[dict]:
        restore(model, dense)
        with patch.object(feed_forward, "solve_s", gradient_steps):
            report = sweep.prune(model, job["seed"], job["pattern"], METHOD)
        return sweep.evaluate(model, report, unpruned, **job)

    sweep.resume(args.out, jobs_of(args.seeds, ["0.7"], [GRADIENT]), make, True)


if __name__ == "__main__":
    main()
