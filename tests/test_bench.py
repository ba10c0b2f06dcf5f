"""What waits for a GPU runs whole on a CPU, at a small size."""

import json
import sys
import tomllib

import pytest
import torch
from conftest import ROOT


@pytest.fixture
def llama13b(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import llama13b

    return llama13b


def called(monkeypatch, llama13b, tmp_path, *options):
    """The rows that a call leaves, and its device alone from then on."""
    file = tmp_path / "rows.json"
    call = ["--model", "tiny", "--blocks", "2", "--samples", "2", "--seqlen", "32"]
    call += ["--device", "cpu", "--folder", tmp_path / "work", "--json", file, *options]
    monkeypatch.setattr(sys, "argv", ["llama13b.py", *map(str, call)])
    llama13b.main()
    return json.loads(file.read_text())


def test_one_method_a_call(llama13b, monkeypatch, tmp_path, capsys):
    """The second call finds the model, and adds its row; what was measured adds up."""
    monkeypatch.setattr(llama13b, "product_speed", lambda *_: 1e11)
    called(monkeypatch, llama13b, tmp_path, "--methods", "wanda")
    rows = called(monkeypatch, llama13b, tmp_path, "--methods", "sparsegpt")
    said = capsys.readouterr().out
    assert said.count("made tiny-2-float32") == 1 and said.count("floor: ") == 2
    assert [row["method"].split("(")[0] for row in rows] == ["wanda", "sparsegpt"]
    for row in rows:
        seconds = dict(row["seconds"])
        total = seconds.pop("total")
        assert {"collect", "solve", "write"} <= {*seconds} and sum(seconds.values()) <= total + 0.1
        assert row["blocks"] == row["blocks_pruned"] == 2 and row["torch"] == torch.__version__
        assert row["forward_tflops"] > 0 and row["floor"] >= 0
    assert rows[1]["gram_share"] == pytest.approx(rows[1]["gram_tflops"] / 0.1, abs=6e-3)
    line = said.splitlines()[-1]
    assert line.startswith("# measured 20") and "sparsegpt" in line
    assert not tomllib.loads(line) and not (tmp_path / "work" / "out").exists()


def test_what_does_not_fit_into_the_minutes_is_copied(llama13b, monkeypatch, tmp_path):
    monkeypatch.setattr(llama13b, "product_speed", lambda *_: 1e11)
    (row,) = called(monkeypatch, llama13b, tmp_path, "--minutes", "0")
    assert row["blocks"] == 2 and row["blocks_pruned"] == 1 and row["goal"] is None
    assert "the first 1" in llama13b.registry_line(row)
