"""One LLaMA-shaped feed-forward network: SparseLLM by regressions and the push-through identity
against its SVD form.

    python bench/sparsellm_block.py [--width 576] [--tokens 8192] [--epochs 2]

The SVD form is what the published code does: pseudo-inverses of X [N, d] and of p [N, f] by SVD,
and an inverse of [f, f] for p. Both sides prune with the same SparseGPT, in float32, on the same
inputs, in the same run; the true block error of both is printed, and the time of the two steps that
differ, each alone. Then DSnoT's selection of its candidates against full sorts, with the peak
memory of each, measured in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

import sparselab as sl
from sparselab.methods.base import regression
from sparselab.methods.dsnot import _Side, expected_error
from sparselab.methods.feed_forward import FeedForward, ridge, solve_p, solve_s
from sparselab.numerics.statistics import GRAM, MOMENTS, NORMS, Statistics
from sparselab.runtime.memory import peak_bytes, reset_peak

SVD_GOAL, SELECT_GOAL = 20, 5
PATTERN = sl.Pattern(0.7)


def inputs(tokens: int, width: int) -> torch.Tensor:
    """Correlated inputs with two loud channels, [tokens, width]."""
    torch.manual_seed(0)
    x = torch.randn(tokens, width) @ (
        torch.randn(width, width) / width**0.5 + 0.5 * torch.eye(width)
    )
    x[:, :2] *= 10
    return x / 3


def svd_form(linears: dict, x: torch.Tensor, epochs: int) -> dict:
    """The published loop with its pseudo-inverses; the gate step is ours, since theirs need not be
    finite."""
    w = {role: linear.weight for role, linear in linears.items()}
    z, s = x @ w["up"].T, x @ w["gate"].T
    p = F.silu(s) * z
    y, inverse, local = p @ w["down"].T, torch.linalg.pinv(x), sl.SparseGPT()
    first = Statistics.of(x).finish("x")
    for epoch in range(epochs):
        if epoch:
            w = {
                "up": (inverse @ z).T,
                "gate": (inverse @ s).T,
                "down": (torch.linalg.pinv(p) @ y).T,
            }
        second = Statistics.of(p).finish("p")
        w = {
            role: local.solve(weight, second if role == "down" else first, PATTERN).weight
            for role, weight in w.items()
        }
        normal = w["down"].T @ w["down"] + torch.eye(len(w["up"]))
        p = (torch.linalg.inv(normal) @ (w["down"].T @ y.T + (F.silu(s) * z).T)).T
        z = (x @ w["up"].T + F.silu(s) * p) / (F.silu(s) ** 2 + 1)
        s = solve_s(s, p, z, x @ w["gate"].T, 1.0, 1.0)
    return w


def error(linears: dict, weights: dict, x: torch.Tensor) -> float:
    """||FFN(X) - FFN'(X)|| / ||FFN(X)||."""

    def run(w):
        return (F.silu(x @ w["gate"].T) * (x @ w["up"].T)) @ w["down"].T

    dense = run({role: linear.weight for role, linear in linears.items()})
    return ((dense - run(weights)).norm() / dense.norm()).item()


@torch.no_grad()
def block(width: int, tokens: int, epochs: int) -> None:
    """Time both forms of the loop on one network."""
    x, hidden = inputs(tokens, width), -(-width * 8 // 3 // 64) * 64
    linears = {
        "gate": nn.Linear(width, hidden, bias=False),
        "up": nn.Linear(width, hidden, bias=False),
        "down": nn.Linear(hidden, width, bias=False),
    }
    started = time.perf_counter()
    ffn = FeedForward(linears, tokens, keep_p=True)
    ffn.add(x)
    fits, _ = sl.SparseLLM.published("LLaMA", epochs).prune_ffn(
        ffn.finish("ffn"), dict.fromkeys(linears, PATTERN)
    )
    ours = time.perf_counter() - started
    started = time.perf_counter()
    theirs = svd_form(linears, x, epochs)
    seconds = time.perf_counter() - started
    mine = error(linears, {role: fit.solution.weight for role, fit in fits.items()}, x)
    print(
        f"block {width} x {hidden}, {tokens} tokens, {epochs} epochs, 70 % zeros: SVD form"
        f" {seconds:.2f} s, sparselab {ours:.2f} s, ratio {seconds / ours:.1f}x (goal {SVD_GOAL}x);"
        f" block error {error(linears, theirs, x):.4f} / {mine:.4f}",
        flush=True,
    )


@torch.no_grad()
def steps(width: int, tokens: int) -> None:
    """The two steps that the SVD form does otherwise, each alone: W2 from p, and p from Y."""
    hidden = -(-width * 8 // 3 // 64) * 64
    phi, y, down = (
        torch.randn(tokens, hidden),
        torch.randn(tokens, width),
        torch.randn(width, hidden) / hidden**0.5,
    )
    stats = Statistics.of(phi).finish("p")  # SparseGPT needs it on both sides
    stats.inverse_factor(1e-6)
    rows = {
        "W2 by pseudo-inverse / regression from the Gram matrix": (
            lambda: torch.linalg.pinv(phi) @ y,
            lambda: regression(down, y.T @ phi, stats, 1e-6),
        ),
        "p by an f x f inverse / push-through": (
            lambda: torch.linalg.inv(down.T @ down + torch.eye(hidden)) @ (down.T @ y.T + phi.T),
            lambda: solve_p(phi, y, down, torch.linalg.cholesky(ridge(down @ down.T, 1.0))),
        ),
    }
    for name, pair in rows.items():
        theirs, ours = map(seconds_of, pair)
        print(f"  {name}: {theirs:.2f} s / {ours:.3f} s, ratio {theirs / ours:.0f}x")


def seconds_of(work) -> float:
    """The faster of two runs."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


@torch.no_grad()
def select(kind: str, width: int) -> None:
    """Choose DSnoT's candidates of one matrix [width, width], by selection or by full sorts; print
    seconds and memory."""
    x = inputs(2048, width).view(8, 256, width) + 0.1
    stats = Statistics.of(x, needs=(GRAM, NORMS, MOMENTS)).finish("x")
    weight, rule = torch.randn(width, width), sl.DSnoT()
    pruned = ~sl.Wanda().solve(weight, stats, PATTERN).mask
    sign = torch.where(expected_error(weight, pruned, stats) < 0, -1.0, 1.0)[:, None]
    effect = weight * stats.mean * sign
    before, started = reset_peak(weight.device), time.perf_counter()
    if kind == "selection":
        _Side(rule, weight, pruned, effect, stats)
    else:  # two sorts of scores, two of their signs
        scores = weight.abs() * stats.norms
        order = scores.masked_fill(pruned, torch.inf).sort(dim=1)
        torch.where(effect.gather(1, order.indices) < 0, order.values.double(), torch.inf).sort(
            dim=1
        )
        grow = torch.where(pruned, effect / stats.variance, 0.0).sort(dim=1)
        grow.indices.double()
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "MiB": (peak_bytes(weight.device) - before) / 2**20}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--select", choices=("selection", "sorts"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.select:
        return select(args.select, args.width)
    block(args.width, args.tokens, args.epochs)
    steps(args.width, args.tokens)
    width = 4 * args.width
    rows = {
        kind: json.loads(
            subprocess.check_output(
                [sys.executable, __file__, "--select", kind, "--width", str(width)]
            )
        )
        for kind in ("sorts", "selection")
    }
    print(
        f"DSnoT candidates of a matrix {width} x {width}: full sorts {rows['sorts']['seconds']:.3f}"
        f" s, selection {rows['selection']['seconds']:.3f} s, ratio"
        f" {rows['sorts']['seconds'] / rows['selection']['seconds']:.1f}x (goal {SELECT_GOAL}x);"
        f" memory added at the peak {rows['sorts']['MiB']:.0f} / {rows['selection']['MiB']:.0f} MiB"
    )
    return None


if __name__ == "__main__":
    main()
