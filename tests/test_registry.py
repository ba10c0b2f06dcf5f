"""The papers' figures and tables by name: entries, states, the page of all, verdicts."""

from dataclasses import fields, replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from sparselab import SparselabError, viz
from sparselab.__main__ import main
from sparselab.evaluation.published import papers
from sparselab.experiments import catalogue, figures, verdicts
from sparselab.experiments.catalogue import listing, recorded, state, write_page
from sparselab.experiments.figures import FIGURES, figure, named_figure
from sparselab.experiments.profiles import PROFILES, Profile
from sparselab.experiments.registry import Entry, entries, entry
from sparselab.experiments.verdicts import HELD, NOT, PARTLY, UNTESTED, duel, not_worse

TINY = Profile("opt-mini", samples=2, seqlen=32, windows=2, seeds=(0,))
WANTED = {"methods": ("magnitude",), "patterns": ("0.5",)}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def own(monkeypatch):
    """An entry of ours, in tiny profiles, whose paper's model is opt-mini under another name."""
    made = Entry(
        "own-table",
        "a paper",
        "table 1",
        "what it shows",
        "how it was made",
        "sparsity",
        models=("smollm2-135m",),
        profiles={"mini": WANTED, "paper": WANTED},
    )
    monkeypatch.setattr(figures, "entries", lambda: {"own-table": made})
    monkeypatch.setattr(catalogue, "entries", lambda: {"own-table": made})
    monkeypatch.setitem(PROFILES, "mini", TINY)
    monkeypatch.setitem(PROFILES, "paper", replace(TINY, model="facebook/opt-125m"))
    return made


@pytest.mark.parametrize("name", entries())
def test_every_entry_can_be_made_or_says_why_not(name):
    one = entry(name)
    assert one.paper and one.where and one.shows and one.protocol
    assert one.missing or one.figure in FIGURES
    known = {field.name for field in fields(Profile)}
    for profile, changes in one.profiles.items():
        assert profile in PROFILES and set(changes) <= known
        assert named_figure(name, profile)[0] == one.figure
        assert one.name in one.command(profile)
    for paper, where in one.published:
        table = papers()
        found = (table.paper == paper) & (table.table_or_figure == where)
        assert found.any(), f"{name}: no published rows of {paper}, {where}"


def test_the_papers_profile_names_the_papers_model():
    for one in entries().values():
        if "paper" in one.profiles and one.models:
            assert named_figure(one.name, "paper")[1].model == one.models[0]
    name, chosen = named_figure("sparsellm-table-1", "paper", model="facebook/opt-30b")
    assert (name, chosen.model, chosen.layers) == ("sparsity", "facebook/opt-30b", "first half")


def test_a_state_is_looked_up_in_the_tables(tmp_path, own):
    assert state(own, tmp_path) == "command only"
    figure("own-table", folder=tmp_path, progress=False)
    assert state(own, tmp_path) == "small analogue: opt-mini"
    table = pd.read_csv(tmp_path / "sparsity-opt-mini.csv", dtype={"pattern": str})
    relabelled = table.assign(model="smollm2-135m")
    relabelled.to_csv(tmp_path / "sparsity-smollm2-135m.csv", index=False)
    assert state(own, tmp_path) == "reproduced on smollm2-135m"
    relabelled.assign(samples=3).to_csv(tmp_path / "sparsity-smollm2-135m.csv", index=False)
    assert state(own, tmp_path) == "small analogue: opt-mini"  # other windows are not the entry's
    assert state(replace(own, missing="no weights"), tmp_path) == "missing: no weights"
    assert recorded(own, tmp_path) == [("mini", "opt-mini")]


def test_looking_makes_nothing(tmp_path, own):
    with pytest.raises(SparselabError, match="lacks 1 of the runs"):
        figure("own-table", folder=tmp_path, progress=False, recorded_only=True)
    assert not list(tmp_path.iterdir())


def test_the_list_names_every_entry(capsys, tmp_path):
    lines = listing(tmp_path).splitlines()
    for name, one in entries().items():
        assert any(line.startswith(name) and one.where in line for line in lines)
    assert main(["figure", "--list", "--tables", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == "\n".join(lines)


def test_the_page_needs_no_other_file(tmp_path, own):
    figure("own-table", folder=tmp_path, progress=False)
    published = papers().head(3)
    own.__dict__["published_rows"] = lambda: published
    page = write_page(tmp_path / "page", tmp_path).read_text()
    assert page.count("<svg") == 2 and page.count("<figcaption>") == 2
    assert "small analogue: opt-mini" in page and "3 published numbers" in page
    assert "src=" not in page and "@import" not in page and "<script" not in page
    assert [*(tmp_path / "page").iterdir()] == [tmp_path / "page" / "index.html"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["sparsellm-table-9"], "unknown figure 'sparsellm-table-9'.*sparsellm-table-"),
        ([], "name a figure, or see them all with --list"),
        (["sparsellm-figure-2", "--formats", "jpg"], "no format 'jpg'"),
        (["sparsellm-figure-3-left", "--profile", "small"], "has no 'small' profile"),
    ],
)
def test_wrong_names_get_a_sentence(arguments, words, capsys, tmp_path):
    assert main(["figure", *arguments, "--out", str(tmp_path)]) == 1
    import re

    assert re.search(words, capsys.readouterr().err)


def test_a_figure_is_saved_for_page_slides_and_paper(tmp_path):
    _, drawing, _ = figure("sparsellm-figure-2", folder=tmp_path)
    files = viz.save(drawing, tmp_path / "new" / "pipeline")
    assert [file.name for file in files] == ["pipeline.png", "pipeline.svg", "pipeline.pdf"]
    assert "ReLU" in files[1].read_text()  # letters, not outlines
    assert files[2].read_bytes().startswith(b"%PDF")


# Verdicts


def rows(**excess):
    """Losses of two methods in three cells, each with an error of 0.01."""
    return pd.DataFrame(
        {
            "model": "m",
            "samples": 16,
            "text": "t",
            "method": method.replace("_", ":"),
            "pattern": pattern,
            "excess": value,
            "excess_stderr": 0.01,
        }
        for method, values in excess.items()
        for pattern, value in zip(("0.5", "0.7", "2:4"), values, strict=True)
    )


@pytest.mark.parametrize(
    "losses, verdict",
    [
        ([0.1, 0.2, 0.3], HELD),  # lower by 0.1 everywhere
        ([0.2, 0.2, 0.4], HELD),  # one decided, two equal
        ([0.2, 0.29, 0.39], NOT),  # lower, within doubt
        ([0.1, 0.2, 0.5], PARTLY),
        ([0.3, 0.2, 0.5], NOT),
        ([0.3, 0.4, 0.5], NOT),
    ],
)
def test_a_duel_is_decided_beyond_two_errors(losses, verdict):
    found, words = duel(rows(ours=losses, theirs=[0.2, 0.3, 0.4]), "ours", ["theirs"])
    assert found == verdict and "of 3 cells" in words
    swapped, _ = not_worse(
        rows(ours=losses, theirs=[0.2, 0.3, 0.4]), "ours", "theirs", ["0.5", "0.7", "2:4"]
    )
    assert (swapped == HELD) == (
        max(a - b for a, b in zip(losses, (0.2, 0.3, 0.4), strict=True)) < 0.02
    )


def test_a_duel_counts_the_cells_that_both_have():
    table = rows(ours=[0.1, 0.1, 0.1], theirs=[0.2, 0.2, 0.2])
    table = table[~((table.method == "theirs") & (table.pattern == "2:4"))]
    assert duel(table, "ours", ["theirs"])[1].startswith("m: ahead in 2 of 2 cells")
    assert duel(table, "ours", ["theirs"], ["0.5"])[1].startswith("m: ahead in 1 of 1 cells")
    assert duel(table, "ours", ["others"])[0] == UNTESTED


@pytest.mark.parametrize("claim", verdicts.CLAIMS, ids=lambda claim: claim.words)
def test_every_claim_is_judged_by_what_is_recorded(claim):
    word, numbers = claim.judge()
    assert word in (HELD, PARTLY, NOT, UNTESTED) and numbers
    for name in claim.entries:
        assert entry(name)


def test_without_rows_there_is_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "ROOT", tmp_path)
    for verdict in verdicts.verdicts_of():
        assert verdict.word == UNTESTED
        assert verdict.claim.words == "Larger models lose less" or "no rows yet" in verdict.numbers


def test_the_pages_hold_the_verdicts_of_the_recorded_rows():
    from conftest import ROOT

    found = verdicts.verdicts_of()
    assert verdicts.table_of(found) in (ROOT / "notebooks" / "README.md").read_text()
