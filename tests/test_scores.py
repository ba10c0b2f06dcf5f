"""The scoreboard: rows of one protocol, kept in the reader's folder, and never in a stored run."""

import json

import pytest
import torch

from sparselab import Perplexity, SparselabError, course
from sparselab.course import scores


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working folder of a reader, and a kernel that has just started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSELAB_STATIC", raising=False)
    monkeypatch.setattr(scores, "_rows", {})
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: None)
    return tmp_path


def measured(value: float, windows: int = 64, seqlen: int = 256) -> Perplexity:
    return Perplexity(torch.full((windows,), value).log(), seqlen)


def new_kernel() -> None:
    scores._rows.clear()


def test_rows_of_all_lessons_are_drawn_together(capsys):
    course.score("dense", measured(78.0), zeros=0)
    course.score("magnitude", measured(174.0))
    new_kernel()
    course.score("mine", 90.0)
    course.score("mine", 88.0)  # solved again: it replaces the row
    course.score("mine", 700.0, zeros=0.9)  # another board
    course.scoreboard()
    said = capsys.readouterr().out
    assert "perplexity magnitude 174.00, mine 88.00, dense 78.00" in said
    assert "opt-mini, demo text, 64 windows of 256 tokens, 70 % zeros" in said
    course.scoreboard(zeros=0.9)
    assert "perplexity mine 700.00, dense 78.00" in capsys.readouterr().out
    course.scoreboard(model="another")
    assert "has no rows yet" in capsys.readouterr().out


def test_a_stored_run_neither_reads_nor_writes(folder, capsys, monkeypatch):
    """So that notebooks are tested side by side in one folder, whatever a reader left there."""
    course.score("mine", 90.0)
    before = (folder / "my_scores.json").read_bytes()
    new_kernel()
    monkeypatch.setenv("SPARSELAB_STATIC", "1")
    course.score("magnitude", 174.0)
    course.scoreboard()
    said = capsys.readouterr().out
    assert "magnitude 174.00" in said and "mine" not in said
    assert (folder / "my_scores.json").read_bytes() == before


@pytest.mark.parametrize("windows, seqlen", [(32, 256), (64, 128)])
def test_another_protocol_is_named_and_left_out(windows, seqlen, folder, capsys):
    course.score("mine", measured(90.0, windows, seqlen))
    assert f"measured on {windows} windows of {seqlen} tokens" in capsys.readouterr().out
    assert not (folder / "my_scores.json").exists()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_no_number_is_left_out(value, folder, capsys):
    course.score("mine", value)
    assert "is left out" in capsys.readouterr().out and not [*folder.iterdir()]


def test_zeros_is_a_share():
    with pytest.raises(SparselabError, match="share from 0 to 1"):
        course.score("mine", 90.0, zeros=70)


def test_a_row_by_a_function_of_the_package_is_ours(capsys):
    reference = course.exercises_of("02")["02.8"].reference
    course.score("mine", 90.0, by=(lambda: None,))
    course.score("skipped", 91.0, by=(lambda: None, reference))
    course.scoreboard()
    assert "mine 90.00, skipped (ours) 91.00" in capsys.readouterr().out
    course.score("mine", 90.0, by=(reference,))
    course.scoreboard()
    assert "(ours)" not in capsys.readouterr().out  # all are: nothing to tell apart


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', '{"a": {"model": "opt-mini"}}'])
def test_a_file_that_is_none_stays_as_it_is(text, folder, capsys):
    file = folder / "my_scores.json"
    file.write_text(text)
    course.score("mine", 90.0)
    course.scoreboard()
    said = capsys.readouterr().out
    assert "my_scores.json cannot be read" in said and "mine 90.00" in said
    assert file.read_text() == text


def test_a_folder_that_refuses_is_named(capsys, monkeypatch):
    def refuse(file, content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(scores, "write_json", refuse)
    course.score("mine", 90.0)
    assert "could not be kept" in capsys.readouterr().out


def test_the_file_is_json_for_a_teacher(folder):
    course.score("mine", measured(90.0))
    ((key, row),) = json.loads((folder / "my_scores.json").read_text()).items()
    assert key == "opt-mini, 70 %, mine" and row["perplexity"] == pytest.approx(90)


@pytest.mark.parametrize("values", [[174.0], [84.0, 87.0, 99.0, 174.0], [84.0, 3000.0], [70.0]])
def test_the_picture_is_sorted_with_the_best_on_top(values):
    names = ("SparseGPT", "Wanda", "magnitude, refitted", "my own")
    rows = [
        {"name": name, "perplexity": value, "ours": False}
        for name, value in zip(names, values, strict=False)
    ]
    axis = scores.picture(rows[::-1], 78.0).axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()][::-1] == [*names[: len(values)]]
    left, right = axis.get_xlim()
    assert left < min(*values, 78.0) and right > max(values)


def test_a_method_keeps_its_look():
    assert scores._style("SparseGPT, mine")[0] == "#0072B2"
    assert scores._style("SparseLLM")[0] == "#E69F00"
    assert scores._style("my own")[0] == "#666666"
