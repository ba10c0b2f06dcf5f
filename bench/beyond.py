"""Beyond one call of sl.prune: divisions of the zeros side by side, and training end to end.

python bench/beyond.py divisions [--sparsities 0.7] [--out FILE]
python bench/beyond.py distil [--sparsities 0.9] [--out FILE]

opt-mini, calibrated on 64 x 256 tokens of books and judged on held-out books and WikiText-2;
SPARSELAB_DATA names the folder. `divisions`: the same solver with zeros divided in every way that
the package knows, and the seconds that the division took. `distil`: the recommended call, then
sl.distill on the same calibration windows, in a column of its own, for it trains: tokens x passes.
A row is written when it is known; rows that are there are not made again.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

from torch import LongTensor, nn

import sparselab as sl
from sparselab.experiments.experiment import Experiment
from sparselab.experiments.results import append
from sparselab.methods.registry import named_method
from sparselab.models.architecture import dense_weights, restore

Division = Callable[[nn.Module, LongTensor, float], object]
DIVISIONS: dict[str, Division] = {
    "uniform": lambda model, windows, sparsity: sparsity,
    "owl": lambda model, windows, sparsity: sl.owl(model, windows, sparsity),
    "by_sensitivity": lambda model, windows, sparsity: sl.by_sensitivity(model, windows, sparsity),
    "by_depth": lambda model, windows, sparsity: sl.by_depth(
        model, windows, sparsity, progress=False
    ),
    "evolve, blocks": lambda model, windows, sparsity: sl.evolve(
        model, windows, sparsity, generations=20, progress=False
    ),
    "evolve, linears": lambda model, windows, sparsity: sl.evolve(
        model, windows, sparsity, unit="linear", generations=20, progress=False
    ),
}
SOLVER = "admm:targets=dense-stream;fisher=True"
STAGES = {"fixed masks": {"masks": "fixed"}, "ELSA": {"masks": "elsa", "every": 16}}


def experiment(folder: Path) -> Experiment:
    """The model and the texts of all rows."""
    texts = (str(folder / "books-heldout.txt.xz"), "wikitext2")
    return Experiment("opt-mini", str(folder / "books-train.txt.xz"), 64, 256, texts, 64)


def divisions(setting: Experiment, sparsities: list[float], out: Path) -> None:
    """A row for each division, sparsity and text."""
    model, _ = sl.load(setting.model)
    weights, dense = dense_weights(model), setting.perplexities(model)
    windows, method = setting.calibration(model, 0), named_method(SOLVER, "OPT")
    for sparsity in sparsities:
        for name, divide in {**DIVISIONS, "divide=True": None}.items():
            if len(setting.rows_in(out, division=name, pattern=str(sparsity))):
                continue
            restore(model, weights)
            started = time.perf_counter()
            shares = divide(model, windows, sparsity) if divide else sparsity
            seconds = time.perf_counter() - started
            report = sl.prune(
                model,
                windows,
                method=method,
                sparsity=shares,
                divide=divide is None,
                progress=False,
            )
            seconds += report.seconds.get("fisher", 0) + report.seconds.get("divide", 0)
            rows = setting.evaluate(
                model, report, dense, seed=0, pattern=str(sparsity), method=SOLVER
            )
            add(out, rows, division=name, division_seconds=round(seconds, 1))


def distil(setting: Experiment, sparsities: list[float], out: Path, steps: int) -> None:
    """A row for the recommended call, and one for each end-to-end stage after it."""
    model, _ = sl.load(setting.model)
    teacher, _ = sl.load(setting.model)
    dense = setting.perplexities(model)
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    windows, recommended = setting.calibration(model, 0), "admm:guided;reconstruct=True"
    for sparsity in sparsities:
        missing = [
            stage
            for stage in ("none", *STAGES)
            if setting.rows_in(out, stage=stage, pattern=str(sparsity)).empty
        ]
        if not missing:
            continue
        model.load_state_dict(whole)
        method = named_method(recommended, "OPT")
        report = sl.prune(model, windows, method=method, sparsity=sparsity, progress=False)
        pruned = {name: value.clone() for name, value in model.state_dict().items()}
        for stage in missing:
            model.load_state_dict(pruned)
            job = {"seed": 0, "pattern": str(sparsity), "method": recommended}
            found, seconds, tokens = "", 0.0, 0
            if stage != "none":
                started = time.perf_counter()
                found = sl.distill(
                    model, teacher, windows, steps=steps, **STAGES[stage], progress=False
                )
                seconds, tokens = time.perf_counter() - started, found.tokens
            rows = setting.evaluate(model, report, dense, **job)
            extra = {"stage": stage, "stage_seconds": round(seconds, 1), "stage_tokens": tokens}
            add(out, rows, **extra, stage_report=str(found))


def add(out: Path, rows: list[dict], **columns) -> None:
    """Write rows, and say the first."""
    append(out, [{**columns, **row} for row in rows])
    for row in rows:
        print({**columns, "text": row["text"], "excess": row["excess"]}, flush=True)


def main() -> None:
    """Make the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("divisions", "distil"))
    parser.add_argument("--sparsities", default=None)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = os.environ.get("SPARSELAB_DATA")
    if not folder:
        parser.error("SPARSELAB_DATA names the folder with books-train.txt.xz and the other texts")
    out = args.out or Path(__file__).parent / f"{args.what}.csv"
    first = {"divisions": "0.7", "distil": "0.9"}[args.what]
    sparsities = [*map(float, (args.sparsities or first).split(","))]
    if args.what == "divisions":
        divisions(experiment(Path(folder)), sparsities, out)
    else:
        distil(experiment(Path(folder)), sparsities, out, args.steps)


if __name__ == "__main__":
    main()
