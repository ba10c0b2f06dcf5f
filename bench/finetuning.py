"""What training after pruning repairs, and what it merely adapts: python bench/finetuning.py [--csv
FILE] [--books FILE]

opt-mini, dense and pruned by Wanda and SparseGPT to 70 and 80 %, fine-tuned alike (`sl.finetune`,
zeros kept) on every second article of the demo corpus's Wikipedia text; perplexity before and after
on two windows of each of the other articles. --books: a text like that on which opt-mini was
trained, to see what is forgotten; as many windows from all over it. A row is written when its run
is done.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import LongTensor

import sparselab as sl
from sparselab.data.corpora import rows_of

SEQLEN = 256
STARTS = [("dense", 0.0), ("wanda", 0.7), ("sparsegpt", 0.7), ("wanda", 0.8), ("sparsegpt", 0.8)]


def articles(tokenizer) -> list[LongTensor]:
    """Each article of the demo text, cut into windows: [windows, SEQLEN]."""
    ids = [torch.tensor(tokenizer(row).input_ids) for row in rows_of("demo", "evaluation")]
    return [one[: len(one) // SEQLEN * SEQLEN].view(-1, SEQLEN) for one in ids]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "finetuning.csv")
    parser.add_argument("--books", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4])
    args = parser.parse_args()
    model, tokenizer = sl.load("opt-mini")
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    windows = sl.calibration(tokenizer, "demo", samples=64, seqlen=SEQLEN)
    parts = articles(tokenizer)
    held = torch.cat([one[[len(one) // 4, 3 * len(one) // 4]] for one in parts[::2]])
    train = torch.cat(parts[1::2])
    texts = {"demo": held.flatten()}
    if args.books:
        texts["books"] = sl.tokens(tokenizer, args.books, windows=len(held), seqlen=SEQLEN)

    def measure(when: str) -> dict:
        return {
            f"{name}_{when}": round(
                float(sl.perplexity(model, ids, seqlen=SEQLEN, progress=False)), 4
            )
            for name, ids in texts.items()
        }

    rows = []
    for method, sparsity in STARTS:
        model.load_state_dict(dense)
        if sparsity:
            sl.prune(model, windows, method=method, sparsity=sparsity, progress=False)
        pruned, before = (
            {name: value.clone() for name, value in model.state_dict().items()},
            measure("before"),
        )
        for rate in args.rates:
            model.load_state_dict(pruned)
            result = sl.finetune(
                model, train, steps=args.steps, batch=args.batch, rate=rate, progress=False
            )
            rows.append(
                {
                    "model": "opt-mini",
                    "start": method,
                    "sparsity": sparsity,
                    "steps": args.steps,
                    "rate": rate,
                    "batch": args.batch,
                    "seqlen": SEQLEN,
                    "held_windows": len(held),
                    "train_windows": len(train),
                    "zeros_before": result.sparsity[0],
                    "zeros_after": result.sparsity[1],
                    **before,
                    **measure("after"),
                }
            )
            pd.DataFrame(rows).to_csv(args.csv, index=False)
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
