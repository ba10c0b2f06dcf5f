"""What it costs that ADMM may keep weights at inputs that are zero on every calibration token.

    SPARSELAB_DATA=FOLDER python bench/dead_inputs.py

`Statistics.hessian` gives such an input the mean curvature of the others, in case that it is not
zero on other text. Here it gets the damping alone, as in ALPS, and nothing else is changed:
opt-mini, calibrated on books as bench/opt-mini.csv, whose rows stand beside these. In fc2 of its
block 1, 429 of 1,024 inputs are zero on 64 x 256 tokens of web pages.
"""

import argparse
import os
from pathlib import Path

import sparselab as sl
from sparselab.experiments.sweep import Sweep, jobs_of
from sparselab.models.architecture import dense_weights, restore
from sparselab.numerics.statistics import Statistics, live_mean


def hessian(self: Statistics, damp: float | None = None):
    """As `Statistics.hessian`, but the ridge is the same for all inputs."""
    damp = self.damping if damp is None else damp
    found = self.gram / self.tokens
    mean = live_mean(found.diagonal(), self.gram.diagonal() == 0)
    found.diagonal().add_(damp * mean)
    return found


def main() -> None:
    """The runs that are missing in the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sparsities", nargs="+", default=["0.7", "2:4", "0.9"])
    parser.add_argument("--methods", nargs="+", default=["admm"])
    parser.add_argument("--out", type=Path, default=Path("bench/dead-inputs.csv"))
    args = parser.parse_args()
    folder = Path(os.environ["SPARSELAB_DATA"])
    sweep = Sweep(
        model="opt-mini",
        corpus=str(folder / "books-train.txt.xz"),
        samples=64,
        seqlen=256,
        texts=(str(folder / "books-heldout.txt.xz"), "wikitext2", "ptb", "demo"),
        windows=64,
    )
    model, _ = sl.load(sweep.model)
    unpruned, dense = sweep.perplexities(model), dense_weights(model)
    Statistics.hessian = hessian

    def make(job: dict) -> list[dict]:
        restore(model, dense)
        return sweep.evaluate(model, sweep.prune(model, **job), unpruned, **job)

    sweep.resume(args.out, jobs_of(args.seeds, args.sparsities, args.methods), make, True)


if __name__ == "__main__":
    main()
