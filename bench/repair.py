"""What SparseGPT's gain is made of: its mask and its repair, one with and without the other, judged
by the whole model's perplexity.

    python bench/repair.py --model smollm2-135m --blocks 10 --samples 16 --windows 16

Two masks, Wanda's and SparseGPT's, and for each two sets of kept weights: as they were ("stay"), or
moved by SparseGPT's column loop ("move"). Lesson 04 shows the rows of smollm2-135m and makes those
of opt-mini itself.
"""

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

import sparselab as sl
from sparselab.experiments.results import append
from sparselab.experiments.sweep import Sweep
from sparselab.methods.base import Solution
from sparselab.methods.sparsegpt import prune_block
from sparselab.models.architecture import dense_weights, restore

MASKS = {"wanda": sl.Wanda(), "sparsegpt": sl.SparseGPT()}


@dataclass(frozen=True)
class MaskAndWeights(sl.SparseGPT):
    """The mask of one method; kept weights that stay or are moved by SparseGPT's column loop."""

    mask: str = "sparsegpt"
    moved: bool = True

    def solve(self, weight, stats, pattern):
        mask = MASKS[self.mask].solve(weight, stats, pattern).mask
        new = self._push(weight, mask, stats) if self.moved else weight * mask
        return Solution(new, mask)

    def _push(self, weight: torch.Tensor, mask: torch.Tensor, stats) -> torch.Tensor:
        """Weight [r, c] and mask [r, c], bool -> the weights that SparseGPT's loop leaves under
        this mask."""
        factor, _, _ = stats.inverse_factor(self.damp)
        w, pruned, none = weight.T.clone(), ~mask.T, sl.Pattern(0.0)  # the mask is there already
        for a in range(0, len(w), self.block):
            part = slice(a, a + self.block)
            scale = 1 / factor.diagonal()[part, None]
            errors = prune_block(w[part], pruned[part], factor[part, part], scale, none)
            rest = slice(a + self.block, None)
            w[rest].addmm_(factor[part, rest].T, errors, alpha=-1)
        return w.masked_fill_(pruned, 0).T.contiguous()


def main() -> None:
    """The runs that are missing in the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--sparsity", default="0.7")
    parser.add_argument("--blocks", type=int, help="prune only so many blocks, the first ones")
    parser.add_argument("--out", type=Path, default=Path("bench/repair.csv"))
    args = parser.parse_args()
    sweep = Sweep(
        model=args.model,
        corpus="demo",
        samples=args.samples,
        seqlen=256,
        texts=("demo",),
        windows=args.windows,
        layers=range(args.blocks) if args.blocks else None,
    )
    model, tokenizer = sl.load(sweep.model)
    windows = sl.calibration(tokenizer, sweep.corpus, samples=sweep.samples, seqlen=sweep.seqlen)
    there = sweep.rows_in(args.out, pattern=args.sparsity)
    missing = [
        (mask, moved)
        for mask, moved in product(MASKS, (False, True))
        if there.empty or not (there.method == name_of_run(mask, moved)).any()
    ]
    if not missing:
        return
    dense, weights = sweep.perplexities(model), dense_weights(model)
    for mask, moved in missing:
        restore(model, weights)
        method = MaskAndWeights(mask=mask, moved=moved)
        asked = {"sparsity": args.sparsity, "layers": sweep.layers}
        report = sl.prune(model, windows, method=method, progress=False, **asked)
        job = {"seed": 0, "pattern": args.sparsity, "method": name_of_run(mask, moved)}
        rows = sweep.evaluate(model, report, dense, **job)
        append(args.out, rows)
        print(job["method"], [row["perplexity"] for row in rows], flush=True)


def name_of_run(mask: str, moved: bool) -> str:
    """What the table calls a pair: 'wanda, move' is Wanda's mask with SparseGPT's repair."""
    return f"{mask}, {'move' if moved else 'stay'}"


if __name__ == "__main__":
    main()
