"""Every solver of one matrix in one run, in turn: seconds, and the error that it leaves.

python bench/solvers.py [--sparsities 0.7,0.9,2:4] [--model opt-mini] [--blocks 1,5]

ALPS stands as its paper has it beside `sl.ALPS`: a decomposition in float64, the inverse applied as
two products in every iteration, ten steps of conjugate gradients. Errors are squared output errors
as a share of SparseGPT's, the mean over the matrices: as `sl.ADMM` counts them, which damps, and
takes an input that was always zero for an average one, in case that it is not on other text; and on
the calibration tokens alone, where such an input costs nothing, as nearly for ALPS. The Gram
matrices are those of the dense model. Needs an idle machine.
"""

import argparse
import time
from collections import defaultdict
from statistics import fmean

import torch
from torch import Tensor

import sparselab as sl
from sparselab.methods.admm import squared_error
from sparselab.models.hooks import watching
from sparselab.numerics.refit import refit
from sparselab.numerics.statistics import Statistics
from sparselab.patterns import prune_rows


def textbook_alps(weight: Tensor, stats: Statistics, pattern: sl.Pattern) -> Tensor:
    """Meng et al., arXiv 2406.07831, algorithm 1."""
    hessian = stats.hessian(0.01)
    scale = hessian.diagonal().sqrt()
    values, vectors = torch.linalg.eigh((hessian / scale / scale[:, None]).double())
    values, vectors = values.float(), vectors.float()
    aim, rho = (weight @ hessian) / scale, 0.1
    D, V = weight * scale, torch.zeros_like(weight)
    first = seen = ~prune_rows(D.abs(), pattern, per_row=False)
    for step in range(1, 301):
        B = ((aim - V + rho * D) @ vectors / (values + rho)) @ vectors.T
        mask = ~prune_rows((B + V / rho).abs(), pattern, per_row=False)
        D = (B + V / rho) * mask
        V = V + rho * (B - D)
        if step % 3 == 0:
            changed = ((mask ^ seen).sum() / mask.sum()).item()
            if not changed and torch.equal(mask, first):
                rho, D, V = rho / 5, weight * scale, torch.zeros_like(weight)
            elif not changed or (step > 30 and changed < 3e-4):
                break
            else:
                rho *= 1.3 if changed > 0.1 else 1.2 if changed > 0.005 else 1.1
            seen = mask
    return refit(weight, D / scale, mask, hessian, steps=10, tolerance=0.0)


def harvest(model, windows: Tensor, blocks: list[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and raw Gram matrix of every linear of some blocks of the dense model, by name."""
    linears = sl.linears_of(model, blocks)
    sums = {name: Statistics(one.in_features, one.weight.device) for name, one in linears.items()}
    with (
        torch.no_grad(),
        watching(linears, before=lambda name, args, kwargs: sums[name].add(args[0])),
    ):
        for ids in windows.split(16):
            model(ids)
    for name, stats in sums.items():
        stats.finish(name)
    return {name: (one.weight.detach().float(), sums[name]) for name, one in linears.items()}


def fresh(stats: Statistics) -> Statistics:
    """The same sums with nothing kept from an earlier solver."""
    other = Statistics(len(stats.gram), stats.gram.device)
    other.gram, other.square, other.tokens = stats.gram, stats.square, stats.tokens
    return other


SOLVERS = {
    "sparsegpt": lambda w, s, p: sl.SparseGPT().solve(w, s, p).weight,
    "alps, textbook": textbook_alps,
    "alps": lambda w, s, p: sl.ALPS().solve(w, s, p).weight,
    "admm": lambda w, s, p: sl.ADMM().solve(w, s, p).weight,
    "admm, slow": lambda w, s, p: sl.ADMM(penalty=0.03, growth=1.1).solve(w, s, p).weight,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="opt-mini")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--blocks", default="1,5")
    parser.add_argument("--sparsities", default="0.7,0.9,2:4")
    args = parser.parse_args()
    model, tokenizer = sl.load(args.model)
    windows = sl.calibration(tokenizer, "demo", samples=args.samples, seqlen=args.seqlen)
    matrices = harvest(model, windows, [*map(int, args.blocks.split(","))])
    print(
        f"{args.model}, blocks {args.blocks}, {len(matrices)} matrices, calibration"
        f" {args.samples} x {args.seqlen} tokens of demo, {torch.get_num_threads()} threads"
    )
    for text in args.sparsities.split(","):
        pattern = sl.Pattern.parse(text if ":" in text else float(text))
        seconds, errors, plain = defaultdict(float), defaultdict(list), defaultdict(list)
        for weight, stats in matrices.values():
            for name, solve in SOLVERS.items():
                own, started = fresh(stats), time.perf_counter()
                new = solve(weight, own, pattern)
                seconds[name] += time.perf_counter() - started
                errors[name].append(squared_error(weight, new, stats.hessian()))
                plain[name].append(squared_error(weight, new, stats.gram / stats.tokens))
        for name in SOLVERS:
            damped, alone = (
                fmean(a / b for a, b in zip(each[name], each["sparsegpt"], strict=True))
                for each in (errors, plain)
            )
            print(
                f"  {text:4} {name:15} {seconds[name]:6.2f} s, squared error {damped:.3f}, on the"
                f" calibration tokens alone {alone:.3f}"
            )
    print("  several sparsities of the same matrices, one after the other, by one decomposition:")
    patterns = [sl.Pattern(share) for share in (0.5, 0.6, 0.7, 0.8, 0.9)]
    for shared in (False, True):
        started = time.perf_counter()
        for weight, stats in matrices.values():
            kept = fresh(stats)
            for pattern in patterns:
                sl.ADMM().solve(weight, kept if shared else fresh(stats), pattern)
        what = "kept" if shared else "made anew"
        print(f"    {len(patterns)} sparsities, {what}: {time.perf_counter() - started:.2f} s")


if __name__ == "__main__":
    main()
