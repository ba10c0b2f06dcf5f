"""How much of what the residual stream lacks a matrix should make up for, with few tokens.

    python bench/stream_share.py

opt-mini at 70 %, the guided call, 8 windows of 256 tokens of web pages, three draws; judged on
Wikipedia articles and, with SPARSELAB_DATA, on WikiText-2. The package takes half. What could be
gained by another constant, or by the best share of each draw? A row is written when it is known.
"""

import argparse
import os
from pathlib import Path

import sparselab as sl
from sparselab.engine import activations
from sparselab.experiments.experiment import Experiment
from sparselab.experiments.results import append
from sparselab.models.architecture import dense_weights, restore

METHOD, PATTERN = "admm:guided", "0.7"


def main() -> None:
    """The runs that are missing in the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--out", type=Path, default=Path("bench/stream-share.csv"))
    args = parser.parse_args()
    texts = ("demo", "wikitext2") if os.environ.get("SPARSELAB_DATA") else ("demo",)
    setting = Experiment("opt-mini", "demo", 8, 256, texts, 32)
    model, _ = sl.load(setting.model)
    unpruned, dense = setting.perplexities(model), dense_weights(model)
    for seed in args.seeds:
        windows = setting.calibration(model, seed)
        for share in args.shares:
            if len(setting.rows_in(args.out, seed=seed, share=share)):
                continue
            restore(model, dense)
            activations.STREAM_SHARE = share
            report = sl.prune(
                model, windows, method=sl.ADMM.guided(), sparsity=float(PATTERN), progress=False
            )
            rows = setting.evaluate(
                model, report, unpruned, seed=seed, pattern=PATTERN, method=METHOD
            )
            append(args.out, [{"share": share, **row} for row in rows])
            print(seed, share, *(row["excess"] for row in rows), flush=True)


if __name__ == "__main__":
    main()
