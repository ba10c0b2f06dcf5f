"""Why SparseLLM's released loop loses on opt-mini: one change at a time, judged by the whole
model's perplexity.

    SPARSELAB_DATA=FOLDER python bench/published_loop.py --out bench/published_loop.csv

What fc1 receives comes from a LayerNorm, and hardly varies along 1/gamma, the inverse of its
weights: the normalised tokens add up to zero. The loop's regression of W1 divides by that variance.
Three changes, all else equal:

- pinverse: the real `torch.pinverse` of the tokens, as the released code has it, in place of a
  ridge of 1e-6;
- projected: the regression may not move W1 along 1/gamma;
- (in bench/published.csv: sparsellm:repaired, a ridge of 1e-4.)

First it prints, block by block, how near 1/gamma is to the eigenvector of the Gram matrix' smallest
eigenvalue.
"""

import argparse
import dataclasses
import os
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

import sparselab as sl
from sparselab.course.layers import inputs_of
from sparselab.experiments.results import append, name_of, read, rows_matching
from sparselab.experiments.sweep import Sweep
from sparselab.methods.base import regression
from sparselab.methods.feed_forward import FeedForward
from sparselab.methods.sparsellm import Step
from sparselab.models.architecture import dense_weights, restore
from sparselab.numerics.statistics import Statistics
from sparselab.patterns import Pattern

CHANGES = ("pinverse", "projected")


@dataclasses.dataclass(frozen=True)
class Changed(sl.SparseLLM):
    """The released loop with one change in the regression of W1; `model` is where 1/gamma is looked
    up."""

    change: str = ""
    model: nn.Module | None = dataclasses.field(default=None, repr=False, compare=False)

    def feed_forward(self, linears: dict[str, nn.Linear], tokens: int) -> FeedForward:
        block = next(block for block in sl.blocks_of(self.model) if block.fc1 is linears["up"])
        ffn = super().feed_forward(linears, tokens)
        ffn.direction = nn.functional.normalize(
            1 / block.final_layer_norm.weight.detach().float(), dim=0
        )
        return ffn

    def prune_ffn(self, ffn: FeedForward, shares: dict[str, Pattern]):
        object.__setattr__(self, "ffn", ffn)
        return super().prune_ffn(ffn, shares)

    def _step(
        self,
        role: str,
        weight: Tensor,
        outputs: Tensor,
        stats: Statistics,
        pattern: Pattern,
        ffn: FeedForward,
        last: Step | None,
    ) -> Step:
        if role != "up" or last is None:
            return super()._step(role, weight, outputs, stats, pattern, ffn, last)
        if self.change == "pinverse":
            target = (torch.pinverse(self.ffn.x.float()) @ (self.ffn.z - self.ffn.bias["up"])).T
        else:
            moved = regression(weight, outputs, stats, self.ridge) - weight
            target = weight + moved - torch.outer(moved @ self.ffn.direction, self.ffn.direction)
        return Step(target, *self.prune_matrix(target, stats, pattern)[1:], stats)


def cosines(model: nn.Module, windows: Tensor) -> list[tuple[float, float]]:
    """For each block, |cosine| of 1/gamma with the eigenvector of the smallest eigenvalue of fc1's
    Gram matrix, and that eigenvalue as a share of their mean."""
    found = []
    for block in sl.blocks_of(model):
        x = inputs_of(model, windows, block.fc1).double()
        values, vectors = torch.linalg.eigh(x @ x.T)
        direction = nn.functional.normalize(
            1 / block.final_layer_norm.weight.detach().double(), dim=0
        )
        found.append(((vectors[:, 0] @ direction).abs().item(), (values[0] / values.mean()).item()))
    return found


def main() -> None:
    """The cosines, then the runs that are missing in the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("bench/published_loop.csv"))
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    data = Path(os.environ["SPARSELAB_DATA"])
    sweep = Sweep(
        corpus=str(data / "books-train.txt.xz"),
        texts=(str(data / "books-heldout.txt.xz"), "wikitext2", "demo"),
    )
    model, tokenizer = sl.load(sweep.model)
    texts = {
        name_of(text): sl.tokens(tokenizer, text)[: sweep.windows * sweep.seqlen]
        for text in sweep.texts
    }
    dense = {
        text: sl.perplexity(model, ids, seqlen=sweep.seqlen, progress=False)
        for text, ids in texts.items()
    }
    weights, released = dense_weights(model), sl.SparseLLM.published("OPT")
    there = read(args.out) if args.out.exists() else None
    for seed in map(int, args.seeds.split(",")):
        windows = sl.calibration(
            tokenizer, sweep.corpus, samples=sweep.samples, seqlen=sweep.seqlen, seed=seed
        )
        if seed == 0:
            for block, (cosine, share) in enumerate(cosines(model, windows)):
                print(
                    f"block {block}: |cosine| of 1/gamma and the last eigenvector {cosine:.4f},"
                    f" eigenvalue {share:.1e}"
                )
        for pattern, change in product(("0.7", "0.8"), CHANGES):
            name = f"sparsellm:published, {change}"
            if (
                there is not None
                and rows_matching(there, {"seed": seed, "pattern": pattern, "method": name}).any()
            ):
                continue
            method = Changed(
                **{f.name: getattr(released, f.name) for f in dataclasses.fields(released)},
                change=change,
                model=model,
            )
            restore(model, weights)
            report = sl.prune(model, windows, method=method, sparsity=pattern, progress=False)
            ppls = {
                text: sl.perplexity(model, ids, seqlen=sweep.seqlen, progress=False)
                for text, ids in texts.items()
            }
            append(
                args.out,
                [
                    {
                        **sweep.row(seed, pattern, name, report, text, dense[text], ppl),
                        "settings": str(released),
                    }
                    for text, ppl in ppls.items()
                ],
            )
            print(
                f"seed {seed}, {pattern}, {change}:"
                f" {', '.join(f'{text} {ppl}' for text, ppl in ppls.items())}"
            )
    restore(model, weights)


if __name__ == "__main__":
    main()
