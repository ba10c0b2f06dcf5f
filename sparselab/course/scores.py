"""The scoreboard: one protocol, and one row for each pruner that the reader builds."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from .. import viz
from ..errors import SparselabError
from ..evaluation.perplexity import Perplexity
from ..runtime.files import waiting_lock, write_json

FILE = "my_scores.json"  # in the working folder, beside my_pruner.py
WINDOWS, SEQLEN = 64, 256
PARTS = {"model", "zeros", "name", "perplexity", "ours"}  # of each row
PROTOCOL = f"demo text, {WINDOWS} windows of {SEQLEN} tokens"

_rows: dict[str, dict] = {}  # of this kernel, by key, in the order in which they came


def score(
    name: str,
    perplexity: float,
    *,
    zeros: float = 0.7,
    model: str = "opt-mini",
    by: tuple[Callable, ...] = (),
) -> None:
    """Put a row on the scoreboard: what the reader's pruner reaches, by the course's protocol.

    It is kept in my_scores.json of the working folder, and replaces the row of the same name. Where
    the notebooks are executed and tested (SPARSELAB_STATIC=1) nothing is written or read: a stored
    notebook shows its own rows, whatever lies in its folder.

    Parameters
    ----------
    name : str
        What the board calls it, such as 'magnitude, refitted'. One that begins with a method's name
        gets its colour. 'dense' with zeros=0 is the line that all are held against.
    perplexity : float
        On the demo text, 64 windows of 256 tokens. What `sl.perplexity` gives also says how it was
        measured: another number or length of windows is named and left out.
    zeros : float
        The share of zeros, 0 to 1. Each share has a board of its own.
    model : str
        Each model, too.
    by : tuple of functions
        The exercises' functions that pruned it. With one that is the package's, because the reader
        skipped it, the row is marked as ours.
    """
    if isinstance(perplexity, Perplexity):
        measured = (perplexity.windows, perplexity.seqlen)
        if measured != (WINDOWS, SEQLEN):
            print(
                f"Scoreboard: {name} is left out. It was measured on {measured[0]} windows of"
                f" {measured[1]} tokens, and the board is for {WINDOWS} of {SEQLEN}."
            )
            return
    value = float(perplexity)
    if not math.isfinite(value):
        print(f"Scoreboard: {name} is left out. Its perplexity is {value}.")
        return
    if not 0 <= zeros < 1:
        raise SparselabError(f"zeros is a share from 0 to 1, such as 0.7, and not {zeros}.")
    ours = any(str(function.__module__).startswith("sparselab.") for function in by)
    row = {"model": model, "zeros": zeros, "name": name, "perplexity": value, "ours": ours}
    key = f"{model}, {100 * zeros:g} %, {name}"
    _rows[key] = row
    keep(FILE, PARTS, row, key, f"Scoreboard: {name}")


def scoreboard(*, zeros: float = 0.7, model: str = "opt-mini") -> None:
    """Draw the reader's rows, the lowest perplexity on top, with the dense model as a line.

    zeros, model: of the rows; each has a board of its own.
    """
    kept, fault = rows_of(FILE, PARTS)
    print(fault, end="\n" if fault else "")
    rows = [row for row in {**kept, **_rows}.values() if row["model"] == model]
    dense = next((row for row in rows if row["zeros"] == 0), None)
    rows = [row for row in rows if row["zeros"] == zeros]
    if not rows:
        print(f"The scoreboard of {model} with {100 * zeros:g} % zeros has no rows yet.")
        return
    if all(row["ours"] for row in rows):  # nothing to tell apart
        rows = [{**row, "ours": False} for row in rows]
    numbers = [f"{_label(row)} {row['perplexity']:.2f}" for row in rows]
    numbers += [f"dense {dense['perplexity']:.2f}"] if dense else []
    viz.show(
        picture(rows, dense and dense["perplexity"]),
        f"scoreboard of {model}, {PROTOCOL}, {100 * zeros:g} % zeros: perplexity "
        + ", ".join(numbers),
    )


def picture(rows: list[dict], dense: float | None, protocol: str = PROTOCOL) -> Figure:
    """Rows as dots, sorted, each with its number; the dense model as a line. A row that knows the
    error of its loss above dense has a bar of one such error to each side."""
    rows = sorted(rows, key=lambda row: -row["perplexity"])
    values = [row["perplexity"] for row in rows]
    low, high = min([*values, dense or values[0]]), max([*values, dense or 0])
    with viz.style():
        figure, axis = plt.subplots(figsize=(7, 1.1 + 0.36 * len(rows)))
        for place, row in enumerate(rows):
            colour, marker, _ = _style(row["name"])
            axis.plot([low, row["perplexity"]], [place, place], color=colour, alpha=0.35)
            below, above = _bar(row)
            look = {"color": colour, "marker": marker, "markersize": 7, "capsize": 3}
            axis.errorbar(row["perplexity"], place, xerr=[[below], [above]], **look)
            axis.annotate(
                f"{row['perplexity']:.1f}",
                (row["perplexity"] + above, place),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
            )
        if dense:
            axis.axvline(dense, color="black", linestyle=":")
            title = f"dotted line: the dense model, {dense:.1f}"
            if any("excess_stderr" in row for row in rows):
                title += "; bars: ± one paired error"
            axis.set_title(title, loc="left", fontsize=10)
        axis.set(
            yticks=range(len(rows)),
            yticklabels=[_label(row) for row in rows],
            ylim=(-0.6, len(rows) - 0.4),
            xlabel=f"perplexity, {protocol}",
        )
        if high > 6 * low:  # a few broken pruners must not squeeze the others together
            axis.set(xscale="log", xlabel=f"perplexity (log scale), {protocol}")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_xlim(low / 1.1, high * 1.5)
        else:
            axis.set_xlim(low - 0.04 * (high - low), high + 0.12 * (high - low) + 1e-6)
        axis.grid(False, axis="y")
    return figure


def _bar(row: dict) -> tuple[float, float]:
    """The error of the loss above dense, as perplexities below and above the row's."""
    error = row.get("excess_stderr", 0.0)
    return row["perplexity"] * (1 - math.exp(-error)), row["perplexity"] * math.expm1(error)


def _label(row: dict) -> str:
    return row["name"] + " (ours)" * row["ours"]


def _style(name: str) -> tuple[str, str, str]:
    """Of the method that a row's name begins with."""
    begins = [key for key, label in viz.LABELS.items() if name.lower().startswith(label.lower())]
    return viz.style_of(max(begins, key=len, default=""))


def stored_run() -> bool:
    """Whether a notebook is executed to be stored or tested: nothing of a reader's is used then."""
    return os.environ.get("SPARSELAB_STATIC") == "1"


def keep(name: str, parts: set[str], row: dict, key: str | None, what: str) -> None:
    """Add a row to a file in the working folder, or say what was in the way. The whole file is
    replaced at once, and two notebooks do not lose each other's rows; stored runs write none.

    key: of the row, which replaces the one that had it; None for the next number. what: begins the
    sentence.
    """
    if stored_run():
        return
    try:
        with waiting_lock(Path()):
            kept, fault = rows_of(name, parts)
            if fault:
                print(fault)
            else:
                write_json(name, {**kept, key or f"{len(kept) + 1}": row})
    except OSError as error:
        print(f"{what} could not be kept in {name} ({error.strerror}).")


def rows_of(name: str, parts: set[str]) -> tuple[dict[str, dict], str]:
    """The rows of a file in the working folder, each with these parts, by key; and what is wrong
    with the file. Stored runs read none."""
    file = Path(name)
    if stored_run() or not file.exists():
        return {}, ""
    try:
        kept = json.loads(file.read_text(encoding="utf8"))
        if all(parts <= {*row} for row in kept.values()):
            return kept, ""
        fault = "a row lacks a part"
    except (OSError, UnicodeError, ValueError, AttributeError, TypeError) as error:
        fault = f"{type(error).__name__}: {error}"
    return {}, (
        f"{name} cannot be read ({fault}). It stays as it is, and new rows last as long as this"
        " notebook runs. Rename it to begin a new one."
    )
