"""Recorded runs, ours and those that others offer: each fault is found and named, and ours have
none."""

import sys

import pandas as pd
import pytest

from sparselab.experiments.results import read
from sparselab.experiments.sweep import Sweep
from sparselab.runtime.files import ROOT
from tools import recorded_runs
from tools.recorded_runs import again, faults, protocol

FILES = sorted(
    file for file in (ROOT / "bench" / "figures").glob("*.csv") if "excess" in read(file)
)
WRONG = {  # what was done to the second row: what is said of it
    "an empty cell": ({"revision": ""}, "line 3: revision is empty"),
    "no number": ({"output_error": float("nan")}, "line 3: output_error is empty"),
    "a method of no name": ({"method": "wandas"}, "line 3: unknown method 'wandas'"),
    "no pattern": ({"pattern": "5:4"}, "line 3: "),
    "too few zeros": ({"sparsity": 0.45}, "line 3: sparsity 0.45 where the pattern"),
    "written by hand": ({"perplexity": 71.0}, "but log(perplexity / dense) is"),
    "more windows than there are": ({"windows": 33}, "33 windows, more than the limit of 32"),
    "another date": ({"date": "30.11.2026"}, "the date 30.11.2026 is not written as"),
    "a negative error": ({"stderr": -1.0}, "a standard error or the seconds are negative"),
}


@pytest.fixture(scope="module")
def table():
    return read(ROOT / "bench" / "figures" / "sparsity-opt-mini.csv")


def test_there_are_recorded_runs():
    assert len(FILES) >= 10


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_ours_have_no_fault(file):
    rows = read(file)
    assert faults(rows) == []
    assert all("by the papers' protocol" in line for line in protocol(rows))


@pytest.mark.parametrize("change, said", WRONG.values(), ids=WRONG)
def test_each_fault_is_named_with_its_line(table, change, said):
    wrong = table.copy()
    for name, value in change.items():
        wrong.loc[1, name] = value
    assert any(said in fault for fault in faults(wrong))


def test_a_run_that_is_there_twice(table):
    twice = pd.concat([table, table.iloc[[4]]], ignore_index=True)
    assert faults(twice) == [f"line {len(table) + 2}: the same run and text as a line before"]


def test_a_column_that_is_missing(table):
    (said,) = faults(table.drop(columns="text_sha256"))
    assert said.startswith("the columns text_sha256 are missing")


def test_dense_perplexities_that_do_not_agree(table):
    wrong = table.copy()
    wrong.loc[0, ["dense", "perplexity"]] *= 1.02
    assert [fault for fault in faults(wrong) if "dense perplexities from" in fault]


def test_a_dense_model_that_is_not_the_published_one(table):
    """OPT-125m has 27.66 on the whole of WikiText-2, in windows of 2,048 tokens."""
    rows = table.iloc[:1].assign(
        model="facebook/opt-125m", text="wikitext2", seqlen=2048, windows=140, text_windows=140
    )
    rows = rows.assign(window_limit=10**6)
    for dense, wrong in ((27.65, False), (31.2, True)):
        found = faults(rows.assign(dense=dense, perplexity=dense * 1.5, excess=0.405465))
        assert any("published 27.66" in fault for fault in found) == wrong
    said = protocol(rows.assign(calibration="c4", samples=128))
    assert said == ["facebook/opt-125m: 1 runs of 1 methods; by the papers' protocol"]


def test_windows_from_all_over_are_taken_again(tmp_path, capsys):
    """With the first ones in their place it comes out as another number."""
    sweep = Sweep("opt-mini", samples=2, seqlen=32, windows=8, spread=True)
    rows = sweep.run(tmp_path / "spread.csv", ["magnitude"], ["0.5"], progress=False)
    assert again(rows) == [] and " +0.0 standard errors" in capsys.readouterr().out
    again(rows.drop(columns="places"))
    assert " +0.0 standard errors" not in capsys.readouterr().out


def test_the_cheapest_run_comes_out_again_and_a_forged_one_does_not(table, tmp_path, monkeypatch):
    cheapest = table.sort_values("seconds").iloc[[0]]
    assert again(cheapest) == []
    forged = cheapest.assign(
        perplexity=cheapest.perplexity * 0.8, excess=cheapest.excess - 0.223144
    )
    assert faults(forged) == []
    file = tmp_path / "sparsity-opt-mini.csv"
    forged.to_csv(file, index=False)
    monkeypatch.setattr(sys, "argv", ["recorded_runs", str(file), "--again"])
    assert recorded_runs.main() == 1
