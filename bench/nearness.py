"""Is a pruned model with a lower perplexity the one that is nearer to the dense model? On a text
unlike the one that it learnt, a model can gain by being pruned; its distance from the dense model,
the mean of KL(dense || pruned) over all tokens, tells whether it stayed what it was.

    SPARSELAB_DATA=FOLDER python bench/nearness.py

opt-mini, calibrated on books, at the patterns at which the recommended call is behind others on
WikiText-2; and, with `--texts ptb,demo --sparsities 0.6 4:8 3:4 --out bench/nearness-admm.csv`
(bench/sweeps.sh has the methods), where plain ADMM is ahead of it. docs/results.md shows the rows.
"""

import argparse
import os
from pathlib import Path
from statistics import fmean, stdev

import sparselab as sl
from sparselab.allocation.scores import DenseReference
from sparselab.experiments.sweep import Sweep, jobs_of
from sparselab.models.architecture import dense_weights, restore

METHODS = (
    "wanda",
    "sparsegpt",
    "admm",
    "admm:fisher=True",
    "admm:fisher=True;divide=True",
    "admm:guided",
)


def on_books(folder: Path, *texts: str) -> Sweep:
    """opt-mini, calibrated on 64 x 256 tokens of books; judged on other books and these texts."""
    return Sweep(
        model="opt-mini",
        corpus=str(folder / "books-train.txt.xz"),
        samples=64,
        seqlen=256,
        texts=(str(folder / "books-heldout.txt.xz"), *texts),
        windows=64,
    )


def main() -> None:
    """The runs that are missing in the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsities", nargs="+", default=["0.5", "2:4"])
    parser.add_argument("--methods", nargs="+", default=[*METHODS])
    parser.add_argument("--texts", default="wikitext2", help="beside the held-out books")
    parser.add_argument("--out", type=Path, default=Path("bench/nearness.csv"))
    args = parser.parse_args()
    sweep = on_books(Path(os.environ["SPARSELAB_DATA"]), *args.texts.split(","))
    model, tokenizer = sl.load(sweep.model)
    unpruned, dense = sweep.perplexities(model), dense_weights(model)
    references = []
    for text in sweep.texts:
        ids = sl.tokens(tokenizer, text)[: sweep.windows * sweep.seqlen]
        references.append(DenseReference(model, ids.view(-1, sweep.seqlen)))

    def make(job: dict) -> list[dict]:
        restore(model, dense)
        rows = sweep.evaluate(model, sweep.prune(model, **job), unpruned, **job)
        for row, reference in zip(rows, references, strict=True):
            each = [reference.divergence([window]) for window in range(sweep.windows)]
            row["divergence"] = fmean(each)
            row["divergence_stderr"] = stdev(each) / len(each) ** 0.5
        return rows

    sweep.resume(args.out, jobs_of(args.seeds, args.sparsities, args.methods), make, True)


if __name__ == "__main__":
    main()
