"""The exercises as assignments that Otter-Grader grades:

    python -m tools.classroom [--only price,mean_gram] [--out FOLDER]

For each lesson with exercises a folder with three editions from the one source, the lesson:
student/ (stubs, and the public tests), instructor/ (solved) and autograder.zip (all tests; for
`grade`, for Gradescope, and for `otter grade`, which Canvas takes its marks from). With --only they
have these exercises alone, named by their functions; what they build on is the student's own, or
the package's.

    python -m tools.classroom grade LESSON SUBMISSION.ipynb ... [--out FOLDER] [--table marks.csv]

grades the answers of a class: a row for each submission, a column for each exercise, and which
mistakes were made.

    python -m tools.classroom guesses STUDENT.json ... [--out FOLDER]

draws what a class predicted beside the results, a chart for each lesson.
"""

import ast
import re
import shutil
import sys
from collections.abc import Set
from pathlib import Path

import nbformat
import pandas as pd
from cyclopts import App
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from otter.api import grade_submission
from otter.generate import main as generate

from sparselab.course.exercises.checking import exercises_of, references
from sparselab.course.student import SOLUTION
from sparselab.errors import SparselabError

from . import ROOT, lessons
from .guesses import charts, collected

OUT = ROOT / "build" / "class"
ALL: Set[str] = frozenset()  # no choice among the exercises
STUB = re.compile(r"^(?P<name>\w+) = course\.check\(\"(?P<key>[\d.]+)\", [^\n]*$", re.MULTILINE)
SOLVED = re.compile(r"<summary>\s*Solution.*?```python\n(.*?)```", re.DOTALL | re.IGNORECASE)
HIDDEN_SHARE = 1 / 3  # of an exercise's points, for the test with other numbers

IMPORTS = """import itertools
import math

import otter
import torch
from torch import nn

import sparselab as sl
from sparselab import course

grader = otter.Notebook()"""

INTRODUCTION = """# Homework of lesson {title}

The exercises of the lesson, with the same tests. Write your code in place of the `...`, and run
the cell below it: it says whether the answer is right, or which mistake it makes. Hand in this
notebook.

*Points*: {points}. Where an exercise can be asked with other numbers, a third of its points is for
a test that you do not see, which does so."""

TEST = '''"""Written by tools/classroom.py."""

from otter.test_files import test_case

from sparselab.course.exercises.checking import must_be_right

OK_FORMAT = False

name = "{question}"
points = {points}


@test_case(points={public})
def test_the_cases_of_the_lesson({name}):
    must_be_right("{key}", {name})
'''

HIDDEN_TEST = """

@test_case(points={hidden}, hidden=True)
def test_other_numbers({name}):
    must_be_right("{key}", {name}, other_numbers=True)
"""

app = App(help=__doc__.split("\n")[0])


@app.default
def build(*, only: str = "", out: Path = OUT) -> None:
    """Write the editions of all lessons.

    only: the homework, functions with commas between them. Default: all exercises.
    """
    asked = {name.strip() for name in only.split(",") if name.strip()}
    if unknown := sorted(asked - {*references()}):
        raise SparselabError(f"no exercise asks for {', '.join(unknown)}.")
    for lesson in lessons():  # what an earlier call wrote of lessons that are not asked for now
        shutil.rmtree(out / lesson.stem, ignore_errors=True)
    made = [assignment(lesson, out, asked) for lesson in with_exercises(asked)]
    print(f"{len(made)} assignments in {out}: {', '.join(folder.name[:2] for folder in made)}.")


@app.command
def grade(lesson: str, submissions: list[Path], *, out: Path = OUT, table: Path | None = None):
    """Grade submissions of one lesson, such as 02."""
    marks = graded(_folder(lesson, out), submissions)
    if table:
        marks.to_csv(table)
    print(marks.to_string())
    return marks


@app.command
def guesses(files: list[Path], *, out: Path = OUT, table: Path | None = None) -> None:
    """Draw what a class predicted: the students' my_predictions.json, named after them."""
    found = collected(files)
    drawn = charts(found, out)
    if table:
        found.to_csv(table, index=False)
    names = ", ".join(map(str, drawn)) or "nothing to draw"
    print(f"{len(found)} guesses of {found.student.nunique()} students: {names}.")


def with_exercises(only: Set[str] = ALL) -> list[Path]:
    """The lessons that have exercises, or some of these."""
    return [file for file in lessons() if stubs(nbformat.read(file, as_version=4), only)]


def stubs(notebook: nbformat.NotebookNode, only: Set[str] = ALL) -> list[tuple[int, re.Match]]:
    """The cells with an exercise's stub: place, and what is asked: name and key. only: these names
    alone; with none, all."""
    code = ((i, cell.source) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    found = [(i, match) for i, source in code if (match := STUB.search(source))]
    return [(i, match) for i, match in found if not only or match["name"] in only]


def assignment(lesson: Path, out: Path = OUT, only: Set[str] = ALL) -> Path:
    """Write one lesson's folder: student/, instructor/, autograder.zip. only: see `stubs`."""
    notebook, folder = nbformat.read(lesson, as_version=4), out / lesson.stem
    shutil.rmtree(folder, ignore_errors=True)
    tests = folder / "tests"
    tests.mkdir(parents=True)
    points = 0
    for _, found in stubs(notebook, only):
        key, name = found["key"], found["name"]
        points += _write_test(tests, key, name)
    for edition, solved in (("student", False), ("instructor", True)):
        (folder / edition).mkdir()
        written = homework(notebook, points, solved, only)
        nbformat.write(written, folder / edition / f"homework_{lesson.name}")
    generate(tests_dir=str(tests), output_path=str(folder / "autograder.zip"), no_config=True)
    _publish(tests, folder / "student" / "tests")
    return folder


def homework(
    notebook: nbformat.NotebookNode, points: int, solved: bool, only: Set[str] = ALL
) -> nbformat.NotebookNode:
    """The exercises of a lesson as a notebook of their own: text, stub or solution, test."""
    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
    cells = [new_markdown_cell(INTRODUCTION.format(title=title, points=points))]
    cells.append(new_code_cell(IMPORTS))
    given = functions_given(notebook)
    asked = stubs(notebook, only)
    earlier = {*references()} - {found["name"] for _, found in asked}
    given |= {name: f'{name} = course.mine("{name}")' for name in earlier - {*given}}
    for place, found in asked:
        text = notebook.cells[place - 1].source
        solution = SOLVED.search(text)
        code = solution[1] if solved and solution else notebook.cells[place].source
        cells.append(new_markdown_cell(text if solved else SOLUTION.sub("", text).strip()))
        if helpers := [given.pop(name) for name in _used(solution, given)]:
            cells.append(new_code_cell("# from the lesson\n" + "\n\n".join(helpers)))
        cells.append(new_code_cell(STUB.sub("", code).strip()))
        cells.append(new_code_cell(f'grader.check("{_question(found["key"])}")'))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    return new_notebook(cells=cells, metadata=notebook.metadata)


def functions_given(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """The functions that a lesson defines itself, beside its exercises: by name, their source."""
    asked = {place for place, _ in stubs(notebook)}
    found = {}
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and place not in asked:
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.FunctionDef):
                    found[node.name] = ast.get_source_segment(cell.source, node)
    return found


def _used(solution: re.Match | None, given: dict[str, str]) -> list[str]:
    """Which of the given functions a solution calls, each after those that it calls itself."""
    found, sources = [], [solution[1]] if solution else []
    while sources:
        names = {
            node.id for node in ast.walk(ast.parse(sources.pop())) if isinstance(node, ast.Name)
        }
        for name in sorted(names & given.keys() - {*found}):
            found.insert(0, name)
            sources.append(given[name])
    return found


def graded(folder: Path, submissions: list[Path]) -> pd.DataFrame:
    """Points by exercise, and what was wrong.

    Parameters
    ----------
    folder : Path
        Of an assignment.
    submissions : list of Path
        Notebooks; a row is named after its file.

    Returns
    -------
    DataFrame
        A row for each submission, a column for each exercise, `total`, and `mistakes` in words.
    """
    rows = {}
    for submission in submissions:
        if not submission.exists():
            raise SparselabError(f"{submission} is not there.")
        results = grade_submission(str(submission), str(folder / "autograder.zip"), quiet=True)
        row, mistakes = {}, []
        for question, result in results.results.items():
            row[question] = round(result.score, 2)
            failed = [case for case in result.test_case_results if not case.passed]
            mistakes += [f"{question}: {_sentence(case.message)}" for case in failed[:1]]
        row["total"] = round(results.total, 2)
        rows[submission.stem] = {**row, "mistakes": " | ".join(mistakes)}
    return pd.DataFrame.from_dict(rows, orient="index")


def _write_test(tests: Path, key: str, name: str) -> int:
    """A test file; the exercise's points: its minutes."""
    exercise = exercises_of(key[:2])[key]
    hidden = round(HIDDEN_SHARE * exercise.minutes) if exercise.with_other_numbers() else 0
    words = {"question": _question(key), "key": key, "name": name, "points": exercise.minutes}
    words |= {"public": exercise.minutes - hidden, "hidden": hidden}
    text = TEST.format(**words) + (HIDDEN_TEST.format(**words) if hidden else "")
    (tests / f"{_question(key)}.py").write_text(text, encoding="utf8")
    return exercise.minutes


def _publish(tests: Path, folder: Path) -> None:
    """The tests that students get: without the hidden ones."""
    folder.mkdir()
    for file in tests.glob("*.py"):
        shown = file.read_text(encoding="utf8").split("\n\n\n@test_case")
        public = [part for part in shown if "hidden=True" not in part]
        (folder / file.name).write_text("\n\n\n@test_case".join(public) + "\n", encoding="utf8")


def _question(key: str) -> str:
    """Otter's name of an exercise, such as 'q02_1'."""
    return f"q{key.replace('.', '_')}"


def _sentence(message: str | None) -> str:
    """The last line of what a failed test says: the sentence that names the mistake."""
    lines = [line for line in (message or "").strip().splitlines() if line.strip()]
    return lines[-1].removeprefix("AssertionError: ").strip() if lines else "failed"


def _folder(lesson: str, out: Path) -> Path:
    found = sorted(out.glob(f"{lesson}_*"))
    if not found:
        raise SparselabError(f"{out} holds no assignment of lesson {lesson}: `make class` first.")
    return found[0]


if __name__ == "__main__":
    try:
        app()
    except SparselabError as error:
        sys.exit(str(error))
