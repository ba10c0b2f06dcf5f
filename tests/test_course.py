"""The course's parts: checks that name the mistake, predictions, sliders, the students' edition."""

import ast
import contextlib
import gc
import inspect
import json
import linecache
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import ipywidgets
import nbformat
import numpy as np
import pytest
import torch
from conftest import tiny_llama, tiny_opt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nbformat import v4

import sparselab
from sparselab import SparselabError, course, linears_of, viz
from sparselab.course.exercises import nb02_local_objective as nb02
from sparselab.course.exercises import nb04_sparsegpt as nb04
from sparselab.course.exercises import nb05_dsnot as nb05
from sparselab.course.exercises import nb06_global_objective as nb06
from sparselab.course.exercises import nb07_sparsellm_opt as nb07
from sparselab.course.exercises import nb08_sparsellm_llama as nb08
from sparselab.course.exercises import nb09_what_wins as nb09
from sparselab.course.exercises.checking import Exercise, references
from sparselab.course.memory import Peak
from sparselab.course.student import student_edition, write_student_edition
from sparselab.methods.feed_forward import solve_s

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
def test_each_notebook_sets_its_exercises_and_its_folded_solutions_pass(number, capsys, folder):
    """The solutions that readers unfold are run from top to bottom, with the notebook's imports
    and functions, by its own checks."""
    cells = nbformat.read(NOTEBOOKS[number], as_version=4).cells
    text = "\n".join(cell.source for cell in cells)
    exercises = course.exercises_of(number)
    assert 3 <= len(exercises) <= 11
    assert {*re.findall(r"""course\.check\(["'](\d\d\.\d+)["']""", text)} == {*exercises}
    names, solved = {}, 0
    for line in given_by(cells, ast.Import | ast.ImportFrom):
        exec(line, names)
    for cell in cells:
        for solution in solutions_of(cell):
            exec(solution, names)
            solved += 1
        mine = [line for line in given_by([cell], ast.Assign) if "course.mine(" in line]
        for source in (*mine, *given_by([cell], ast.FunctionDef)):
            with contextlib.suppress(NameError):  # a default value that no import gives
                exec(source, names)
    assert solved == len(exercises)
    said = capsys.readouterr().out
    assert all(f"Exercise {key} right" in said for key in exercises), said


def solutions_of(cell: nbformat.NotebookNode) -> list[str]:
    """The code of the folded solutions."""
    folded = SOLUTION.findall(cell.source) if cell.cell_type == "markdown" else []
    return [code for block in folded for code in re.findall(r"```python\n(.*?)```", block, re.S)]


def given_by(cells: list[nbformat.NotebookNode], kind: type) -> list[str]:
    """Imports or functions of the code cells that are no exercises."""
    sources = [
        re.sub(r"(?m)^%.*", "", cell.source)
        for cell in cells
        if cell.cell_type == "code" and "exercise" not in cell.metadata.get("tags", [])
    ]
    lines = [line for source in sources for line in ast.parse(source).body]
    return [ast.unparse(line) for line in lines if isinstance(line, kind)]


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


def test_what_an_answer_gives_may_have_names():
    exercise = Exercise(
        lambda x: {"sum": x.sum(), "twice": 2 * x},
        ((torch.tensor([1.0, 2]),),),
        {"that is the square": lambda x: {"sum": x.sum(), "twice": x * x}},
    )
    assert exercise.verdict(exercise.reference) == ("right", "")
    assert "square" in exercise.verdict(lambda x: {"sum": x.sum(), "twice": x * x})[1]
    assert "twice differs in 2 of 2" in exercise.verdict(lambda x: {"sum": x.sum(), "twice": -x})[1]
    assert "has ['sum'] where" in exercise.verdict(lambda x: {"sum": x.sum()})[1]


def test_an_answer_that_returns_nothing_is_not_a_stub():
    def forgotten(weight, norms):
        weight.abs() * norms

    def stub(weight, norms):
        """Say the score."""
        ...

    assert EXERCISE.verdict(stub)[0] == "not attempted"
    verdict, sentence = EXERCISE.verdict(forgotten)
    assert verdict == "wrong" and "return" in sentence


def test_an_error_of_the_bank_names_its_mistake():
    exercise = Exercise(lambda x: x.T, ((torch.ones(2, 3),),), {"join them first": lambda x: x @ x})
    assert exercise.verdict(lambda x: x @ x) == ("wrong", "join them first")
    assert "RuntimeError" in exercise.verdict(lambda x: x + torch.ones(5))[1]


def test_an_answer_may_be_tried_by_what_it_changes():
    def trial(answer, size):
        numbers = [*range(size)]
        answer(numbers)
        return numbers

    exercise = Exercise(
        lambda numbers: numbers.reverse(), ((3,),), {"nothing changed": lambda x: x}, trial=trial
    )
    assert exercise.verdict(lambda numbers: numbers.reverse()) == ("right", "")
    assert exercise.verdict(lambda numbers: sorted(numbers))[1] == "nothing changed"
    assert exercise.verdict(lambda numbers: None)[0] == "not attempted"


DRAWN = [
    (key, mistake) for key, exercise in BANK.items() if exercise.draw for mistake in exercise.wrong
]
# wrong answers of another form
UNDRAWABLE = {"02.4": 4, "02.5": 3, "02.7": 4, "04.3": 1, "07.1": 1}


def test_most_wrong_answers_are_drawn_and_right_ones_never():
    missing = dict.fromkeys((key for key, _ in DRAWN), 0)
    for key, mistake in DRAWN:
        figure = BANK[key].picture(BANK[key].wrong[mistake])
        missing[key] += figure is None
        assert figure is None or isinstance(figure, Figure)
    assert {key: count for key, count in missing.items() if count > UNDRAWABLE.get(key, 0)} == {}
    assert all(BANK[key].picture(BANK[key].reference) is None for key in missing)


def test_a_wrong_answer_is_shown_beside_the_right_one(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda figure, **_: shown.append(figure))
    answer = course.check("02.3", lambda row, mask, gram: row * mask)
    assert len(shown) == 1 and answer is BANK["02.3"].reference
    said = capsys.readouterr().out
    assert "Exercise 02.3 wrong" in said and "your result beside the expected one" in said
    course.check("02.1", lambda weight, pruned, gram: 0.0)  # nothing to draw of one number
    assert len(shown) == 1


def wanda_layer(weight, x):
    """A plug for the block loop: half of each row."""
    scores = weight.abs() * x.norm(dim=1)
    lowest = scores.argsort(dim=1)[:, : weight.shape[1] // 2]
    return weight.scatter(1, lowest, 0.0)


@pytest.mark.parametrize("make", [tiny_opt, tiny_llama], ids=["OPT", "LLaMA"])
def test_the_block_loop_of_lesson_02_is_that_of_prune(make):
    """For either family, with inputs that depend on what was pruned before."""
    windows = torch.randint(5, 100, (4, 16), generator=torch.Generator().manual_seed(0))
    mine, theirs = make(), make()
    nb02.prune_model(mine, windows, wanda_layer)
    sparselab.prune(theirs, windows, method="wanda", sparsity=0.5, progress=False)
    for name, linear in linears_of(mine).items():
        assert torch.equal(linear.weight, linears_of(theirs)[name].weight), name


def test_the_three_pieces_of_lesson_04_are_sparsegpt():
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(12, 40, generator=draw), torch.randn(40, 200, generator=draw)
    x += 0.5 * x.roll(1, 0)
    stats = sparselab.Statistics.of(x.T).finish("these inputs")
    gram = (x @ x.T).double()
    hessian = gram + 0.01 * gram.diagonal().mean() * torch.eye(40)
    theirs = sparselab.SparseGPT(block=16).solve(weight, stats, sparselab.Pattern(0.6))
    mine = nb04.sparsegpt(weight.double(), hessian, 0.6, block=16)
    assert torch.equal(mine != 0, theirs.mask)
    assert torch.allclose(mine.float(), theirs.weight, atol=1e-4)


@pytest.mark.parametrize("same_sign", [True, False])
def test_dsnot_of_lesson_05_is_the_packages(same_sign):
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(30, 40, generator=draw), torch.randn(3, 50, 40, generator=draw) + 0.5
    x[..., 3] = 0
    stats = sparselab.Statistics.of(x, needs=("gram", "moments", "norms"))
    moments, pattern = (stats.mean, stats.variance), sparselab.Pattern(0.6)
    start = ~sparselab.Wanda().solve(weight, stats, pattern).mask
    scores = weight.abs() * stats.norms
    mine = nb05.dsnot_mask(weight, start, *moments, scores, same_sign)
    theirs = sparselab.DSnoT(same_sign=same_sign).solve(weight, stats, pattern)
    assert torch.equal(~mine, theirs.mask) and not torch.equal(mine, start)


def test_local_pruning_is_the_objective_of_lesson_06_with_all_auxiliaries_frozen():
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(*shape, generator=draw) for shape in ((5, 4), (3, 5), (2, 3))]
    biases = [torch.randn(len(weight), 1, generator=draw) for weight in weights]
    x, pruned = torch.randn(4, 9, generator=draw), [weight.clamp(min=0) for weight in weights]
    z, a = nb06.chain_values(weights, biases, x)
    terms = nb06.penalty_objective(lambda outputs: 7.0, pruned, biases, x, z, a, 0.5, 3.0)
    errors = nb06.frozen_errors(weights, pruned, biases, x)
    assert terms[0] == 7.0 and terms[2] == 0
    assert torch.isclose(terms[1], 0.5 * sum(errors))
    z, a = nb06.chain_values(pruned, biases, x)  # and it is the loss where the chain is whole
    loss, breaks, _ = nb06.penalty_objective(torch.sum, pruned, biases, x, z, a)
    assert loss == z[-1].sum() and breaks < 1e-9


def test_a_peak_counts_what_lives_at_once():
    model = torch.nn.Linear(250, 4, bias=False)
    with Peak(model) as peak:
        for _ in range(3):
            model.weight + 1
        kept = [torch.zeros(1000) for _ in range(2)]
    assert peak.bytes == 4000 * len(kept)


def prune_half(weight, x):
    stats = sparselab.Statistics.of(x.T).finish("these inputs")
    return sparselab.SparseGPT().solve(weight, stats, sparselab.Pattern(0.5)).weight


def fit_in_double(*given):
    return nb07.matrix_step(*[each.double() for each in given], 0.01).float()


@torch.no_grad()
def test_the_loop_of_lesson_07_is_sparsellm():
    windows = torch.randint(5, 100, (12, 16), generator=torch.Generator().manual_seed(0))
    mine, theirs = tiny_opt(), tiny_opt()
    method = replace(sparselab.SparseLLM.paper("OPT", epochs=3), ridge=0.01)
    only = {"layers": [0], "modules": ["fc1", "fc2"]}
    sparselab.prune(theirs, windows, method=method, sparsity=0.5, progress=False, **only)

    fc1, fc2 = (linear for name, linear in linears_of(mine, [0]).items() if "fc" in name)
    given = fc1.weight, fc1.bias[:, None], fc2.weight
    x = course.inputs_of(mine, windows, fc1)
    weights = nb07.sparsellm(*given, x, prune_half, fit_in_double, 3)[-1][:2]
    expected = [linear.weight for name, linear in linears_of(theirs, [0]).items() if "fc" in name]
    for weight, other in zip(weights, expected, strict=True):
        assert torch.equal(weight != 0, other != 0)
        assert torch.allclose(weight, other, atol=1e-3 * other.abs().max())


@torch.no_grad()
def test_the_loop_of_lesson_08_is_sparsellm():
    windows = torch.randint(5, 100, (12, 16), generator=torch.Generator().manual_seed(0))
    mine, theirs = tiny_llama(), tiny_llama()
    names = ["gate_proj", "up_proj", "down_proj"]
    method = replace(sparselab.SparseLLM.repaired("LLaMA", epochs=3), ridge=0.01)
    only = {"layers": [0], "modules": names}
    sparselab.prune(theirs, windows, method=method, sparsity=0.5, progress=False, **only)

    def of_network(model):
        linears = linears_of(model, [0])
        return [next(linears[each] for each in linears if each.endswith(name)) for name in names]

    dense = [linear.weight for linear in of_network(mine)]
    x = course.inputs_of(mine, windows, of_network(mine)[0])
    found = nb08.gated_sparsellm(*dense, x, prune_half, fit_in_double, nb08.safe_gate_step, 3)
    for weight, linear in zip(found[-1], of_network(theirs), strict=False):
        assert torch.equal(weight != 0, linear.weight != 0)
        assert torch.allclose(weight, linear.weight, atol=1e-3 * linear.weight.abs().max())


def test_the_safe_step_of_lesson_08_is_the_packages():
    draw = torch.Generator().manual_seed(0)
    s, p, z, g = 3 * torch.randn(4, 500, generator=draw, dtype=torch.float64)
    mine = nb08.safe_gate_step(s, 9 * p, 4 * z, g, 0.3, 2.0, steps=4)
    assert torch.allclose(mine, solve_s(s, 9 * p, 4 * z, g, 0.3, 2.0, steps=4), atol=1e-4)


@torch.no_grad()
def test_the_admm_of_lesson_09_is_the_packages():
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(12, 40, generator=draw), torch.randn(40, 200, generator=draw)
    x += 0.5 * x.roll(1, 0)
    stats = sparselab.Statistics.of(x.T).finish("these inputs")
    method = sparselab.ADMM(initial="magnitude", growth=1.5, tolerance=0, steps=24)
    theirs = method.solve(weight, stats, sparselab.Pattern(0.6))
    zeros = round(0.6 * weight.numel())
    penalties = [0.1 * 1.5**k for k in range(8)]
    mine = nb09.admm(weight, stats.hessian(), zeros, penalties)
    assert torch.equal(mine != 0, theirs.mask)


# The reader's own file.

REFIT = """
import torch

def kept(matrix, mask):
    return matrix[mask][:, mask]

def refit_row(row, mask, gram):
    new = row * mask
    new[mask] = torch.linalg.solve(kept(gram, mask), (gram @ row)[mask])
    return new
"""
LOOP = """
def prune_model(model, windows, prune_layer):
    hidden, rest = first_inputs(model, windows)
    for block in sl.blocks_of(model):
        inputs = capture_inputs(block, lambda: replay(block, hidden, rest))
        prune_block(block, inputs, prune_layer)
        hidden = replay(block, hidden, rest)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder of a reader."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSELAB_STATIC", raising=False)
    return tmp_path


def typed(source: str, place: int = 1, **names) -> dict:
    """What a notebook's cell leaves: its functions, with their source where Python looks for it."""
    file = f"<ipython-input-{place}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names = {"__name__": "__main__", **names}
    exec(compile(source, file, "exec"), names)
    return names


def test_a_right_answer_is_kept_for_later_lessons(folder, capsys):
    answer = course.check("02.3", typed(REFIT)["refit_row"])
    assert capsys.readouterr().out == "Exercise 02.3 right: kept in my_pruner.py.\n"
    assert course.mine("refit_row") is not answer  # from the file
    assert capsys.readouterr().out == "refit_row: yours, from my_pruner.py.\n"
    text = (folder / "my_pruner.py").read_text()
    assert text.count("def refit_row(") == text.count("def kept(") == 1  # with what it calls
    compile(text, "my_pruner.py", "exec")


def test_solved_again_it_is_replaced_and_all_else_stays(folder):
    course.check("02.3", typed(REFIT)["refit_row"])
    file = folder / "my_pruner.py"
    file.write_text(file.read_text().replace("import math", "import math\n\nMINE = 1"))
    course.check("02.3", typed(REFIT.replace("new[mask] =", "new[mask]  ="), 2)["refit_row"])
    course.check(
        "02.1",
        typed("def output_error(a, b, g):\n    return (((a - b) @ g) * (a - b)).sum()", 3)[
            "output_error"
        ],
    )
    text = file.read_text()
    assert "MINE = 1" in text and "new[mask]  =" in text and "def output_error(" in text
    assert text.count("def refit_row(") == 1 and text.count("# --- end of 02.3") == 1


def test_a_kept_function_calls_the_package_for_what_the_reader_skipped(folder):
    names = {name: exercise.reference for name, exercise in references().items()}
    first = inspect.getsource(nb02.first_inputs).replace("blocks_of", "sl.blocks_of")
    own = typed(first + LOOP, sl=sparselab, torch=torch, **{**names})
    course.check("02.7", own["prune_model"])
    text = (folder / "my_pruner.py").read_text()
    assert "def first_inputs(" in text and "def replay(" not in text
    assert course.mine("prune_model") is not BANK["02.7"].reference


@pytest.mark.parametrize(
    "text, words",
    [
        ("def refit_row(:", "cannot be read (SyntaxError"),
        ("import nothing_of_that_name", "cannot be read (ModuleNotFoundError"),
        ("def refit_row(row, mask, gram):\n    return math.nan", "NameError"),
        ("def refit_row(row, mask, gram):\n    return row * mask", "is wrong: Nothing moved"),
        ("def refit_row(row, mask, gram):\n    ...", "is not attempted"),
    ],
)
def test_a_file_that_does_not_work_is_named_and_the_reference_used(folder, capsys, text, words):
    (folder / "my_pruner.py").write_text(text)
    assert course.mine("refit_row") is BANK["02.3"].reference
    assert words in capsys.readouterr().out


def test_without_a_file_the_reference_is_used_silently(folder, capsys):
    assert course.mine("prune_model") is BANK["02.7"].reference
    (folder / "my_pruner.py").write_text("x = 1")
    assert course.mine("prune_model") is BANK["02.7"].reference
    assert capsys.readouterr().out == ""
    with pytest.raises(SparselabError, match="no exercise of the course"):
        course.mine("prune_everything")


def test_a_stored_run_takes_the_reference_whatever_lies_in_its_folder(folder, capsys, monkeypatch):
    course.check("02.3", typed(REFIT)["refit_row"])
    capsys.readouterr()
    monkeypatch.setenv("SPARSELAB_STATIC", "1")
    assert course.mine("refit_row") is BANK["02.3"].reference
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "answer", [..., None, lambda row, mask, gram: None, BANK["02.3"].reference]
)
def test_nothing_is_written_where_nothing_was_solved(folder, answer, capsys):
    course.check("02.3", answer)
    assert [*folder.iterdir()] == []
    assert "not attempted" not in capsys.readouterr().out  # this exercise is quiet


def test_a_folder_that_refuses_is_named(folder, capsys, monkeypatch):
    def refuse(file, content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sparselab.course.pruner.write_whole", refuse)
    course.check("02.3", typed(REFIT)["refit_row"])
    assert "right: it could not be kept" in capsys.readouterr().out


def test_plain_answers():
    exercise = Exercise(0.25, wrong={"that is the share that stays, not the share that goes": 0.75})
    assert (
        exercise.verdict(torch.tensor(0.25))[0] == "right"
        and exercise.verdict(None)[0] == "not attempted"
    )
    assert "stays" in exercise.verdict(0.75)[1] and exercise.verdict(0.5)[0] == "wrong"


def test_predictions_are_recorded_and_compared(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSELAB_STATIC", raising=False)
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
    file = tmp_path / "my_predictions.json"
    assert list(json.loads(file.read_text())) == ["99.1"]
    file.write_text("half of")  # it is the student's all the same
    course.predict("99.3", "zeros?", 12.0)
    course.reveal("99.3", 11.0)
    assert "cannot be read" in capsys.readouterr().out and file.read_text() == "half of"


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
    assert write_student_edition(tmp_path / "a.ipynb", tmp_path / "out") == "new"


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


def test_numbers_that_are_empty_or_pruned_leave_the_scale_alone():
    axis = Figure().subplots()
    matrix, mask = torch.tensor([[1.0, -2.0, 9.0]]), torch.tensor([[True, False, True]])
    viz.numbers(axis, matrix, mask=mask, empty=torch.tensor([[False, False, True]]))
    assert axis.images[0].get_array().tolist() == [[0.5, -1.0, 0.0]]
    colours = axis.images[0].to_rgba(axis.images[0].get_array(), bytes=True)[0]
    pruned = [int(viz.PRUNED[0][place : place + 2], 16) for place in (1, 3, 5)]
    assert colours[1, :3].tolist() == pruned and colours[2, :3].tolist() == [255] * 3


def test_matrices_that_share_a_scale_have_the_same_grey_for_the_same_number():
    panels = {"before": torch.tensor([[2.0, 1.0]]), "after": torch.tensor([[4.0, 1.0]])}
    for shared, first in ((True, [[0.5, 0.25]]), (False, [[1.0, 0.5]])):
        left, right = viz.matrices(panels, shared=shared).axes
        assert left.images[0].get_array().tolist() == first
        assert right.images[0].get_array().tolist() == [[1.0, 0.25]]
