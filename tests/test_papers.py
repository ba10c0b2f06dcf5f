"""Published numbers: each with its source, and compared with ours only under the same protocol."""

import pandas as pd
import pytest

import sparselab as sl
from sparselab import SparselabError, viz
from sparselab.evaluation.published import COLUMNS, PAPERS, gaps
from sparselab.experiments.sweep import METHODS


def row(**changes):
    """One row of a figure's table, by the protocol of SparseLLM's tables."""
    return {
        "model": "facebook/opt-30b",
        "text": "wikitext2",
        "method": "sparsegpt",
        "pattern": "0.8",
        "perplexity": 17.0,
        "stderr": 0.2,
        "dense": 9.6,
        "seqlen": 2048,
        "windows": 140,
        "text_windows": 140,
        "layers_pruned": "first half",
        **changes,
    }


def test_every_number_has_a_source_and_a_protocol():
    table = sl.papers()
    assert tuple(table.columns) == COLUMNS and len(table) > 600
    may_be_empty = ["table_or_figure", "pattern", "sparsity", "seqlen", "note"]
    assert not table.drop(columns=may_be_empty).isna().any(axis=None)
    assert not table.drop(columns=["source", "seen", "note"]).duplicated().any()
    perplexities = table[table.metric == "perplexity"]
    assert perplexities.seqlen.isin([2048, 4096]).all() and (perplexities.value > 3).all()
    assert set(table.layers_pruned) == {"all", "first half", "none"}
    assert ((table.method == "dense") == (table.layers_pruned == "none")).all()
    assert (table.pattern.isna() == (table.metric == "seconds")).all()  # no paper says it for times
    patterns = table[["pattern", "sparsity"]].dropna().drop_duplicates()
    for pattern, sparsity in patterns.itertuples(index=False):
        assert sl.Pattern.parse(pattern).sparsity == pytest.approx(sparsity)


def test_every_number_has_an_address_that_anyone_can_open():
    table = sl.papers()
    assert table.source.str.fullmatch(r"https://[^\s]+").all()
    assert set(table.seen) == {"yes", "quoted", "no"}
    assert table.note[table.seen != "yes"].str.len().gt(10).all()


@pytest.mark.parametrize("file", sorted(PAPERS.glob("*.csv")), ids=lambda file: file.stem)
def test_each_file_is_read_on_its_own(file):
    text = file.read_text()
    assert len(sl.papers(file.stem)) == len(text.splitlines()) - 1 and "guide" not in text.lower()


def test_the_traps_of_the_papers_are_in_the_table():
    """SparseLLM prunes half the layers; Wanda's LLaMA-2 has windows of 4,096 tokens, on which the
    dense model is better."""
    assert set(sl.papers("sparsellm").layers_pruned) == {"first half", "none"}
    dense = sl.papers().query(
        "model == 'meta-llama/Llama-2-7b-hf' and method == 'dense' and dataset == 'wikitext2'"
    )
    assert set(dense[dense.seqlen == 2048].value) == {5.47} and 5.12 in set(
        dense[dense.seqlen == 4096].value
    )


def test_dense_values_agree_with_the_ones_that_evaluate_knows():
    for one in sl.papers().query("method == 'dense' and metric == 'perplexity'").itertuples():
        known = sl.known_dense(one.model, one.dataset, one.seqlen)
        # DSnoT prints 10.12 for OPT-13b, SparseGPT 10.13.
        assert known is None or one.value == pytest.approx(known, abs=0.0101)


def test_gaps_are_signed_and_seeds_are_averaged():
    ours = pd.DataFrame(
        [
            row(perplexity=16.0),
            row(perplexity=17.0),
            row(method="sparsellm:published", perplexity=15.0),
        ]
    )
    table = gaps(ours).set_index("method")
    assert table.loc["sparsegpt", "gap"] == pytest.approx(16.5 - 16.49)
    assert table.loc["sparsellm:published", "gap_percent"] == pytest.approx(100 * (15 / 15.61 - 1))
    assert (
        table.loc["dense", "value"] == 9.56 and not table.difference.any()
    )  # once, though two papers print it


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"layers_pruned": "all"}, "layers pruned: all here, first half there"),
        ({"seqlen": 4096}, "tokens in a window: 4096 here, 2048 there"),
        ({"windows": 64}, "the first 64 of 140 windows here"),
        ({"windows": 64, "places": "everywhere"}, "64 of 140 windows here, from all over"),
        ({"text_windows": float("nan")}, "without a record of how many"),
        ({"model": "opt-mini"}, "model: opt-mini here, facebook/opt-30b there"),
    ],
)
def test_other_protocols_are_refused_unless_said(changes, words):
    ours, theirs = (
        pd.DataFrame([row(**changes)]),
        sl.papers("sparsellm").query("model == 'facebook/opt-30b'"),
    )
    with pytest.raises(SparselabError, match=f"cannot be compared: .*{words}"):
        sl.overlay(ours, theirs)
    figure, alt = sl.overlay(ours, theirs, mixed=True)
    title = figure.get_suptitle().replace("\n", " ")
    assert words in alt and words in title


def test_a_plain_sweep_is_taken_for_what_it_is():
    """Its rows do not say which layers: all."""
    ours = pd.DataFrame([row()]).drop(columns=["layers_pruned", "text_windows"])
    with pytest.raises(SparselabError, match="layers pruned: all here, first half there"):
        sl.overlay(ours)


def test_the_overlay_draws_ours_filled_and_theirs_hollow():
    figure, alt = sl.overlay(pd.DataFrame([row(), row(method="wanda", pattern="0.9")]))
    filled = [line.get_markerfacecolor() for line in figure.axes[0].lines]
    assert "white" in filled and viz.STYLES["sparsegpt"][0] in filled
    assert "SparseGPT at 80 % 17.00 against 16.49 (+3.1 %)" in alt and "protocols differ" not in alt
    assert "+3.1 %" in {text.get_text() for text in figure.axes[0].texts}


def test_what_cannot_be_compared_gets_a_sentence():
    with pytest.raises(
        SparselabError, match="no published perplexity on wikitext2 matches.*opt-mini"
    ):
        sl.overlay(pd.DataFrame([row(model="opt-mini")]))
    with pytest.raises(SparselabError, match="hold no perplexity on 'ptb'"):
        sl.overlay(pd.DataFrame([row()]), dataset="ptb")
    with pytest.raises(SparselabError, match="Did you mean 'sparsellm'"):
        sl.papers("sparselm")


def test_every_method_has_a_label_and_a_style():
    assert (
        viz.label_of("sparsellm:published") == "SparseLLM (published)"
        and viz.label_of("wanda") == "Wanda"
    )
    assert len({(viz.label_of(name), viz.style_of(name)) for name in METHODS}) == len(METHODS)
