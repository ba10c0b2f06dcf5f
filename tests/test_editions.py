"""The working edition: what a student opens. It can be solved from the folded solutions, and a copy
that was worked in is never written over."""

import ast
import contextlib
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import v4
from test_course import given_by, solutions_of

from sparselab import course
from sparselab.__main__ import main
from sparselab.course.student import student_edition, write_student_edition, write_student_editions

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {file.stem[:2]: file for file in sorted((ROOT / "notebooks").glob("*.ipynb"))}
EXERCISES = sorted(
    file.stem[2:4] for file in (ROOT / "sparselab" / "course" / "exercises").glob("nb*_*.py")
)
AT_THE_POINT = [  # lessons whose exercises stand where their functions are needed
    number
    for number in EXERCISES
    if all(exercise.quiet for exercise in course.exercises_of(number).values())
]
STUB = re.compile(  # a function without a body, or a value that is to be written
    r"(?:def (?P<function>\w+)\([^`]*?\):[^\n]*\n    \.\.\.[^\n]*\n\n"
    r"|(?P<value>\w+) = \.\.\.[^\n]*\n+)"
    r"(?P<name>\w+) = course\.check\(\"(?P<key>[\d.]+)\", (?P=name)\)"
)


def test_there_are_lessons_to_solve():
    assert {"01", "02"} <= {*AT_THE_POINT}


@pytest.mark.parametrize("number", AT_THE_POINT)
def test_the_working_edition_is_solved_by_the_folded_solutions(
    number, tmp_path, monkeypatch, capsys
):
    """Stub by stub, in the order of the lesson: first as it is, then with the solution in its
    place."""
    monkeypatch.chdir(tmp_path)
    reading = nbformat.read(NOTEBOOKS[number], as_version=4).cells
    working = student_edition(nbformat.read(NOTEBOOKS[number], as_version=4)).cells
    names, solution, solved = {"__name__": "__main__"}, "", []
    for line in given_by(working, ast.Import | ast.ImportFrom):
        exec(line, names)
    for told, cell in zip(reading, working, strict=True):
        assert not solutions_of(cell)
        if found := solutions_of(told):
            (solution,) = found
        if "exercise" in cell.metadata.get("tags", []):
            stub = STUB.fullmatch(cell.source)
            assert stub, cell.source
            key, name = stub["key"], stub["name"]
            assert name == (stub["function"] or stub["value"])
            exec(cell.source, names)
            assert names[name] is course.exercises_of(number)[key].reference
            assert capsys.readouterr().out == "", key  # an untouched stub says nothing
            assert f'course.check("{key}", ' in solution
            if stub["function"]:
                assert arguments(solution, name) == arguments(cell.source, name)
            exec(solution, names)
            assert f"Exercise {key} right" in capsys.readouterr().out, key
            solved.append(key)
        elif cell.cell_type == "code":
            mine = [line for line in given_by([cell], ast.Assign) if "course.mine(" in line]
            for source in (*mine, *given_by([cell], ast.FunctionDef)):
                with contextlib.suppress(NameError):  # a default value that no import gives
                    exec(source, names)
    assert solved == [*course.exercises_of(number)]


def arguments(source: str, function: str) -> list[str]:
    """The names of a function's arguments."""
    (found,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    return [each.arg for each in found.args.args]


@pytest.mark.parametrize("file", NOTEBOOKS.values(), ids=lambda file: file.stem)
def test_a_prediction_comes_before_its_result(file):
    code = [cell.source for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
    asked, told = (
        {
            key: place
            for place, source in enumerate(code)
            for key in re.findall(rf"course\.{call}\(\s*[\"'](\d\d\.\d+)", source)
        }
        for call in ("predict", "reveal")
    )
    assert all(key in asked and asked[key] < place for key, place in told.items())


def lesson(folder: Path, text: str) -> Path:
    """A notebook with a solution, a result and links."""
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text("page")
    file = folder / "02_lesson.ipynb"
    cells = [
        v4.new_markdown_cell(f"# {text}\n[page](README.md) [next](03.ipynb) [web](https://a.b)"),
        v4.new_markdown_cell("<details><summary>Solution</summary>x</details>"),
        v4.new_code_cell("1 + 1", execution_count=1),
    ]
    nbformat.write(v4.new_notebook(cells=cells), file)
    return file


def changed(file: Path, source: str) -> None:
    """As JupyterLab saves it after some work."""
    notebook = nbformat.read(file, as_version=4)
    notebook.cells[-1].source = source
    nbformat.write(notebook, file)


def test_a_copy_is_written_once_and_work_stays(tmp_path):
    source, mine = lesson(tmp_path / "notebooks", "Lesson"), tmp_path / "mine"
    copy = mine / source.name
    assert write_student_edition(source, mine) == "new"
    text = copy.read_text()
    assert "Solution" not in text and "[page](../notebooks/README.md)" in text
    assert "[next](03.ipynb)" in text and "[web](https://a.b)" in text
    assert write_student_edition(source, mine) == "same"
    changed(copy, "my work")
    assert write_student_edition(source, mine) == "same" and "my work" in copy.read_text()
    lesson(tmp_path / "notebooks", "Lesson, mended")
    assert write_student_edition(source, mine) == "kept" and "my work" in copy.read_text()


def test_a_copy_without_work_is_brought_up_to_date(tmp_path):
    source, mine = lesson(tmp_path / "notebooks", "Lesson"), tmp_path / "mine"
    write_student_edition(source, mine)
    lesson(tmp_path / "notebooks", "Lesson, mended")
    assert write_student_edition(source, mine) == "renewed"
    assert "mended" in (mine / source.name).read_text()


@pytest.mark.parametrize("content", ["", "{", '{"cells": []}', "my own notes"])
def test_what_is_no_copy_stays(content, tmp_path):
    source, mine = lesson(tmp_path / "notebooks", "Lesson"), tmp_path / "mine"
    mine.mkdir()
    (mine / source.name).write_text(content)
    assert write_student_edition(source, mine) == "kept"
    assert (mine / source.name).read_text() == content


def test_the_call_says_where_the_copies_are_and_what_it_kept(tmp_path, capsys):
    source, mine = lesson(tmp_path / "notebooks", "Lesson"), tmp_path / "mine"
    command = ["students", "--notebooks", str(source.parent), "--out", str(mine)]
    assert main(command) == 0
    assert f"Your copies of the lessons are in {mine}: 1 written." in capsys.readouterr().out
    changed(mine / source.name, "my work")
    lesson(tmp_path / "notebooks", "Lesson, mended")
    said = write_student_editions([source], mine)
    assert "1 kept" in said and "02_lesson.ipynb: the course has changed" in said
    assert str(source.parent) in said


def test_make_lab_opens_the_working_edition():
    recipe = (ROOT / "Makefile").read_text().split("\nlab: setup\n")[1].split("\n\n")[0]
    assert "sparselab students --out my_course" in recipe
    assert "jupyter lab my_course/00_start_here.ipynb" in recipe
    assert {"my_course/", "my_pruner.py", "my_scores.json"} <= {
        *(ROOT / ".gitignore").read_text().splitlines()
    }
    assert "my_course" not in (ROOT / "Makefile").read_text().split("\nclean:")[1]
