"""The course's parts: checks that name the mistake, predictions, sliders, the students' edition."""

import ast
import gc
import json
import re
from itertools import product
from pathlib import Path

import ipywidgets
import nbformat
import numpy as np
import pytest
import torch
from conftest import tiny_opt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nbformat import v4

from sparselab import course, linears_of, viz
from sparselab.course.exercises.checking import Exercise
from sparselab.course.student import student_edition, write_student_edition

ROOT = Path(__file__).parents[1]
NUMBERS = sorted(
    file.stem[2:4]
    for file in (ROOT / "sparselab" / "course" / "exercises").glob("nb[0-9][0-9]_*.py")
)
BANK = {
    key: exercise for number in NUMBERS for key, exercise in course.exercises_of(number).items()
}
NOTEBOOKS = {file.stem[:2]: file for file in sorted((ROOT / "notebooks").glob("*.ipynb"))}
SOLUTION = re.compile(
    r"<summary>\s*Solution.*?</summary>(.*?)</details>", re.DOTALL | re.IGNORECASE
)


def each(names: str, values: list):
    """Parametrize over rows whose first entry names them."""
    return pytest.mark.parametrize(
        names, [pytest.param(*row, id=f"{row[0]}-{place}") for place, row in enumerate(values)]
    )


# Every exercise, against its bank of right and wrong answers.


@each(
    "key, answer",
    [(key, answer) for key, ex in BANK.items() for answer in (ex.reference, *ex.right)],
)
def test_right_answers_pass(key, answer):
    assert BANK[key].verdict(answer) == ("right", "")


@each("key, mistake", [(key, mistake) for key, ex in BANK.items() for mistake in ex.wrong])
def test_each_wrong_answer_hears_its_own_mistake(key, mistake):
    verdict, sentence = BANK[key].verdict(BANK[key].wrong[mistake])
    assert (verdict, sentence) == ("wrong", mistake)


@pytest.mark.parametrize("key", BANK)
def test_each_exercise_knows_wrong_answers_and_says_enough(key):
    assert len(BANK[key].wrong) >= 2 and BANK[key].minutes > 0
    assert BANK[key].kind in {"warm-up", "core", "find-the-bug", "stretch"}
    assert all(len(mistake.split()) >= 5 for mistake in BANK[key].wrong)


@pytest.mark.parametrize("number", [number for number in NUMBERS if number in NOTEBOOKS])
def test_each_notebook_sets_its_exercises_and_its_folded_solutions_pass(number, capsys):
    """The solutions that readers unfold are run with the notebook's imports and nothing else, by
    its own checks."""
    cells = nbformat.read(NOTEBOOKS[number], as_version=4).cells
    text = "\n".join(cell.source for cell in cells)
    code = ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    imports = "\n".join(
        ast.unparse(line) for line in code.body if isinstance(line, ast.Import | ast.ImportFrom)
    )
    exercises = course.exercises_of(number)
    assert 3 <= len(exercises) <= 5
    assert {*re.findall(r"""course\.check\(["'](\d\d\.\d)["']""", text)} == {*exercises}
    solutions = [
        code
        for block in SOLUTION.findall(text)
        for code in re.findall(r"```python\n(.*?)```", block, re.DOTALL)
    ]
    assert len(solutions) == len(exercises)
    for solution in solutions:
        exec(f"{imports}\n{solution}", {})
    said = capsys.readouterr().out
    assert all(f"Exercise {key} right" in said for key in exercises), said


def test_every_numbered_notebook_from_01_has_exercises():
    assert {number for number in NOTEBOOKS if "01" <= number <= "09"} <= {*NUMBERS}


# The machinery.


def score(weight, norms):
    return weight.abs() * norms


EXERCISE = Exercise(
    score,
    ((torch.tensor([[1.0, -2], [3, 4]]), torch.tensor([1.0, 2])),),
    {"the sign must not matter here: take abs()": lambda weight, norms: weight * norms},
)


@pytest.mark.parametrize(
    "answer, verdict, words",
    [
        (score, "right", ""),
        (lambda weight, norms: None, "not attempted", "reference"),
        (..., "not attempted", "reference"),
        (lambda weight, norms: weight * norms, "wrong", "abs()"),
        (lambda weight, norms: weight.abs_() * norms, "wrong", "in place"),
        (lambda weight, norms: weight / 0, "wrong", "differs in 4 of 4"),
        (lambda weight, norms: norms, "wrong", "shape [2]"),
        (lambda weight, norms: 3, "wrong", "type int"),
        (lambda weight: weight, "wrong", "TypeError"),
    ],
)
def test_verdicts(answer, verdict, words):
    found, sentence = EXERCISE.verdict(answer)
    assert found == verdict and words in sentence


def test_plain_answers():
    exercise = Exercise(0.25, wrong={"that is the share that stays, not the share that goes": 0.75})
    assert (
        exercise.verdict(torch.tensor(0.25))[0] == "right"
        and exercise.verdict(None)[0] == "not attempted"
    )
    assert "stays" in exercise.verdict(0.75)[1] and exercise.verdict(0.5)[0] == "wrong"


def test_predictions_are_recorded_and_compared(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELAB_PREDICTIONS", str(tmp_path / "mine.json"))
    course.predict("99.1", "perplexity?", 50.0)
    course.reveal("99.1", 100.0, "Most guess too low.")
    course.predict("99.2", "which method?")
    course.reveal("99.2", "wanda")
    course.review()
    said = capsys.readouterr().out
    assert (
        "guess / result = 0.50" in said
        and "Most guess too low." in said
        and "no guess; the result is wanda" in said
    )
    assert list(json.loads((tmp_path / "mine.json").read_text())) == ["99.1"]


def draw(figure, sparsity, method):
    figure.subplots().bar([0, 1], [sparsity, 1 - sparsity])
    return f"{method} at {sparsity}"


def test_a_move_changes_picture_and_sentence():
    box = course.explorer(
        draw,
        {"sparsity": 0.5, "method": "wanda"},
        sparsity=(0.0, 0.9, 0.1),
        method=["wanda", "dsnot"],
    )
    slider, buttons, picture, sentence = box.children
    before = picture.value
    slider.value = 0.7
    assert picture.value != before and sentence.value == "wanda at 0.7"
    buttons.value = "dsnot"
    assert sentence.value == "dsnot at 0.7"
    assert gc.isenabled()


@pytest.mark.parametrize("live", [False, True])
def test_controls_may_have_any_name(monkeypatch, live):
    """As a parameter of ours, too; and the form is built without a front end as well, so that tests
    see what breaks it."""
    shown = []
    monkeypatch.setenv("SPARSELAB_STATIC", str(int(not live)))
    monkeypatch.setattr("IPython.display.display", lambda form, **_: shown.append(form))
    course.explore(
        lambda figure, start, frames: f"{start} {frames} {len(figure.subplots(1, 2))}",
        [{"start": 1, "frames": 2}],
        start=(0, 3, 1),
        frames=[2, 4],
    )
    assert [type(form) for form in shown] == ([ipywidgets.VBox] if live else [Figure])
    with pytest.raises(KeyError, match="nothing"):  # with a front end and without
        course.explore(draw, [{"sparsity": 0.5, "method": "wanda"}], nothing=(0, 3, 1))


def test_without_a_front_end_the_frames_stand_side_by_side(monkeypatch, capsys):
    shown = []
    monkeypatch.setenv("SPARSELAB_STATIC", "1")
    monkeypatch.setattr("IPython.display.display", lambda figure, **_: shown.append(figure))
    frames = [{"sparsity": 0.5, "method": "wanda"}, {"sparsity": 0.7, "method": "wanda"}]
    course.explore(draw, frames, sparsity=(0.0, 0.9, 0.1))
    assert isinstance(shown[0], Figure) and len(shown[0].subfigs) == 2
    assert "wanda at 0.5; wanda at 0.7" in capsys.readouterr().out


def test_inputs_of_a_matrix():
    model = tiny_opt()
    windows = torch.randint(5, 50, (3, 7))
    linear = next(iter(linears_of(model, [0]).values()))
    assert course.inputs_of(model, windows, linear).shape == (linear.in_features, 21)


def test_student_edition_has_the_code_and_not_the_solutions(tmp_path):
    folded = "<details><summary>{}</summary>x</details>\n"
    markdown = f"## Exercise\n{folded.format('Hint')}{folded.format('Solution')}end"
    notebook = v4.new_notebook(
        cells=[v4.new_markdown_cell(markdown), v4.new_code_cell("1 + 1", execution_count=1)]
    )
    copy = student_edition(notebook)
    assert (
        "Hint" in copy.cells[0].source
        and "Solution" not in copy.cells[0].source
        and copy.cells[0].source.endswith("end")
    )
    assert copy.cells[1].source == "1 + 1" and "Solution" in notebook.cells[0].source
    nbformat.write(notebook, tmp_path / "a.ipynb")
    assert write_student_edition(tmp_path / "a.ipynb", tmp_path / "out").exists()


@pytest.mark.parametrize("file", NOTEBOOKS.values(), ids=lambda file: file.stem)
def test_student_editions(file):
    notebook = nbformat.read(file, as_version=4)
    copy = student_edition(notebook)
    assert [cell.source for cell in copy.cells if cell.cell_type == "code"] == [
        cell.source for cell in notebook.cells if cell.cell_type == "code"
    ]
    assert not re.search(
        r"<summary>\s*(Solution|Answer)", "".join(cell.source for cell in copy.cells), re.IGNORECASE
    )


def test_numbers_stand_in_the_middle_of_their_cells_and_pruned_ones_are_crosses():
    figure = Figure(figsize=(3, 2), dpi=100)
    axis = figure.add_axes((0, 0, 1, 1))  # each cell 100 x 100 pixels
    mask = torch.tensor([[True, True, False], [True, True, True]])
    viz.numbers(axis, torch.tensor([[0.0, -1.5, 9.0], [0.1, 88.8, 0.2]]), mask=mask, digits=1)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    for row, column in product(range(2), range(3)):
        cell = picture[100 * row + 5 : 100 * row + 95, 100 * column + 5 : 100 * column + 95]
        ink = (np.abs(cell - cell[0, 0]).sum(-1) > 150).nonzero()
        assert len(ink[0]) > (10 if mask[row, column] else 3), (row, column)
        middle, width = np.mean([ink[0].min(), ink[0].max()]), ink[1].max() - ink[1].min()
        assert abs(middle - 44.5) < 2.5 and abs((ink[1].min() + ink[1].max()) / 2 - 44.5) < 2.5
        assert width < (10 if not mask[row, column] else 30)  # a cross is narrower than any number


def test_numbers_by_row_have_a_colour_scale_for_each_row():
    axis = Figure().subplots()
    viz.numbers(
        axis,
        torch.tensor([[1.0, -2.0], [100.0, 50.0]]),
        by_row=True,
        rows=["small", "large"],
        columns=["a", "b"],
    )
    assert axis.images[0].get_array().tolist() == [[0.5, 1.0], [1.0, 0.5]]
    assert [text.get_text() for text in axis.texts] == ["small", "large", "a", "b"]
