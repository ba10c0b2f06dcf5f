"""The worked solutions of the last lesson, submitted as a student's are: the recorded rows of its
leaderboard.

    OMP_NUM_THREADS=1 python bench/leaderboard.py [--only "ALPS"]

Each takes a few minutes of one core. Its time is what its thread had of a processor, since other
work may run beside it; one that took more than ten minutes is not recorded. The functions are those
that lesson 15 shows: tests/test_leaderboard.py compares.
"""

import argparse
from pathlib import Path

import pandas as pd

import sparselab as sl
from sparselab.course.submissions import RECORDED, judge
from sparselab.experiments.results import machine
from sparselab.runtime.files import write_whole

MODEL, MINUTES = "smollm2-135m", 10


def baseline(model, calibration):
    """Lesson 04's method, on few windows."""
    sl.prune(model, calibration[:16], method="sparsegpt", sparsity=0.7, progress=False)


def better_solver(model, calibration):
    """Masks and weights of a matrix together, as in lesson 09."""
    sl.prune(model, calibration[:16], method="alps", sparsity=0.7, progress=False)


def by_gradient(model, calibration):
    """The loss's gradient says where zeros go and which errors count; the solver stays simple."""
    method = sl.SparseGPT(fisher=True, divide=True, refit=True)
    sl.prune(model, calibration[:16], method=method, sparsity=0.7, progress=False)


SOLUTIONS = {"SparseGPT": baseline, "ALPS": better_solver, "SparseGPT, by gradient": by_gradient}


def main() -> None:
    """Submit those that are asked for; their rows take the place of older ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=SOLUTIONS)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--out", type=Path, default=RECORDED)
    args = parser.parse_args()
    for name in [args.only] if args.only else SOLUTIONS:
        done = judge(name, SOLUTIONS[name], model=args.model, minutes=10 * MINUTES, progress=True)
        print(done, f"{done.core:.0f} s of one core", sep="\n", flush=True)
        if done.refused or done.core > 60 * MINUTES:
            continue
        row = {**done.row(), "minutes": MINUTES, "seconds": round(done.core, 1)}
        row |= {"wall_seconds": round(done.seconds, 1), "machine": machine()}
        record(args.out, row)


def record(file: Path, row: dict) -> None:
    """Put a row into the table, in the place of that of the same name and model."""
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    same = [(old["name"], old["model"]) == (row["name"], row["model"]) for old in rows]
    rows = [old for old, replaced in zip(rows, same, strict=True) if not replaced]
    write_whole(file, pd.DataFrame([*rows, row]).to_csv(index=False).encode())


if __name__ == "__main__":
    main()
