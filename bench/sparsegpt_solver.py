"""SparseGPT's two costly steps against the textbook, both timed in one run, in turn.

python bench/sparsegpt_solver.py [--quick] [--json FILE]

Needs an idle machine: both sides use all cores. --quick leaves the widest matrices out. "floor" is
sparselab's time over that of the loop's matrix products alone.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from sparselab.methods.sparsegpt import prune_columns
from sparselab.numerics.cholesky import inverse_factor
from sparselab.numerics.statistics import Statistics
from sparselab.patterns import Pattern

SHAPES = {(768, 768): 9, (2048, 2048): 5, (2048, 5632): 3}  # outputs, inputs (width): repetitions
PATTERNS, BLOCK, DAMP = ("0.7", "2:4"), 128, 0.01
GOALS = {"loop": 8.0, "factor": 3.5}
LINE = (
    "{what:22} {width:12} {textbook:10.3f} {sparselab:11.3f} {ratio:6.1f}x {goal:5.1f}x {floor:>8} "
    " {check}"
)


# --- the textbook: Frantar and Alistarh, arXiv 2301.00774, algorithm 1, line by line
# ---------------------------


def textbook_factor(hessian: Tensor, damp: float) -> Tensor:
    """Upper R with H^-1 = R^T R: factor, invert, factor again."""
    damped = hessian + damp * hessian.diagonal().mean() * torch.eye(len(hessian))
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def textbook_loop(weight: Tensor, factor: Tensor, pattern: Pattern, block: int) -> Tensor:
    """The column loop on the weight as it lies in memory, [r, c]."""
    W = weight.clone()
    for a in range(0, W.shape[1], block):
        b = min(a + block, W.shape[1])
        W1, R1 = W[:, a:b].clone(), factor[a:b, a:b]
        Q1, Err1, mask = (
            torch.zeros_like(W1),
            torch.zeros_like(W1),
            torch.zeros_like(W1, dtype=torch.bool),
        )
        if not pattern.m:
            scores = (W1 / R1.diagonal()) ** 2
            mask = scores <= scores.flatten().sort().values[int(scores.numel() * pattern.sparsity)]
        for i in range(b - a):
            if pattern.m and i % pattern.m == 0:
                scores = (W1[:, i : i + pattern.m] / R1.diagonal()[i : i + pattern.m]) ** 2
                mask.scatter_(1, i + scores.topk(pattern.n, dim=1, largest=False).indices, True)
            Q1[:, i] = W1[:, i].masked_fill(mask[:, i], 0)
            Err1[:, i] = (W1[:, i] - Q1[:, i]) / R1[i, i]
            W1[:, i:] -= Err1[:, i : i + 1] @ R1[i : i + 1, i:]
        W[:, a:b] = Q1
        W[:, b:] -= Err1 @ factor[a:b, b:]
    return W


def products_alone(weight: Tensor, factor: Tensor, block: int) -> Tensor:
    """The floor of the loop: its lazy updates, with nothing between them."""
    weight, errors = weight.clone(), torch.ones(len(weight), block)
    for b in range(block, weight.shape[1], block):
        weight[:, b:].addmm_(errors, factor[b - block : b, b:], alpha=-1)
    return weight


# --- the comparison
# --------------------------------------------------------------------------------------------------


def inputs(width: int) -> Statistics:
    """Statistics of 2 x width tokens: causes (a quarter as many as inputs), noise, every 97th
    channel 20 x louder."""
    x = torch.randn(2 * width, width // 4) @ torch.randn(width // 4, width) / 8 + torch.randn(
        2 * width, width
    )
    x[:, ::97] *= 20
    return Statistics.of(x).finish("the benchmark's inputs")


def in_turn(sides: list, repetitions: int) -> tuple[list[float], list]:
    """Median seconds of each function, and what it returned; called one after the other, so that
    both see the same."""
    seconds, results = [[] for _ in sides], [None for _ in sides]
    for _ in range(repetitions):
        for k, side in enumerate(sides):
            started = time.perf_counter()
            results[k] = side()
            seconds[k].append(time.perf_counter() - started)
    return [statistics.median(one) for one in seconds], results


def compare(r: int, c: int, repetitions: int) -> list[dict]:
    """One row of the table for the factor and one for each pattern, with its check."""
    stats, weight = inputs(c), torch.randn(r, c)
    hessian = stats.gram / stats.tokens
    seconds, (theirs, ours) = in_turn(
        [lambda: textbook_factor(hessian, DAMP), lambda: inverse_factor(hessian, DAMP, 1)[0]],
        repetitions,
    )
    gap = ((theirs - ours).norm() / theirs.norm()).item()
    rows = [row("factor", f"{c}", seconds, gap < 1e-2, f"relative difference {gap:.1e}")]
    for pattern in map(Pattern.parse, PATTERNS):
        seconds, (old, new, _) = in_turn(
            [
                lambda p=pattern: textbook_loop(weight, theirs, p, BLOCK),
                lambda p=pattern: prune_columns([weight], theirs, stats.dead, [p], BLOCK)[0][0],
                lambda: products_alone(weight, theirs, BLOCK),
            ],
            repetitions,
        )
        was, now = stats.relative_error(weight, old), stats.relative_error(weight, new)
        same = ((old == 0) == (new == 0)).float().mean().item()
        rows.append(
            row(
                f"loop {pattern}",
                f"{r} x {c}",
                seconds,
                now < 1.02 * was,
                f"error {was:.5f} / {now:.5f}, masks agree {same:.3%}",
            )
        )
    return rows


def row(what: str, width: str, seconds: list[float], passed: bool, check: str) -> dict:
    """One row of the table."""
    return dict(
        what=what,
        width=width,
        textbook=seconds[0],
        sparselab=seconds[1],
        ratio=seconds[0] / seconds[1],
        goal=GOALS[what.split()[0]],
        floor=f"{seconds[1] / seconds[2]:.1f}x" if len(seconds) > 2 else "",
        passed=passed,
        check=check,
    )


def machine() -> str:
    """The machine that a ratio was measured on."""
    info = Path("/proc/cpuinfo")  # Linux only
    names = (
        [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if "model name" in line
        ]
        if info.exists()
        else [platform.processor()]
    )
    return f"{names[0]}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    """Measure, print the table, and fail if the two sides do not agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave the widest matrices out")
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    print(machine())
    print(
        f"{'what':22} {'width':12} {'textbook s':>10} {'sparselab s':>11} {'ratio':>7} {'goal':>6} "
        f"{'floor':>8}  check"
    )
    for (r, c), repetitions in list(SHAPES.items())[: 2 if args.quick else None]:
        for one in compare(r, c, repetitions):
            rows.append(one)
            print(LINE.format(**one), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    if not all(one["passed"] for one in rows):
        sys.exit("The two sides do not agree.")


if __name__ == "__main__":
    main()
