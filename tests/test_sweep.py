"""The table of a sweep: complete rows, resumed where it stopped."""

import errno
import os
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import ROOT

import sparselab as sl
from sparselab.experiments.results import append, read, rows_matching
from sparselab.experiments.sweep import METHODS, Sweep
from sparselab.experiments.tables import by_text, claims
from sparselab.methods.registry import named_method
from sparselab.runtime import memory

SMALL = Sweep("opt-mini", samples=2, seqlen=32, windows=2)
BOOKS = Sweep(
    corpus="books-train.txt.xz", texts=("books-heldout.txt.xz", "wikitext2", "ptb", "demo")
)

SMOLLM2 = Sweep("smollm2-135m", samples=16, seqlen=512, texts=("demo", "wikitext2"), windows=24)
THREE = replace(BOOKS, texts=("books-heldout.txt.xz", "wikitext2", "demo"))
RECORDED = {  # the sweeps of bench/sweeps.sh, and how many rows their tables hold
    "opt-mini": (BOOKS, 488),
    "ablation": (replace(BOOKS, texts=BOOKS.texts[:1]), 15),
    "few-tokens": (Sweep(samples=8, windows=32), 7),
    "seeds": (replace(BOOKS, texts=BOOKS.texts[:2]), 48),
    "ladder": (replace(BOOKS, texts=BOOKS.texts[:2]), 48),
    "published": (THREE, 72),
    "dsnot": (THREE, 90),
    "smollm2": (SMOLLM2, 66),
}


def table_file(name):
    return ROOT / "bench" / f"{name}.csv"


def test_names_of_methods():
    assert str(named_method("dsnot:sparsegpt", "OPT")) == str(sl.DSnoT("sparsegpt"))
    assert named_method("sparsellm:published", "LLaMA") == sl.SparseLLM.published("LLaMA")
    assert named_method("wanda:refit=True;targets=dense-model", "OPT") == sl.Wanda(
        refit=True, targets="dense-model"
    )
    assert all(named_method(name, "OPT") for name in METHODS)
    assert (
        named_method("wanda:refit=false", "OPT") == sl.Wanda()
        and named_method("wanda:refit=TRUE", "OPT").refit is True
    )
    with pytest.raises(sl.SparselabError, match="has no refitted"):
        named_method("wanda:refitted=True", "OPT")


def test_a_sweep_is_resumed_and_its_rows_are_complete(tmp_path):
    file = tmp_path / "sweep.csv"
    first = SMALL.run(file, ["sparsegpt"], ["0.5"], progress=False)
    assert len(first) == 1
    both = SMALL.run(file, ["sparsegpt", "wanda"], ["0.5"], progress=False)
    assert list(both.method) == ["sparsegpt", "wanda"] and both.seconds[0] == first.seconds[0]
    assert not both.isna().any().any() and list(both.pattern) == ["0.5", "0.5"]
    assert claims(both)["sparsegpt"].tolist() == [1.0]
    row = both.iloc[0]
    assert (row.model, row.calibration, row.samples, row.seqlen, row.text, row.windows) == (
        "opt-mini",
        "demo",
        2,
        32,
        "demo",
        2,
    )
    more = Sweep("opt-mini", samples=2, seqlen=32, windows=2, texts=("demo", "demo")).run(
        file, ["wanda"], ["0.5"], progress=False
    )
    assert len(more) == 2  # nothing is run twice
    assert pd.read_csv(file).sparsity.between(0.49, 0.51).all()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a process's peak")
def test_a_rows_memory_is_that_of_its_own_job(tmp_path):
    held = memory.reset_peak(torch.device("cpu"))
    large = torch.ones(250_000_000)  # 1 GB, of something earlier
    assert memory.peak_bytes(large.device) > held + 9e8
    del large
    rows = SMALL.run(tmp_path / "sweep.csv", ["magnitude"], ["0.5"], progress=False)
    assert rows.peak_mib.item() * 2**20 < held + 5e8


def test_other_windows_samples_and_files_are_other_rows(tmp_path):
    """Only the rows of the call come back, and none stands in for another setting's."""
    for folder, words in (("x", "The ship went out to sea. "), ("y", "A man went up the hill. ")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.txt").write_text(words * 40)
    file, x, y = tmp_path / "sweep.csv", str(tmp_path / "x/t.txt"), str(tmp_path / "y/t.txt")
    for count, changes in enumerate(
        (
            {},
            {"windows": 3},
            {"samples": 3},
            {"texts": (x,)},
            {"texts": (y,)},
            {"corpus": x},
            {"corpus": y},
            {"texts": (x,), "windows": 10**6},
            {},
            {"windows": 3},
        ),
        1,
    ):
        table = replace(SMALL, **changes).run(file, ["magnitude"], ["0.5"], progress=False)
        assert len(table) == 1 and len(pd.read_csv(file)) == min(
            count, 8
        )  # the last two were there
    assert table.windows.tolist() == [3]


def test_windows_from_all_over_are_other_rows_in_other_tables(tmp_path):
    """The first windows of a text and windows from all over it never stand in one table."""
    spread, job = replace(SMALL, spread=True), (["magnitude"], ["0.5"])
    first, all_over = tmp_path / "first.csv", tmp_path / "all.csv"
    SMALL.run(first, *job)
    table = spread.run(all_over, *job)
    assert table.places.tolist() == ["everywhere"]
    assert table.perplexity[0] != read(first).perplexity[0]
    model, tokenizer = sl.load("opt-mini")
    ids = sl.tokens(tokenizer, "demo", windows=2, seqlen=32)
    dense = sl.perplexity(model, ids, seqlen=32, progress=False)
    assert table.dense[0] == pytest.approx(float(dense), abs=1e-3)
    assert len(spread.run(all_over, *job)) == 1 == len(read(all_over))  # nothing is made again
    assert SMALL.mine(all_over).empty
    for sweep, file in ((spread, first), (SMALL, all_over)):
        with pytest.raises(sl.SparselabError, match="columns"):
            sweep.run(file, *job)
    assert "(from all over, 2 windows of 32 tokens" in by_text(all_over)[0]
    assert "(first 2 windows of 32 tokens" in by_text(first)[0]


def test_only_the_texts_that_are_missing_are_added(tmp_path):
    (tmp_path / "t.txt").write_text("The ship went out to sea. " * 40)
    both = replace(SMALL, texts=("demo", str(tmp_path / "t.txt")))
    SMALL.run(tmp_path / "sweep.csv", ["magnitude"], ["0.5"], progress=False)
    assert both.run(
        tmp_path / "sweep.csv", ["magnitude"], ["0.5"], progress=False
    ).text.tolist() == ["demo", "t.txt"]


@pytest.mark.parametrize(
    "methods, patterns, words",
    [
        (["magnitude", "wnda"], ["0.5"], "Did you mean 'wanda'"),
        (["magnitude"], ["0.5", "70"], "Did you mean 0.7"),
    ],
)
def test_wrong_jobs_are_refused_before_the_first(tmp_path, methods, patterns, words):
    with pytest.raises(sl.SparselabError, match=words):
        SMALL.run(tmp_path / "sweep.csv", methods, patterns, progress=False)
    assert not (tmp_path / "sweep.csv").exists()


@pytest.mark.parametrize("cut", [5, 200])
def test_a_row_that_was_cut_off_is_made_again(tmp_path, cut):
    file = tmp_path / "sweep.csv"
    table = SMALL.run(file, ["magnitude", "wanda"], ["0.5"], progress=False)
    file.write_bytes(file.read_bytes()[:-cut])  # killed while it wrote
    assert read(file).method.tolist() == ["magnitude"]
    again = SMALL.run(file, ["magnitude", "wanda"], ["0.5"], progress=False)
    assert again.perplexity.tolist() == table.perplexity.tolist() and not again.isna().any(
        axis=None
    )
    file.write_text(file.read_text() + "1," * 99 + "\n")
    with pytest.raises(sl.SparselabError, match="line 4.*Mend that line"):
        SMALL.run(file, ["wanda"], ["0.5"], progress=False)


def test_a_table_of_something_else_is_refused(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(sl.SparselabError, match="lacks the columns"):
        SMALL.run(tmp_path / "other.csv", ["wanda"], ["0.5"], progress=False)


def test_rows_do_not_go_into_a_table_of_other_columns(tmp_path):
    append(tmp_path / "table.csv", [{"a": 1, "b": 2}])
    append(tmp_path / "table.csv", [{"a": 3, "b": 4}])
    assert pd.read_csv(tmp_path / "table.csv").to_dict("list") == {"a": [1, 3], "b": [2, 4]}
    with pytest.raises(sl.SparselabError, match="other columns"):
        append(tmp_path / "table.csv", [{"a": 5}])
    append(
        tmp_path / "table.csv", [{"c": 7, "b": 6, "a": 5}]
    )  # a newer column: the table keeps its own
    assert pd.read_csv(tmp_path / "table.csv").to_dict("list") == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_recorded_tables_can_be_gone_on_with():
    """A row has the columns of every table in bench/, whatever its age."""
    sweep, job = replace(SMALL, layers=range(1)), dict(seed=0, pattern="0.5", method="magnitude")
    model, _ = sl.load("opt-mini")
    dense = sweep.perplexities(model)
    report = sweep.prune(model, **job)
    (row,) = sweep.evaluate(model, report, dense, **job)
    assert row["layers_pruned"] == "blocks 0 to 0" and row["perplexity"] > row["dense"] > 1
    own = {"steps", "extra_mib", "quantity", "x", "y"}  # what figures add to it
    own |= {"layer", "epoch", "error", "alpha_term", "beta_term", "gamma_term"}
    own |= {"revision", "task", "file", "limit", "items", "chance", "accuracy", "accuracy_stderr"}
    own |= {"right", "right_norm", "task_seconds"}
    for file in [*map(table_file, RECORDED), *(ROOT / "bench" / "figures").glob("*.csv")]:
        assert {*row} | own >= {*pd.read_csv(file, nrows=0)}
    ppl = dense["demo"]  # bench/published_loop.py does not hand the model over
    assert {*SMALL.row(*job.values(), report, "demo", ppl, ppl)} >= {
        *pd.read_csv(table_file("published_loop"), nrows=0)
    }


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_tables_are_done(name):
    """What bench/sweeps.sh asks for is there: nothing is missing."""
    sweep, count = RECORDED[name]
    sweep = replace(sweep, recorded_only=True)
    table = sweep.mine(table_file(name))
    assert len(table) == count
    for (seed, pattern), part in table.groupby(["seed", "pattern"]):
        sweep.run(table_file(name), part.method.unique(), [pattern], [seed], progress=False)


def test_published_knows_its_families():
    assert (
        sl.SparseLLM.published("opt")
        == sl.SparseLLM.published("OPT")
        != sl.SparseLLM.published("llama")
    )
    with pytest.raises(sl.SparselabError, match="two variants"):
        sl.SparseLLM.published("gpt2")


# Rows are found again, whatever they are called and whatever happened to the file.

ROWS = [
    {"model": "m", "text": "t", "pattern": "0.5", "method": "wanda", "seed": 0, "excess": 0.25},
    {"model": "m", "text": "t", "pattern": "2:4", "method": "wanda", "seed": 0, "excess": None},
]


@pytest.mark.parametrize("name", ["007", "nan", "1e3", "NA", "null", "None", "", "a,b", 'a"b', "ü"])
def test_names_that_look_like_something_else(tmp_path, name):
    file = tmp_path / "table.csv"
    for key in ("text", "model"):
        append(file, [row | {key: name} for row in ROWS])
        table = read(file)
        found = table[rows_matching(table, {key: name, "seed": 0})]
        assert len(found) == 2 and found.excess.isna().sum() == 1
        file.unlink()


@pytest.mark.parametrize("cut", ["m,t", "m,t,0.5,wanda", "m", ""])
def test_a_cut_line_is_no_row_and_spoils_no_other(tmp_path, cut):
    file = tmp_path / "table.csv"
    append(file, ROWS)
    with open(file, "a") as opened:
        opened.write(cut + "\n")
    append(file, [ROWS[0] | {"seed": 1}])
    table = read(file)
    assert len(table) == 3 and rows_matching(table, {"seed": 0}).sum() == 2
    with open(file, "a") as opened:
        opened.write("m,t,0.5")  # and a line without its end
    append(file, [ROWS[0] | {"seed": 2}])
    assert [*read(file).seed] == [0, 0, 1, 2]


@pytest.mark.parametrize("content", ["", "\n", "\n\n", "model,te"])
def test_a_file_without_a_whole_header_is_begun_anew(tmp_path, content):
    file = tmp_path / "table.csv"
    file.write_text(content)
    append(file, ROWS)
    assert len(read(file)) == 2


def test_rows_are_added_all_or_none(tmp_path, monkeypatch):
    file = tmp_path / "table.csv"
    append(file, ROWS)
    before = file.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(sl.SparselabError, match="the disk is full.* No row was lost"):
        append(file, ROWS)
    assert file.read_bytes() == before and [*tmp_path.iterdir()] == [file]


def test_several_writers_lose_no_row(tmp_path):
    code = (
        "import sys; from pathlib import Path; from sparselab.experiments.results import append\n"
        "for k in range(40): append(Path(sys.argv[1]), [{'writer': sys.argv[2], 'k': k}] * 3)"
    )
    file = tmp_path / "table.csv"
    writers = [
        subprocess.Popen([sys.executable, "-c", code, file, str(number)]) for number in range(3)
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    table = read(file)
    assert len(table) == 360 and (table.groupby(["writer", "k"]).size() == 3).all()
