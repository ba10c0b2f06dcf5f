"""Check recorded runs, before they are offered and in the tests: does each row say what is needed
to make it again, agree with itself, and with what was published of the dense model?

    python -m tools.recorded_runs bench/figures/sparsity-opt-125m.csv            # what is wrong
    python -m tools.recorded_runs bench/figures/sparsity-opt-125m.csv --again    # and a run anew

CONTRIBUTING.md says how such a file is made.
"""

import argparse
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from sparselab.errors import SparselabError
from sparselab.evaluation.published import papers
from sparselab.experiments.profiles import PROFILES, WHOLE_TEXT
from sparselab.experiments.results import read, rows_matching
from sparselab.experiments.sweep import Sweep
from sparselab.methods.registry import named_method
from sparselab.patterns import Pattern

JOB = ("seed", "method", "pattern")
EXPERIMENT = ("model", "calibration", "samples", "seqlen", "window_limit", "layers_pruned")
KEY = (*EXPERIMENT, *JOB, "text")
PROVENANCE = (
    *("revision", "calibration_sha256", "text_sha256", "settings", "dtype", "device", "machine"),
    *("threads", "date", "sparselab_version", "torch_version", "transformers_version"),
)
MEASURED = (
    *("sparsity", "dense", "perplexity", "stderr", "excess", "excess_stderr", "output_error"),
    *("seconds", "peak_mib", "windows"),
)
DENSE_WITHIN = 0.01  # of the published perplexity of the same dense model, text and length
SPARSITY_WITHIN = 0.003  # rows of a matrix have a whole number of zeros
ERRORS = 3  # standard errors between a row and the same made again: rounding moves masks


def faults(table: pd.DataFrame) -> list[str]:
    """What is wrong with the rows of a table, a sentence each; empty where nothing is."""
    lacking = [name for name in (*KEY, *PROVENANCE, *MEASURED) if name not in table]
    if lacking:
        return [
            f"the columns {', '.join(lacking)} are missing: let `sweep` or `figure` write the file"
        ]
    found = []
    for name in table:
        empty = table[name].isna() | (table[name].astype(str).str.strip() == "")
        found += _by_line(empty, f"{name} is empty")
    found += _by_line(table.duplicated([*KEY]), "the same run and text as a line before")
    for line, row in zip(_lines(table), table.itertuples(), strict=True):
        found += [f"line {line}: {fault}" for fault in _faults_of(row)]
    return found + _dense_faults(table)


def _lines(table: pd.DataFrame) -> np.ndarray:
    return table.index.to_numpy() + 2  # of the file, whose first is the header


def _by_line(where: pd.Series, fault: str) -> list[str]:
    return [f"line {line}: {fault}" for line in _lines(where[where])]


def _faults_of(row: tuple) -> list[str]:
    """Of one row: its method and pattern are ours, and its numbers agree with each other."""
    found = []
    try:
        asked = Pattern.parse(row.pattern).sparsity
        if row.method.partition(":")[0] not in ("dense", "global"):  # no method of one shot
            named_method(row.method, "OPT")
    except SparselabError as error:
        return [str(error)]
    if abs(row.sparsity - asked) > SPARSITY_WITHIN:
        found.append(f"sparsity {row.sparsity} where the pattern {row.pattern} asks for {asked}")
    told = np.log(row.perplexity / row.dense)
    if not abs(told - row.excess) < 1e-3:
        found.append(f"excess {row.excess}, but log(perplexity / dense) is {told:.6f}")
    if not (row.stderr >= 0 and row.excess_stderr >= 0 and row.seconds > 0):
        found.append("a standard error or the seconds are negative, or no number")
    if row.windows > row.window_limit:
        found.append(f"{row.windows} windows, more than the limit of {row.window_limit}")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", row.date):
        found.append(f"the date {row.date} is not written as 2026-11-30")
    return found


def _dense_faults(table: pd.DataFrame) -> list[str]:
    """One dense perplexity for a model and text, and where one was published, that one."""
    found = []
    known = papers().query("metric == 'perplexity' and layers_pruned == 'none'")
    where = ["model", "revision", "text", "text_sha256", "seqlen", "windows", "dtype"]
    for (model, _, text, _, seqlen, *_), rows in table.groupby(where):
        place = f"{model}, {text}, {seqlen} tokens"
        if rows.dense.max() > 1.005 * rows.dense.min():
            found.append(
                f"{place}: dense perplexities from {rows.dense.min()} to {rows.dense.max()}"
            )
        same = known[(known.model == model) & (known.dataset == text) & (known.seqlen == seqlen)]
        whole = "text_windows" in rows and (rows.windows == rows.text_windows).all()
        for value in same.value.unique() if whole else ():
            if abs(rows.dense.iloc[0] / value - 1) > DENSE_WITHIN:
                found.append(f"{place}: dense perplexity {rows.dense.iloc[0]}, published {value}")
    return found


def protocol(table: pd.DataFrame) -> list[str]:
    """Each experiment of a table in words, and what it has other than the papers' profile. Which
    blocks are pruned differs from entry to entry there, and is not told."""
    paper, said = PROFILES["paper"].columns(), []
    paper |= {"window_limit": PROFILES["paper"].windows}
    for key, rows in table.groupby([*EXPERIMENT]):
        values = dict(zip(EXPERIMENT, key, strict=True))
        others = [
            f"{name} {_in_words(value)} (there {_in_words(paper[name])})"
            for name, value in values.items()
            if name not in ("model", "layers_pruned") and value != paper[name]
        ]
        runs = rows.drop_duplicates([*JOB])
        said.append(
            f"{values['model']}: {len(runs)} runs of {runs.method.nunique()} methods; "
            + ("by the papers' protocol, but " if others else "by the papers' protocol")
            + ", ".join(others)
        )
    return said


def _in_words(value: str | int) -> str:
    return "all" if value == WHOLE_TEXT else str(value)


def again(table: pd.DataFrame) -> list[str]:
    """Make the run that took least anew; what differs by more than `ERRORS` standard errors.

    The calibration and evaluation texts must be corpora that `sl.calibration` knows by name.
    """
    row = table.sort_values("seconds").iloc[0]
    rows = table[rows_matching(table, row[[*EXPERIMENT, *JOB]].to_dict())].set_index("text")
    sweep = Sweep(
        model=row.model,
        corpus=row.calibration,
        samples=int(row.samples),
        seqlen=int(row.seqlen),
        texts=tuple(rows.index),
        windows=int(row.window_limit),
        spread=row.get("places", "first") == "everywhere",
        layers=None if row.layers_pruned == "all" else row.layers_pruned,
        stream=True,  # the rows are the same, and the model may be large
    )
    with TemporaryDirectory() as folder:
        file = Path(folder) / "again.csv"
        new = sweep.run(file, [row.method], [row.pattern], [int(row.seed)]).set_index("text")
    found = []
    for text, old in rows.iterrows():
        gap, error = new.excess[text] - old.excess, max(old.excess_stderr, 1e-4)
        print(
            f"{row.model}, {row.method}, {row.pattern}, {text}: excess {old.excess:.4f} recorded, "
            f"{new.excess[text]:.4f} now, {gap / error:+.1f} standard errors"
        )
        if abs(gap) > ERRORS * error:
            found.append(f"{row.method} at {row.pattern} on {text} comes out {gap:+.4f} nats apart")
    return found


def main() -> int:
    """Check the files that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument(
        "--again", action="store_true", help="prune anew what took least, and compare"
    )
    args, wrong = parser.parse_args(), 0
    for file in args.files:
        if not file.is_file():
            parser.error(f"there is no file {file}")
        table = read(file)
        found = faults(table)
        if not found:
            print("\n".join(f"{file}: {line}" for line in protocol(table)))
            found = again(table) if args.again else []
        print("\n".join(f"{file}: {fault}" for fault in found) or f"{file}: no fault")
        wrong += len(found)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
