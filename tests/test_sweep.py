"""The table of a sweep: complete rows, resumed where it stopped."""
import pandas as pd
import pytest
from conftest import ROOT

import sparselab as sl
from sparselab.sweep import METHODS, Sweep, append, named_method
from sparselab.tables import claims

SMALL = Sweep("opt-mini", samples=2, seqlen=32, windows=2)


def test_names_of_methods():
    assert str(named_method("dsnot:sparsegpt", "OPT")) == str(sl.DSnoT("sparsegpt"))
    assert named_method("sparsellm:published", "LLaMA") == sl.SparseLLM.published("LLaMA")
    assert named_method("wanda:refit=True;targets=dense-model", "OPT") == sl.Wanda(refit=True, targets="dense-model")
    assert all(named_method(name, "OPT") for name in METHODS)
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
    assert (row.model, row.calibration, row.samples, row.seqlen, row.text, row.windows) == ("opt-mini", "demo", 2, 32,
                                                                                         "demo", 2)
    more = Sweep("opt-mini", samples=2, seqlen=32, windows=2, texts=("demo", "demo")).run(file, ["wanda"], ["0.5"],
                                                                                       progress=False)
    assert len(more) == 2                                        # nothing is run twice
    assert pd.read_csv(file).sparsity.between(0.49, 0.51).all()


def test_rows_do_not_go_into_a_table_of_other_columns(tmp_path):
    append(tmp_path / "table.csv", [{"a": 1, "b": 2}])
    append(tmp_path / "table.csv", [{"a": 3, "b": 4}])
    assert pd.read_csv(tmp_path / "table.csv").to_dict("list") == {"a": [1, 3], "b": [2, 4]}
    with pytest.raises(sl.SparselabError, match="other columns"):
        append(tmp_path / "table.csv", [{"a": 5}])


def test_a_recorded_table_can_be_gone_on_with():
    """The columns of the tables in bench/ are those that a sweep writes."""
    columns = [*pd.read_csv(ROOT / "bench" / "opt-mini.csv", nrows=0)]
    model, tokenizer = sl.load("opt-mini")
    windows = sl.calibration(tokenizer, "demo", samples=2, seqlen=32)
    report = sl.prune(model, windows, method="magnitude", sparsity=0.5, layers=[0], progress=False)
    ppl = sl.perplexity(model, windows.flatten(), seqlen=32, progress=False)
    assert [*SMALL.row(0, "0.5", "magnitude", report, "demo", ppl, ppl)] == columns


def test_published_knows_its_families():
    assert sl.SparseLLM.published("opt") == sl.SparseLLM.published("OPT") != sl.SparseLLM.published("llama")
    with pytest.raises(sl.SparselabError, match="two variants"):
        sl.SparseLLM.published("gpt2")
