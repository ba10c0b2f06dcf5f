"""Do the first windows of a text say what windows from all over it say? The recorded sweeps judge
by the first 64 windows, which on the demo text are of two articles out of thirty.

    SPARSELAB_DATA=FOLDER python bench/places.py
    python bench/places.py --web

opt-mini, calibrated on books as in the sweeps, 70 %, three draws. Each pruned model is judged by
the first 64 windows of three texts, and by 64 windows from all over them: the columns that end in
`_spread`. docs/results.md and lesson 11 show the rows. `--web`: calibrated on 32 windows of web
pages, with and without the dense model's outputs as the target, for a verdict and lesson 09
(bench/places-web.csv).
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from nearness import on_books

import sparselab as sl
from sparselab.experiments.sweep import Sweep, jobs_of
from sparselab.models.architecture import dense_weights, restore

METHODS = (
    *("wanda", "dsnot:published", "sparsegpt"),
    *("sparsellm:repaired", "sparsellm", "admm", "admm:guided"),
)
AIM = ":targets=dense-model"
AIMED = tuple(name + switch for name in ("wanda", "sparsegpt", "admm") for switch in ("", AIM))


def main() -> None:
    """The runs that are missing in the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsities", nargs="+", default=["0.7"])
    parser.add_argument("--web", action="store_true")
    args = parser.parse_args()
    if args.web:
        sweep, methods, out = Sweep(samples=32), AIMED, "places-web.csv"
    else:
        sweep = on_books(Path(os.environ["SPARSELAB_DATA"]), "demo", "wikitext2")
        methods, out = METHODS, "places.csv"
    model, _ = sl.load(sweep.model)
    dense, everywhere = dense_weights(model), replace(sweep, spread=True)
    unpruned, elsewhere = sweep.perplexities(model), everywhere.perplexities(model)

    def make(job: dict) -> list[dict]:
        restore(model, dense)
        rows = sweep.evaluate(model, sweep.prune(model, **job), unpruned, **job)
        for row, (text, pruned) in zip(rows, everywhere.perplexities(model).items(), strict=True):
            excess, error = pruned.ratio(elsewhere[text])
            row |= {"dense_spread": round(float(elsewhere[text]), 4)}
            row |= {"perplexity_spread": round(float(pruned), 4)}
            row |= {"excess_spread": round(excess, 6), "excess_stderr_spread": round(error, 6)}
        return rows

    sweep.resume(Path("bench") / out, jobs_of(args.seeds, args.sparsities, methods), make, True)


if __name__ == "__main__":
    main()
