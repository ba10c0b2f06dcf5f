"""The README's claims: its links lead somewhere, and its Python runs."""

import re

import pytest
from conftest import ROOT

from sparselab.experiments.tables import BEGIN, END, insert, written
from tools.course_map import course_map

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


def test_the_table_is_the_demos():
    table = README.split(BEGIN.format("readme"))[1].split(END)[0]
    for words in (
        "dense",
        "magnitude",
        "Wanda",
        "DSnoT",
        "SparseGPT",
        "SparseLLM",
        "opt-mini",
        "smollm2-135m",
        "50.0%",
        "70.0%",
    ):
        assert words in table
    last = [cell.strip() for cell in table.strip().splitlines() if cell.startswith("|")][-1]
    assert last.startswith("| opt-mini ") and "| ADMM (guided) | 70.0% |" in last
    assert '`method="admm:guided"`' in README  # the call that it recommends


def test_insert_replaces_what_stood_between_the_markers(tmp_path):
    file, begin = tmp_path / "README.md", BEGIN.format("tables")
    other = f"{BEGIN.format('readme')}\nkept\n{END}\n"
    file.write_text(f"{other}before\n{begin}\nold\n{END}\nafter\n")
    insert(file, "new", "tables")
    assert file.read_text() == f"{other}before\n{begin}\nnew\n{END}\nafter\n"


def test_the_tables_are_the_recorded_sweeps():
    results = (ROOT / "docs" / "results.md").read_text()
    table = results.split(BEGIN.format("tables"))[1].split(END)[0]
    assert table.strip() == written(ROOT / "bench", texts=1).strip()
    assert (ROOT / "bench" / "tables.md").read_text().strip() == written(ROOT / "bench").strip()


def test_the_map_of_the_course_is_the_lessons():
    table = README.split(BEGIN.format("notebooks"))[1].split(END)[0]
    assert table.strip() == course_map()


def test_it_stays_short():
    assert len(README.splitlines()) <= 120


def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = README.split("```python\n")[1].split("```")[0].replace("samples=64", "samples=2")
    code = code.replace('sl.tokens(tokenizer, "demo")', 'sl.tokens(tokenizer, "demo")[:1024]')
    scope = {}
    exec(code, scope)
    assert scope["report"].sparsity == pytest.approx(0.7, abs=1e-5)
    assert (tmp_path / "opt-mini-70" / "model.safetensors").exists()
