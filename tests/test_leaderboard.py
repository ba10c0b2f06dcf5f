"""The leaderboard: what is accepted, what is refused and why, what is kept."""

import ast
import json
import math
import threading
import time
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from conftest import tiny_llama, tiny_opt
from torch.nn.utils import prune as torch_prune

import sparselab as sl
from sparselab import SparselabError, course
from sparselab.course import scores
from sparselab.course import submissions as board
from sparselab.models.architecture import linears_of

WINDOWS = torch.randint(5, 100, (4, 16), generator=torch.Generator().manual_seed(0))
TEXT = torch.randint(5, 100, (96,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A reader's folder and a kernel that has just started; two tiny models to prune."""
    models = {"tiny": tiny_llama, "tiny-opt": tiny_opt}
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSELAB_STATIC", raising=False)
    monkeypatch.setattr(board, "_rows", [])
    monkeypatch.setattr(board, "_dense", {})
    monkeypatch.setattr(board, "_texts", {})
    monkeypatch.setattr(board, "_recorded", lambda: [])
    monkeypatch.setattr(board, "LOOK", 0.05)
    monkeypatch.setattr(board, "PROTOCOLS", dict.fromkeys(models, board.Protocol(4, 16, 6)))
    monkeypatch.setattr(board, "load", lambda name: (loaded(models[name]), None))
    monkeypatch.setattr(board, "calibration", lambda *_, **__: WINDOWS.clone())
    monkeypatch.setattr(board, "tokens", lambda *_, **__: TEXT.clone())
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: None)
    return tmp_path


def loaded(make):
    with torch.random.fork_rng():
        return make()


submit = partial(course.submit, model="tiny", minutes=1)


@torch.no_grad()
def magnitude(model, windows, sparsity=0.7):
    """Of each matrix, without a word of the package's loop: quick."""
    for linear in linears_of(model).values():
        weight = linear.weight
        lowest = weight.abs().flatten().argsort()[: math.ceil(sparsity * weight.numel())]
        weight.view(-1)[lowest] = 0


def rows(folder) -> list[dict]:
    file = folder / board.FILE
    return [*json.loads(file.read_text()).values()] if file.exists() else []


# What is accepted.


@pytest.mark.parametrize("model", ["tiny", "tiny-opt"])
def test_a_submission_is_scored_as_the_package_scores(model, folder, capsys):
    done = submit("mine", magnitude, model=model)
    subject = {"tiny": tiny_llama, "tiny-opt": tiny_opt}[model]()
    dense = sl.perplexity(subject, TEXT, seqlen=16, progress=False)
    magnitude(subject, WINDOWS)
    theirs = sl.perplexity(subject, TEXT, seqlen=16, progress=False)
    assert not done.refused and float(done.perplexity) == float(theirs)
    assert done.excess == theirs.ratio(dense) and done.others == 0
    (row,) = rows(folder)
    assert row["perplexity"] == float(theirs) and row["zeros"] == pytest.approx(0.7, abs=1e-3)
    assert row["seconds"] >= 0 and row["text"] == "demo text, 6 windows of 16 tokens"
    assert "mine: on the board" in capsys.readouterr().out


def test_a_pruner_gets_the_calibration_windows_and_not_the_text_that_is_scored():
    seen = []

    def pruner(model, calibration):
        seen.append(calibration)
        magnitude(model, calibration)

    submit("mine", pruner)
    assert torch.equal(seen[0], WINDOWS)


def test_the_demo_texts_of_calibration_and_score_share_no_sentence():
    _, tokenizer = sl.load("opt-mini")
    windows = sl.calibration(tokenizer, "demo", samples=64, seqlen=256)
    text = sl.tokens(tokenizer, "demo").tolist()
    scored = {tuple(text[place : place + 16]) for place in range(len(text) - 16)}
    given = (window[place : place + 16] for window in windows.tolist() for place in range(240))
    assert scored.isdisjoint(map(tuple, given))


def test_norms_and_biases_may_change_and_are_counted(capsys):
    def pruner(model, calibration):
        magnitude(model, calibration)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data *= 1.01

    done = submit("mine", pruner)
    assert not done.refused and done.others == 5  # two norms in each of two blocks, one at the end
    assert "5 norms and biases have changed" in capsys.readouterr().out


def test_random_numbers_are_the_same_each_time_and_the_callers_go_on():
    drawn = []
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for _ in range(2):
        submit("mine", lambda model, windows: drawn.append(torch.rand(1)) or magnitude(model, 0))
    assert drawn[0] == drawn[1] and torch.rand(1) == expected


def test_what_is_scored_is_what_was_checked():
    """A hook that brings the dense outputs back does not reach the score."""

    def cheat(model, calibration):
        dense = {id(linear): linear.weight.clone() for linear in linears_of(model).values()}
        for linear in linears_of(model).values():
            linear.register_forward_hook(lambda one, given, _: given[0] @ dense[id(one)].T)
        magnitude(model, calibration)

    assert submit("cheat", cheat).excess == submit("honest", magnitude).excess


# What is refused.


@torch.no_grad()
def embeddings(model, calibration):
    magnitude(model, calibration)
    model.get_input_embeddings().weight[:64] = 0


@torch.no_grad()
def refilled(model, calibration):
    magnitude(model, calibration)
    for linear in linears_of(model).values():
        linear.weight += 1e-4 * torch.randn_like(linear.weight)


@torch.no_grad()
def refilled_far(model, calibration):
    magnitude(model, calibration)
    time.sleep(0.3)  # long enough to be seen
    for linear in linears_of(model).values():
        linear.weight += torch.randn_like(linear.weight)


def another_model(model, calibration):
    new = tiny_llama()
    magnitude(new, calibration)
    return new


@torch.no_grad()
def smaller(model, calibration):
    magnitude(model, calibration)
    linear = model.model.layers[0].mlp.up_proj
    linear.weight = torch.nn.Parameter(linear.weight[:16])


@torch.no_grad()
def broken(model, calibration):
    magnitude(model, calibration)
    model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan


@torch.no_grad()
def without_the_last_block(model, calibration):
    magnitude(model, calibration, 0.9)
    dense = tiny_llama()
    model.model.layers[1].load_state_dict(dense.model.layers[1].state_dict())


def by_torch(model, calibration):
    for linear in linears_of(model).values():
        torch_prune.l1_unstructured(linear, "weight", amount=0.7)


def adapters(model, calibration):
    magnitude(model, calibration)
    model.model.layers[0].mlp.up_proj.lora_A = torch.nn.Linear(2, 2)


def without_norm(model, calibration):
    magnitude(model, calibration)
    model.model.norm = torch.nn.Identity()


REFUSALS = {
    "nothing": (lambda model, calibration: model.eval(), "0.00 % of the weights are zero"),
    "embeddings": (embeddings, "model.embed_tokens.weight changed"),
    "too few": (partial(magnitude, sparsity=0.699), "rounded down"),
    "far too few": (partial(magnitude, sparsity=0.5), "50.0.* count alike"),
    "a block left out": (without_the_last_block, "7 of 14 matrices have none, such as .*layers.1"),
    "refilled": (refilled, "nearly zero.*fine-tuning, has filled zeros again"),
    "refilled and far": (refilled_far, r"while it ran, 70.\d % were zero"),
    "another model": (another_model, "another model. Prune the one that it is given, in place"),
    "smaller": (smaller, r"up_proj.weight has the shape \[16, 32\] and had \[48, 32\]"),
    "NaN": (broken, "1 tensors hold NaN .* the first is model.layers.1.mlp.up_proj"),
    "torch's masks": (by_torch, "other tensors than before.*call its `remove`"),
    "adapters": (adapters, "other tensors than before.*Merge the adapters"),
    "a module lost": (without_norm, "it lacks model.norm.weight"),
}


@pytest.mark.parametrize("mistake", REFUSALS)
def test_a_mistake_is_named_and_nothing_is_kept(mistake, folder, capsys):
    pruner, words = REFUSALS[mistake]
    submit("before", magnitude)
    kept = (folder / board.FILE).read_bytes()
    done = submit("mine", pruner)
    assert done.perplexity is None and done.refused
    with pytest.raises(board.Refused, match=words):
        raise board.Refused(done.refused)
    assert "mine: not on the board" in capsys.readouterr().out
    assert (folder / board.FILE).read_bytes() == kept and len(board._rows) == 1


def test_a_loss_that_is_not_finite_is_refused():
    @torch.no_grad()
    def pruner(model, calibration):
        magnitude(model, calibration)
        model.model.norm.weight *= 1e38

    assert "cannot be scored" in submit("mine", pruner).refused


def test_too_slow_is_stopped_and_says_how_far_it_came(folder, capsys):
    ended = threading.Event()

    def pruner(model, calibration):
        for linear in linears_of(model, [0]).values():
            linear.weight.data.zero_()
        try:
            while True:
                with torch.no_grad():
                    model(calibration)
        finally:
            ended.set()

    started = time.perf_counter()
    done = submit("mine", pruner, minutes=0.005)
    assert ended.wait(1) and time.perf_counter() - started < 10
    assert "0 s are over. It had 50 % zeros, in 1 of 2 blocks" in done.refused
    assert not rows(folder) and "0 s of 0 s" in capsys.readouterr().err


def test_an_except_does_not_hold_it(folder):
    def pruner(model, calibration):
        while True:
            try:
                time.sleep(0.001)
            except Exception:
                pass

    assert "are over" in submit("mine", pruner, minutes=0.002).refused


def test_an_interrupt_stops_it_and_leaves_the_board(folder, monkeypatch):
    submit("before", magnitude)
    kept, ended = (folder / board.FILE).read_bytes(), threading.Event()

    def pruner(model, calibration):
        try:
            while True:
                time.sleep(0.001)
        except KeyboardInterrupt:
            ended.set()
            raise

    def interrupt(model):
        raise KeyboardInterrupt

    monkeypatch.setattr(board, "_so_far", interrupt)
    with pytest.raises(KeyboardInterrupt):
        submit("mine", pruner)
    assert ended.is_set() and (folder / board.FILE).read_bytes() == kept


def test_an_error_of_the_pruner_is_its_authors(folder):
    def pruner(model, calibration):
        raise SparselabError("something of mine")

    with pytest.raises(SparselabError, match="something of mine"):
        submit("mine", pruner)
    assert not rows(folder)


@pytest.mark.parametrize(
    "name, pruner, minutes, words",
    [
        ("", magnitude, 1, "has a name"),
        (magnitude, "mine", 1, "has a name"),
        ("mine", magnitude, 0, "above 0"),
        ("mine", torch.zeros(2), 1, "the function itself"),
    ],
)
def test_what_is_asked_is_checked_first(name, pruner, minutes, words):
    with pytest.raises(SparselabError, match=words):
        submit(name, pruner, minutes=minutes)


def test_a_function_that_nobody_wrote_is_no_mistake(folder, capsys):
    def my_pruner(model, calibration): ...

    submit("mine", my_pruner)
    assert "nothing to submit yet" in capsys.readouterr().out and not rows(folder)


# What is kept and shown.


def test_the_board_shows_the_best_of_each_name_within_the_time(capsys, monkeypatch):
    submit("mine", partial(magnitude, sparsity=0.8))
    submit("mine", magnitude)
    submit("other", partial(magnitude, sparsity=0.9))
    slow = {**board._rows[0], "name": "slow", "seconds": 100.0}
    recorded = {**board._rows[0], "name": "worked (recorded)", "seconds": 20.0}
    monkeypatch.setattr(board, "_recorded", lambda: [slow, recorded])
    capsys.readouterr()
    board._rows.clear()  # another kernel
    course.leaderboard(model="tiny", minutes=1)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("mine") == 1 and "other" in said and "slow" not in said
    assert "worked (recorded)" in said and "at least 70 % zeros" in said
    course.leaderboard(model="tiny", minutes=2)
    assert "slow" in capsys.readouterr().out
    course.leaderboard(model="tiny-opt")
    assert "has no rows yet" in capsys.readouterr().out


def test_rows_of_another_protocol_are_left_out(capsys, monkeypatch):
    submit("mine", magnitude)
    monkeypatch.setattr(board, "PROTOCOLS", {"tiny": board.Protocol(4, 16, 3)})
    capsys.readouterr()
    course.leaderboard(model="tiny")
    assert "has no rows yet" in capsys.readouterr().out


def test_two_notebooks_lose_no_row(folder):
    row = submit("first", magnitude).row()
    names = [f"row {number}" for number in range(20)]
    threads = [threading.Thread(target=board._keep, args=({**row, "name": n},)) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["name"] for row in rows(folder)) == sorted([*names, "first"])
    assert [file.name for file in folder.iterdir()] == [board.FILE]


def test_a_file_that_is_none_stays_as_it_is(folder, capsys):
    file = folder / board.FILE
    file.write_text('{"1": {"name": "mine"}}')
    submit("mine", magnitude)
    course.leaderboard(model="tiny", minutes=1)
    said = capsys.readouterr().out
    assert "my_leaderboard.json cannot be read" in said and "Figure: leaderboard" in said
    assert json.loads(file.read_text()) == {"1": {"name": "mine"}}


def test_a_folder_that_refuses_is_named(capsys, monkeypatch):
    def refuse(file, content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(scores, "write_json", refuse)
    submit("mine", magnitude)
    assert "could not be kept" in capsys.readouterr().out


def test_a_stored_run_neither_reads_nor_writes(folder, capsys, monkeypatch):
    submit("mine", magnitude)
    before = (folder / board.FILE).read_bytes()
    board._rows.clear()
    monkeypatch.setenv("SPARSELAB_STATIC", "1")
    capsys.readouterr()
    submit("stored", magnitude)
    course.leaderboard(model="tiny", minutes=1)
    out, err = capsys.readouterr()
    assert "stored" in out and "mine" not in out and not err
    assert (folder / board.FILE).read_bytes() == before


# The worked solutions.


def test_the_lesson_shows_the_functions_that_made_the_recorded_rows():
    root = Path(__file__).parents[1]
    (lesson,) = (root / "notebooks").glob("15_*.ipynb")
    cells = nbformat.read(lesson, as_version=4).cells
    shown = functions("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    made = functions((root / "bench" / "leaderboard.py").read_text())
    for name in ("baseline", "better_solver", "by_gradient"):
        assert shown[name] == made[name]


def functions(source: str) -> dict[str, str]:
    """The functions of a source by name, without their docstrings."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            node.body = node.body[bool(ast.get_docstring(node)) :]
            found[node.name] = ast.unparse(node)
    return found


def test_the_recorded_rows_have_their_zeros_and_their_time():
    rows = pd.read_csv(board.RECORDED)
    assert {*board.PARTS, "machine", "date", "wall_seconds"} <= {*rows}
    assert [*rows.name] == ["SparseGPT", "ALPS", "SparseGPT, by gradient"]
    assert (rows.zeros >= board.ZEROS - board.SLACK).all() and (rows.seconds <= 600).all()
    assert {*rows.model} == {"smollm2-135m"} and rows.text.nunique() == rows.dense.nunique() == 1
