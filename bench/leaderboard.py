"""The worked solutions of the last lesson, submitted as a student's are: the recorded rows of its
leaderboard.

    OMP_NUM_THREADS=1 python bench/leaderboard.py [--only "ALPS"]
    OMP_NUM_THREADS=1 python bench/leaderboard.py --windows

Each takes a few minutes of one core. `--windows` times two methods with fewer and more calibration
windows in place of that, for the lesson's estimate (bench/windows.csv). A time is what the thread
had of a processor, since other work may run beside it; a solution that took more than ten minutes
is not recorded. The functions are those that lesson 15 shows: tests/test_leaderboard.py compares.
"""

import argparse
from functools import partial
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
WINDOWS = {"sparsegpt": (16, 128), "admm:guided": (16,)}
TIMES = RECORDED.with_name("windows.csv")


def on_windows(model, calibration, method, count):
    """A method by its name, on the first windows."""
    sl.prune(model, calibration[:count], method=method, sparsity=0.7, progress=False)


def main() -> None:
    """Submit those that are asked for; their rows take the place of older ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=SOLUTIONS)
    parser.add_argument("--windows", action="store_true")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.windows:
        return time_windows(args.out or TIMES, args.model)
    args.out = args.out or RECORDED
    for name in [args.only] if args.only else SOLUTIONS:
        row = measured(name, SOLUTIONS[name], args.model, 10 * MINUTES)
        if row and row["seconds"] <= 60 * MINUTES:
            record(args.out, {**row, "minutes": MINUTES})


def measured(name: str, pruner, model: str, minutes: float) -> dict:
    """The row of a submission, its seconds those of one core; empty where it was refused."""
    done = judge(name, pruner, model=model, minutes=minutes, progress=True)
    print(done, f"{done.core:.0f} s of one core", sep="\n", flush=True)
    if done.refused:
        return {}
    row = {**done.row(), "seconds": round(done.core, 1)}
    return row | {"wall_seconds": round(done.seconds, 1), "machine": machine()}


def time_windows(file: Path, model: str) -> None:
    """Seconds of one core for each method and number of windows."""
    for method, counts in WINDOWS.items():
        for count in counts:
            pruner = partial(on_windows, method=method, count=count)
            row = measured(method, pruner, model, 20 * MINUTES)
            record(file, {**row, "windows": count}, "windows")


def record(file: Path, row: dict, *more: str) -> None:
    """Put a row into the table, in the place of that of the same name and model, and what more."""
    key = ("name", "model", *more)
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    same = [all(old[part] == row[part] for part in key) for old in rows]
    rows = [old for old, replaced in zip(rows, same, strict=True) if not replaced]
    write_whole(file, pd.DataFrame([*rows, row]).to_csv(index=False).encode())


if __name__ == "__main__":
    main()
