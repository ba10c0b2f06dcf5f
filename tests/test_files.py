"""Where sparselab reads what ships and writes what it fetches or makes: in a checkout, from a
wheel, and as told."""

from pathlib import Path

import pytest
from conftest import ROOT
from platformdirs import user_cache_dir

from sparselab import SparselabError, course
from sparselab.__main__ import main
from sparselab.runtime import files


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """As if the package had been installed from a wheel; the working folder is another."""
    monkeypatch.setattr(files, "INSTALLED", True)
    monkeypatch.delenv("SPARSELAB_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_checkout_reads_and_writes_its_own_folders(monkeypatch):
    monkeypatch.delenv("SPARSELAB_CACHE", raising=False)
    assert files.ROOT == ROOT and not files.INSTALLED
    assert files.cache("demo") == ROOT / "data" / "cache" / "demo"
    assert files.figure_tables() == ROOT / "bench" / "figures"
    assert files.of_checkout("notebooks", "this") == ROOT / "notebooks"


def test_a_wheel_writes_to_the_users_cache_and_the_working_folder(wheel):
    assert files.cache("demo") == Path(user_cache_dir("sparselab")) / "demo"
    assert not files.figure_tables().is_absolute()
    files.start_table(files.figure_tables() / "weights-opt-mini.csv")
    assert [file.name for file in Path("sparselab-figures").iterdir()] == ["weights-opt-mini.csv"]


def test_a_table_that_is_there_is_gone_on_with(wheel):
    files.figure_tables().mkdir()
    mine = files.figure_tables() / "weights-opt-mini.csv"
    mine.write_text("mine")
    files.start_table(mine)
    assert mine.read_text() == "mine"


def test_sparselab_cache_overrides_both(wheel, monkeypatch):
    monkeypatch.setenv("SPARSELAB_CACHE", "~/elsewhere")
    assert files.cache("demo") == Path.home() / "elsewhere" / "demo"
    monkeypatch.setattr(files, "INSTALLED", False)
    assert files.cache("demo") == Path.home() / "elsewhere" / "demo"


def test_what_needs_the_checkout_says_so(wheel, capsys):
    with pytest.raises(
        SparselabError, match=r"needs notebooks/timings.json of a checkout.*pip install -e \."
    ):
        course.costs()
    assert main(["students"]) == 1
    assert "students' edition needs notebooks of a checkout" in capsys.readouterr().err
    assert main(["students", "--notebooks", "."]) == 1
    assert "holds no notebook" in capsys.readouterr().err


def test_a_cache_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SparselabError, match="set SPARSELAB_CACHE"):
        files.made(tmp_path / "file" / "demo")
