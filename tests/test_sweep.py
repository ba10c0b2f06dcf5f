"""The table of a sweep: complete rows, resumed where it stopped."""

from dataclasses import replace

import pandas as pd
import pytest
from conftest import ROOT

import sparselab as sl
from sparselab.experiments.results import append, read
from sparselab.experiments.sweep import METHODS, Sweep
from sparselab.experiments.tables import claims
from sparselab.methods.registry import named_method

SMALL = Sweep("opt-mini", samples=2, seqlen=32, windows=2)
BOOKS = Sweep(
    corpus="books-train.txt.xz", texts=("books-heldout.txt.xz", "wikitext2", "ptb", "demo")
)


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


def test_a_recorded_table_can_be_gone_on_with():
    """The columns of the tables in bench/ are those that a sweep writes."""
    columns = [*pd.read_csv(ROOT / "bench" / "opt-mini.csv", nrows=0)]
    model, tokenizer = sl.load("opt-mini")
    windows = sl.calibration(tokenizer, "demo", samples=2, seqlen=32)
    report = sl.prune(model, windows, method="magnitude", sparsity=0.5, layers=[0], progress=False)
    ppl = sl.perplexity(model, windows.flatten(), seqlen=32, progress=False)
    assert [*SMALL.row(0, "0.5", "magnitude", report, "demo", ppl, ppl)] == columns


@pytest.mark.parametrize(
    "name, sweep, rows",
    [
        ("opt-mini", BOOKS, 416),
        ("ablation", replace(BOOKS, texts=BOOKS.texts[:1]), 15),
        ("few-tokens", Sweep(samples=8, windows=32), 5),
        ("seeds", replace(BOOKS, texts=BOOKS.texts[:2]), 36),
        ("published", replace(BOOKS, texts=(*BOOKS.texts[:2], "demo")), 72),
        ("dsnot", replace(BOOKS, texts=(*BOOKS.texts[:2], "demo")), 90),
        (
            "smollm2",
            Sweep("smollm2-135m", samples=16, seqlen=512, texts=("demo", "wikitext2"), windows=24),
            6,
        ),
    ],
)
def test_recorded_tables_are_done(name, sweep, rows, monkeypatch):
    """What bench/sweeps.sh asks for is there: nothing is loaded."""
    monkeypatch.setattr("sparselab.experiments.sweep.load", None)
    file = ROOT / "bench" / f"{name}.csv"
    table = sweep.mine(file)
    assert len(table) == rows
    for seed in table.seed.unique():
        part = table[table.seed == seed]
        for pattern in part.pattern.unique():
            sweep.run(
                file,
                part[part.pattern == pattern].method.unique(),
                [pattern],
                [seed],
                progress=False,
            )


def test_published_knows_its_families():
    assert (
        sl.SparseLLM.published("opt")
        == sl.SparseLLM.published("OPT")
        != sl.SparseLLM.published("llama")
    )
    with pytest.raises(sl.SparselabError, match="two variants"):
        sl.SparseLLM.published("gpt2")
