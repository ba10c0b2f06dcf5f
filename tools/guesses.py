"""What a class predicted: a chart for each lesson, and a table of all guesses.

A student's guesses lie in my_predictions.json beside the notebooks (course/predictions.py). Ask for
that file, and name it, or its folder, after the student:

    python -m tools.classroom guesses handed-in/*/my_predictions.json
"""

import json
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from sparselab.course.predictions import FILE, PARTS
from sparselab.errors import SparselabError

NEAR = 0.25  # of the result: a guess that counts as close


def collected(files: list[Path]) -> pd.DataFrame:
    """The guesses of a class.

    Parameters
    ----------
    files : list of Path
        One of each student, named after them; or my_predictions.json in a folder named so.

    Returns
    -------
    DataFrame
        A row for each guess: student, key, question, unit, guess, result, close (equal, or for
        numbers within a quarter of the result).
    """
    rows = []
    for file in files:
        try:
            kept = json.loads(file.read_text(encoding="utf8"))
            rows += [
                {"student": _student(file), "key": key, **{part: row[part] for part in PARTS}}
                for key, row in kept.items()
            ]
        except (OSError, UnicodeError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise SparselabError(
                f"{file} is no file of predictions ({type(error).__name__}: {error}). Students find"
                f" theirs as {FILE} beside their notebooks."
            ) from None
    table = pd.DataFrame(
        rows, columns=["student", "key", "question", "unit", "guess", "result"], dtype=object
    )
    twice = table.student[table.duplicated(["student", "key"])]
    if len(twice):
        raise SparselabError(
            f"Two files answer for {twice.iloc[0]}: name each file, or its folder, after its"
            " student."
        )
    table["close"] = [_close(*pair) for pair in zip(table.guess, table.result, strict=True)]
    return table.sort_values(["key", "student"], ignore_index=True)


def charts(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw the guesses, a PNG for each lesson: guesses-02.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for lesson, rows in table.groupby(table.key.str[:2]):
        files.append(folder / f"guesses-{lesson}.png")
        figure = chart(rows, lesson)
        figure.savefig(files[-1], dpi=150)
        plt.close(figure)
    return files


def chart(table: pd.DataFrame, lesson: str) -> plt.Figure:
    """One lesson's questions below each other: guesses as dots beside the result, or counts of the
    answers, the right one in colour."""
    questions = [*table.groupby("key")]
    figure, axes = plt.subplots(
        len(questions), 1, figsize=(8, 1.75 * len(questions)), squeeze=False, layout="constrained"
    )
    for axis, (key, rows) in zip(axes.flat, questions, strict=True):
        first = rows.iloc[0]
        question = "\n".join(textwrap.wrap(f"{key}  {first.question}", 100)[:2])
        count = f"{len(rows)} guesses, {rows.close.sum()} close"
        axis.set_title(f"{question}\n{count}", loc="left", fontsize=9)
        if any(isinstance(value, str) for value in (*rows.guess, first.result)):
            _answers(axis, rows.guess.astype(str), str(first.result))
        else:
            _numbers(axis, rows.guess.astype(float), float(first.result), first.unit)
    figure.suptitle(f"What the class predicted in lesson {lesson}", fontsize=11)
    return figure


def _numbers(axis: plt.Axes, guesses: pd.Series, result: float, unit: str) -> None:
    """Dots, those of equal guesses above each other, and the result as a line."""
    ranked = guesses.sort_values()
    axis.plot(ranked, ranked.groupby(ranked).cumcount(), "o", color="tab:blue", alpha=0.7)
    axis.axvline(result, color="tab:red")
    axis.annotate(
        f" result {result:.4g}{unit}",
        (result, 1),
        xycoords=("data", "axes fraction"),
        va="top",
        color="tab:red",
        fontsize=8,
    )
    values = np.array([*guesses, result])
    if values.min() > 0 and values.max() > 10 * values.min():
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
    axis.margins(x=0.12)
    axis.set(yticks=[], ylim=(-0.7, max(2, ranked.value_counts().max()) + 0.2))
    axis.set_xlabel(f"guess{' in' if unit.strip() else ''}{unit}", fontsize=8)


def _answers(axis: plt.Axes, guesses: pd.Series, result: str) -> None:
    """A bar for each answer."""
    counts = guesses.value_counts()
    names = [result, *(name for name in counts.index if name != result)]
    colours = ["tab:red", *["tab:blue"] * (len(names) - 1)]
    axis.barh(names, [counts.get(name, 0) for name in names], color=colours, height=0.7)
    axis.invert_yaxis()
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("students; the result in red", fontsize=8)


def _close(guess: object, result: object) -> bool:
    if isinstance(guess, str) or isinstance(result, str) or result is None:
        return guess == result
    return abs(guess - result) <= NEAR * abs(result)


def _student(file: Path) -> str:
    return file.resolve().parent.name if file.name == FILE else file.stem
