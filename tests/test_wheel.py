"""The package as pip installs it: wheel and sdist are built, and the wheel works in an empty
environment elsewhere."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from sparselab.data.corpora import local_file

SOURCES = (
    "sparselab",
    "data/opt-mini",
    "data/papers",
    "data/books.csv",
    "bench/figures",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)
SCRIPT = """
import sys, sparselab as sl, sparselab.course, sparselab.experiments.figures
assert sl.__file__.startswith(sys.prefix), sl.__file__
model, tokenizer = sl.load("opt-mini")
windows = sl.calibration(tokenizer, sys.argv[1], samples=2, seqlen=64)
report = sl.prune(model, windows, method="wanda", sparsity="2:4", progress=False)
assert report.sparsity == 0.5 and len(sl.papers()) > 200
try:
    sl.course.costs()
except sl.SparselabError as error:
    assert "pip install -e ." in str(error)
else:
    raise AssertionError("the notebooks' costs are in no wheel")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """sdist and wheel from a copy of the sources, and the wheel that the sdist gives; without
    network."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, target)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir"]
    subprocess.run(
        [*build, folder / "one", "--sdist", "--wheel", folder / "source"],
        check=True,
        capture_output=True,
    )
    sdist = next((folder / "one").glob("*.tar.gz"))
    with tarfile.open(sdist) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    subprocess.run(
        [*build, folder / "two", "--wheel", next((folder / "unpacked").iterdir())],
        check=True,
        capture_output=True,
    )
    return {
        "wheel": next((folder / "one").glob("*.whl")),
        "from sdist": next((folder / "two").glob("*.whl")),
    }


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """An empty environment's Python with the wheel; the dependencies are those of the present
    environment."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", built["wheel"]],
        check=True,
    )
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    (site / "present.pth").write_text(
        sysconfig.get_paths()["purelib"] + "\n"
    )  # behind its own; none of their .pth is read
    return python


def contents(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}


def stamps(python: Path) -> dict[Path, int]:
    """When each file of the environment's site-packages was last written; what Python itself
    compiles is left out."""
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    return {
        file: file.stat().st_mtime_ns
        for file in site.rglob("*")
        if file.suffix != ".pyc" and file.is_file()
    }


def run(python: Path, folder: Path, *words: str) -> str:
    """A command of the installed package, elsewhere and offline."""
    cache = {"SPARSELAB_CACHE": str(ROOT / "data" / "cache")}
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "SPARSELAB_DATA")
    }
    result = subprocess.run(
        [python, *words],
        cwd=folder,
        env=environment | cache | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_wheel_and_sdist_hold_all_modules_and_data(built):
    names = contents(built["wheel"])
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "sparselab").rglob("*.py")}
    assert modules <= names and "sparselab/_data/data/opt-mini/model.safetensors" in names
    assert names == contents(built["from sdist"])


def test_the_wheel_works_in_an_empty_environment(installed, tmp_path):
    """load, prune, papers, a figure from the rows that ship; and nothing is written among the
    installed files."""
    text = tmp_path / "text.txt"
    text.write_text("The old man opened the door and said that it was late. " * 100)
    before = stamps(installed)
    run(installed, tmp_path, "-c", SCRIPT, str(text))
    weights = run(
        installed, tmp_path, "-m", "sparselab", "figure", "weights", "--methods", "magnitude,wanda"
    )
    assert "table in sparselab-figures" in weights
    recorded, table = ROOT / "bench" / "figures", tmp_path / "sparselab-figures"
    assert [file.name for file in table.iterdir()] == ["weights-opt-mini.csv"]
    assert (table / "weights-opt-mini.csv").read_bytes() == (
        recorded / "weights-opt-mini.csv"
    ).read_bytes()
    assert stamps(installed) == before


def test_prune_and_doctor_run_from_the_wheel(installed, tmp_path):
    if local_file("demo", "evaluation") is None:
        pytest.skip("the demo texts are not on this machine: python -m sparselab fetch")
    before = stamps(installed)
    small = ["--samples", "4", "--seqlen", "64", "--windows", "4", "--method", "wanda"]
    assert "perplexity" in run(installed, tmp_path, "-m", "sparselab", "prune", *small)
    assert "[ok] model opt-mini" in run(installed, tmp_path, "-m", "sparselab", "doctor")
    assert stamps(installed) == before
