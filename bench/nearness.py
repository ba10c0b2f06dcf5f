"""Is a pruned model with a lower perplexity the one that is nearer to the dense model? On a text
unlike the one that it learnt, a model can gain by being pruned; its distance from the dense model,
the mean of KL(dense || pruned) over all tokens, tells whether it stayed what it was.

    SPARSELAB_DATA=FOLDER python bench/nearness.py

opt-mini, calibrated on books, at the patterns at which the recommended call is behind others on
WikiText-2. docs/results.md shows the rows.
"""

import argparse
import os
from itertools import product
from pathlib import Path

import torch

import sparselab as sl
from sparselab.evaluation.divergence import window_divergences
from sparselab.experiments.results import append
from sparselab.experiments.sweep import Sweep
from sparselab.methods.registry import named_method
from sparselab.models.architecture import dense_weights, restore

METHODS = ("wanda", "sparsegpt", "admm", "admm:fisher=True", "admm:fisher=True;divide=True")
METHODS = (*METHODS, "admm:guided")
AT_ONCE = 8  # windows


@torch.no_grad()
def distance(model, ids: torch.Tensor, seqlen: int, logits: list[torch.Tensor]) -> torch.Tensor:
    """KL(dense || model) of each window [windows], in nats a token; `logits` are the dense ones, by
    part, and are made where the list is empty."""
    parts = ids.view(-1, seqlen).split(AT_ONCE)
    if not logits:
        logits += [model(part, use_cache=False).logits for part in parts]
    each = [window_divergences(model, *pair) for pair in zip(parts, logits, strict=True)]
    return torch.cat(each)


def main() -> None:
    """The runs that are missing in the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsities", nargs="+", default=["0.5", "2:4"])
    parser.add_argument("--methods", nargs="+", default=[*METHODS])
    parser.add_argument("--out", type=Path, default=Path("bench/nearness.csv"))
    args = parser.parse_args()
    folder = Path(os.environ["SPARSELAB_DATA"])
    texts = (str(folder / "books-heldout.txt.xz"), "wikitext2")
    sweep = Sweep(
        model="opt-mini",
        corpus=str(folder / "books-train.txt.xz"),
        samples=64,
        seqlen=256,
        texts=texts,
        windows=64,
    )
    model, tokenizer = sl.load(sweep.model)
    unpruned, dense = sweep.perplexities(model), dense_weights(model)
    ids = {text: sl.tokens(tokenizer, text)[: sweep.windows * sweep.seqlen] for text in sweep.texts}
    logits = {text: [] for text in sweep.texts}
    for text in sweep.texts:
        assert distance(model, ids[text], sweep.seqlen, logits[text]).abs().max() < 1e-4
    for seed, pattern, name in product(args.seeds, args.sparsities, args.methods):
        if not sweep.rows_in(args.out, pattern=pattern, seed=seed, method=name).empty:
            continue
        restore(model, dense)
        windows = sl.calibration(tokenizer, sweep.corpus, samples=64, seqlen=256, seed=seed)
        method = named_method(name, "OPT")
        report = sl.prune(model, windows, method=method, sparsity=pattern, progress=False)
        rows = sweep.evaluate(model, report, unpruned, seed=seed, pattern=pattern, method=name)
        for row, text in zip(rows, sweep.texts, strict=True):
            found = distance(model, ids[text], sweep.seqlen, logits[text])
            row["divergence"] = found.mean().item()
            row["divergence_stderr"] = (found.std() / len(found) ** 0.5).item()
            print(seed, pattern, name, row["text"], row["excess"], row["divergence"], flush=True)
        append(args.out, rows)


if __name__ == "__main__":
    main()
