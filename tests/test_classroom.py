"""A class hands in the homework of lesson 02, and it is graded."""

import json

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from conftest import ROOT

from sparselab.course.exercises.checking import exercises_of, must_be_right
from sparselab.errors import SparselabError
from tools import classroom, guesses

pytest.importorskip("otter")
MISTAKES = {  # exercise: what a student wrote, and a part of the sentence that names the mistake
    "02.1": (
        "def output_error(weight, pruned, gram):\n"
        "    return ((weight - pruned) ** 2 * gram.diag()).sum()",
        "diagonal of G alone",
    ),
    "02.2": (
        "def best_mask(row, gram, zeros):\n"
        "    mask = torch.ones(len(row), dtype=torch.bool)\n"
        "    mask[row.abs().argsort()[:zeros]] = False\n"
        "    return mask",
        "that is magnitude",
    ),
    "02.3": ("def refit_row(row, mask, gram):\n    return row * mask", "Nothing moved"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    (lesson,) = (ROOT / "notebooks").glob("02_*.ipynb")
    return classroom.assignment(lesson, tmp_path_factory.mktemp("class"))


def with_answer(folder, key, code):
    """The solved edition with another answer to one exercise."""
    (file,) = (folder / "instructor").glob("*.ipynb")
    notebook = nbformat.read(file, as_version=4)
    question = f'grader.check("{classroom._question(key)}")'
    place = next(i for i, cell in enumerate(notebook.cells) if cell.source == question)
    notebook.cells[place - 1].source = code
    return notebook


def test_a_class_of_five(folder, tmp_path):
    (solved,) = (folder / "instructor").glob("*.ipynb")
    (empty,) = (folder / "student").glob("*.ipynb")
    files = [tmp_path / f"{name}.ipynb" for name in ("ada", "ben", "cem", "dana", "eva")]
    files[0].write_bytes(solved.read_bytes())
    files[-1].write_bytes(empty.read_bytes())
    for file, (key, (code, _)) in zip(files[1:4], MISTAKES.items(), strict=True):
        nbformat.write(with_answer(folder, key, code), file)
    marks = classroom.graded(folder, files)
    exercises = exercises_of("02")
    full = sum(exercise.minutes for exercise in exercises.values())
    assert [*marks.index] == ["ada", "ben", "cem", "dana", "eva"]
    assert marks.total["ada"] == full and marks.mistakes["ada"] == ""
    assert marks.total["eva"] == 0 and marks.mistakes["eva"].count("nothing was written") == len(
        exercises
    )
    for student, (key, (_, sentence)) in zip(("ben", "cem", "dana"), MISTAKES.items(), strict=True):
        question = classroom._question(key)
        assert marks[question][student] == 0 and sentence in marks.mistakes[student]
        assert marks.total[student] == full - exercises[key].minutes


def test_students_get_no_solution_and_no_hidden_test(folder):
    (file,) = (folder / "student").glob("*.ipynb")
    text = file.read_text(encoding="utf8")
    assert "Solution" not in text and "course.check" not in text and "grader.check" in text
    shown = [test.read_text() for test in (folder / "student" / "tests").glob("*.py")]
    assert len(shown) == len(exercises_of("02")) and not any("hidden=True" in t for t in shown)
    assert any("hidden=True" in test.read_text() for test in (folder / "tests").glob("*.py"))


def test_homework_of_some_exercises_builds_on_the_others(tmp_path):
    """`prune_model` calls three functions that were written in class; 02 has nine exercises."""
    classroom.build(only="prune_model, mean_gram", out=tmp_path)
    (folder,) = tmp_path.glob("*")
    (file,) = (folder / "instructor").glob("*.ipynb")
    text = file.read_text(encoding="utf8")
    assert 'replay = course.mine(\\"replay\\")' in text and "best_mask" not in text
    marks = classroom.graded(folder, [file])
    assert [*marks] == ["q02_7", "q02_8", "total", "mistakes"]
    exercises = exercises_of("02")
    assert marks.total.item() == exercises["02.7"].minutes + exercises["02.8"].minutes
    with pytest.raises(SparselabError, match="no exercise asks for mean_grams"):
        classroom.build(only="mean_grams", out=tmp_path)


LESSONS = [lesson.stem for lesson in classroom.with_exercises()]
KEYS = [key for lesson in LESSONS for key in exercises_of(lesson[:2])]


@pytest.mark.parametrize("key", KEYS)
def test_the_hidden_tests_know_right_from_wrong(key):
    exercise = exercises_of(key[:2])[key]
    other = exercise.with_other_numbers()
    if other is None:
        pytest.skip("other numbers would make no other question, or it needs a model")
    must_be_right(key, exercise.reference, other_numbers=True)
    by_heart = iter(exercise.outputs(exercise.reference))
    with pytest.raises(AssertionError):
        must_be_right(key, lambda *case: next(by_heart), other_numbers=True)


def test_many_exercises_have_a_hidden_test():
    known = [exercises_of(key[:2])[key].with_other_numbers() for key in KEYS]
    assert sum(other is not None for other in known) > len(known) / 4


def test_every_lessons_exercises_have_a_stub():
    for lesson in classroom.with_exercises():
        notebook = nbformat.read(lesson, as_version=4)
        keys = [found["key"] for _, found in classroom.stubs(notebook)]
        assert sorted(keys) == sorted(exercises_of(lesson.stem[:2])), lesson.stem


def test_the_guesses_of_a_class(tmp_path, capsys):
    def keep(name, **guesses):
        rows = {
            f"{key[1:3]}.{key[3:]}": {"question": "zeros?", "unit": unit, "guess": g, "result": r}
            for key, (g, r, unit) in guesses.items()
        }
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(rows))
        return file

    files = [
        keep("ada.json", q021=(70.0, 80.0, " %"), q031=("wanda", "sparsegpt", "")),
        keep("ben.json", q021=(7.0, 80.0, " %"), q031=("sparsegpt", "sparsegpt", "")),
        keep("cem/my_predictions.json", q021=(-1.0, 80.0, " %")),
    ]
    classroom.guesses(files, out=tmp_path / "out", table=tmp_path / "guesses.csv")
    assert "5 guesses of 3 students" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "guesses.csv", dtype={"key": str})
    assert table.groupby("key").close.sum().to_dict() == {"02.1": 1, "03.1": 1}
    assert {*table.student} == {"ada", "ben", "cem"}
    found = guesses.collected(files)
    numbers, answers = (guesses.chart(rows, "02") for _, rows in found.groupby("key"))
    assert [*numbers.axes[0].lines[0].get_xdata()] == [-1, 7, 70]
    assert [bar.get_width() for bar in answers.axes[0].patches] == [1, 1]
    plt.close("all")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "guesses-02.png",
        "guesses-03.png",
    }
    with pytest.raises(SparselabError, match="Two files answer for ada"):
        guesses.collected([files[0], keep("ada/my_predictions.json", q021=(1, 2, ""))])
    files[1].write_text("[]")
    with pytest.raises(SparselabError, match="ben.json is no file of predictions"):
        guesses.collected(files)
