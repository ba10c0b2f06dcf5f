"""What it costs that ADMM may keep weights at inputs that are zero on every calibration token.

    SPARSELAB_DATA=FOLDER python bench/dead_inputs.py
    python bench/dead_inputs.py --matrix      # fc2 of block 1 alone, on the demo's web pages

`Statistics.hessian` gives such an input the mean curvature of the others, in case that it is not
zero on other text. Here it gets the damping alone, as in ALPS, and nothing else is changed:
opt-mini, calibrated on books as bench/opt-mini.csv, whose rows stand beside these.
"""

import argparse
import os
from pathlib import Path

from nearness import on_books
from solvers import fresh, harvest

import sparselab as sl
from sparselab.experiments.sweep import jobs_of
from sparselab.methods.admm import squared_error
from sparselab.models.architecture import dense_weights, restore
from sparselab.numerics.statistics import Statistics, live_mean


def hessian(self: Statistics, damp: float | None = None):
    """As `Statistics.hessian`, but the ridge is the same for all inputs."""
    damp = self.damping if damp is None else damp
    found = self.gram / self.tokens
    mean = live_mean(found.diagonal(), self.gram.diagonal() == 0)
    found.diagonal().add_(damp * mean)
    return found


def one_matrix() -> None:
    """How many inputs are dead, and of ADMM, ADMM so damped and ALPS the share of the weights there
    that is kept and the squared error on the calibration tokens, in SparseGPT's."""
    model, tokenizer = sl.load("opt-mini")
    windows = sl.calibration(tokenizer, "demo", samples=64, seqlen=256)
    name = "model.decoder.layers.1.fc2"
    weight, stats = harvest(model, windows, [1])[name]
    dead, pattern = stats.gram.diagonal() == 0, sl.Pattern(0.7)
    print(f"opt-mini, {name}, 64 x 256 tokens of demo, {pattern.words} zeros")
    print(f"{int(dead.sum())} of {len(dead)} inputs are zero on every token")
    start = sl.SparseGPT().solve(weight, fresh(stats), pattern).weight
    whole, own = squared_error(weight, start, stats.gram), Statistics.hessian
    calls = {"admm": (sl.ADMM(), own), "so damped": (sl.ADMM(), hessian), "alps": (sl.ALPS(), own)}
    for words, (method, damped) in calls.items():
        Statistics.hessian = damped
        found = method.solve(weight, fresh(stats), pattern)
        error = squared_error(weight, found.weight, stats.gram) / whole
        kept = found.mask[:, dead].double().mean()
        print(f"{words:10} keeps {kept:.1%} of the weights at dead inputs, error {error:.3f}")


def main() -> None:
    """The runs that are missing in the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--matrix", action="store_true", help="one matrix, and no table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sparsities", nargs="+", default=["0.7", "2:4", "0.9"])
    parser.add_argument("--methods", nargs="+", default=["admm"])
    parser.add_argument("--out", type=Path, default=Path("bench/dead-inputs.csv"))
    args = parser.parse_args()
    if args.matrix:
        one_matrix()
        return
    sweep = on_books(Path(os.environ["SPARSELAB_DATA"]), "wikitext2", "ptb", "demo")
    model, _ = sl.load(sweep.model)
    unpruned, dense = sweep.perplexities(model), dense_weights(model)
    Statistics.hessian = hessian

    def make(job: dict) -> list[dict]:
        restore(model, dense)
        return sweep.evaluate(model, sweep.prune(model, **job), unpruned, **job)

    sweep.resume(args.out, jobs_of(args.seeds, args.sparsities, args.methods), make, True)


if __name__ == "__main__":
    main()
