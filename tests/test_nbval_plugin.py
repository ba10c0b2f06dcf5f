"""The nbval plugin and the sanitize patterns: what must pass passes, and what must fail fails."""
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from nbformat import v4, write
from nbval.plugin import get_sanitize_patterns

from sparselab.testing.nbval_plugin import Approximate

CONFIG = Path(__file__).with_name("nbval_sanitize.cfg")


@dataclass
class Cell:
    """A cell with the output that its notebook stores, and the words of the failure that nbval must report."""

    source: str
    stored: str | list = ""         # standard output, or whole outputs
    fails: str = ""                 # passes if empty
    tags: list[str] = field(default_factory=list)

    def node(self, count: int):
        outputs = [v4.new_output("stream", text=self.stored)] if isinstance(self.stored, str) else self.stored
        outputs = [output for output in outputs if output.get("text") != ""]
        return v4.new_code_cell(self.source, execution_count=count, outputs=outputs, metadata={"tags": self.tags})


def display(**data: str) -> list:
    return [v4.new_output("display_data", data={name.replace("_", "/"): text for name, text in data.items()})]


DIFFERS = "Cell outputs differ"
CELLS = {
    "a decimal rounded elsewhere": Cell("print('perplexity 27.6551')", "perplexity 27.6549\n"),
    "another decimal": Cell("print('perplexity 27.65')", "perplexity 99.5\n", DIFFERS),
    "another integer": Cell("print('zeros 100001')", "zeros 100000\n", DIFFERS),
    "another text": Cell("print('Wanda 27.65')", "SparseGPT 27.65\n", DIFFERS),
    "an output too many": Cell("print('Wanda')", "", "Unexpected output fields"),
    "progress on stderr": Cell("import sys; print('50%', file=sys.stderr)",
                               [v4.new_output("stream", name="stderr", text="90%\n")]),
    "another html": Cell("from IPython.display import HTML, display\n"
                         "display({'text/html': '<b>1</b>', 'text/plain': 'one'}, raw=True)",
                         display(text_html="<b>2</b>", text_plain="one")),
    "another text beside html": Cell("display({'text/html': '<b>1</b>', 'text/plain': 'one'}, raw=True)",
                                     display(text_html="<b>1</b>", text_plain="two"), DIFFERS),
    "patterns apply": Cell("print('0.12 s, 765 MiB, cpu')", "10.5 s, 1,024 MiB, cuda:0\n"),
    "environment": Cell("import os\nprint(os.environ['HF_HUB_OFFLINE'], os.environ['TOKENIZERS_PARALLELISM'])",
                        "1 false\n"),
    "an exception": Cell("1 / 0", "", "ZeroDivisionError"),
    "a tagged exception": Cell("1 / 0", [v4.new_output("error", ename="ZeroDivisionError", evalue="division by zero")],
                               tags=["raises-exception"]),
    "not compared": Cell("print('this')", "that\n", tags=["nbval-ignore-output"]),
    "skipped": Cell("print(undefined)", tags=["nbval-skip"]),
    "an unknown magic": Cell("%notmagic", "", "`%notmagic` not found"),
    "an unknown magic, not compared": Cell("%notmagic", "", "`%notmagic` not found", tags=["nbval-ignore-output"]),
    "a dead kernel": Cell("import os\nos._exit(1)", "", "kernel died"),         # nothing can run after it
}


@dataclass
class Outcome:
    failure: str
    seconds: float


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, Outcome]:
    """All cells in one notebook and one run, since each run costs the start of a kernel; an ordinary test beside it."""
    folder = tmp_path_factory.mktemp("nbval")
    cells = [cell.node(count) for count, cell in enumerate(CELLS.values(), start=1)]
    write(v4.new_notebook(cells=cells), folder / "cells.ipynb")
    (folder / "test_ordinary.py").write_text("import os\n\ndef test_ordinary():\n"
                                             "    assert 'HF_HUB_OFFLINE' not in os.environ\n")
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "SPARSELAB_NBVAL_RTOL")}
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "--junitxml=results.xml", "--color=no",
               "-p", "sparselab.testing.nbval_plugin", "-p", "no:cacheprovider", f"--nbval-sanitize-with={CONFIG}"]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert (folder / "results.xml").exists(), run.stdout + run.stderr
    cases = ElementTree.parse(folder / "results.xml").iter("testcase")
    names = {f"Cell {number}": name for number, name in enumerate(CELLS)}
    return {names.get(case.get("name"), case.get("name")): Outcome(
        "".join(node.text for node in case if node.tag in ("failure", "error")), float(case.get("time")))
        for case in cases}


@pytest.mark.parametrize("name", CELLS)
def test_cell(outcomes, name):
    """nbval's verdict on each cell, for the expected reason."""
    if CELLS[name].fails:
        assert CELLS[name].fails in outcomes[name].failure
    else:
        assert outcomes[name].failure == ""


def test_dead_kernel_is_reported_soon(outcomes):
    """nbval alone waits 2000 s."""
    assert outcomes["a dead kernel"].seconds < 30


def test_ordinary_tests_are_left_alone(outcomes):
    """The kernels' environment does not reach tests that are no notebooks."""
    assert outcomes["test_ordinary"].failure == ""


@pytest.mark.parametrize("left, right", [
    ("error 1.234e-05", "error 1.235e-05"), ("1e-05", "1.001e-05"), ("|  99.98 |", "| 100.02 |"), ("-0.0", "0.0"),
    ("[0.5001, -0.25]", "[0.5, -0.25]"), ("27.65 ± 0.1200", "27.66 ± 0.1201"), ("nan", "nan")])
def test_close(left, right):
    """Decimals in tables, lists and sentences have tolerance."""
    assert Approximate(left) == Approximate(right) and not Approximate(left) != Approximate(right)


@pytest.mark.parametrize("left, right", [
    ("0.5", "-0.5"), ("0.5", "0.51"), ("0.5", "0.5, 0.5"), ("0.5", "nan"), ("1000", "1001"), ("12", "12.0"),
    ("opt-1.30b", "opt-1.301b"), ("torch 2.13.0", "torch 2.14.0"), ("0.0", "0.0001"), ("2:4 0.5", "4:8 0.5")])
def test_not_close(left, right):
    """Integers, names, versions and texts have none."""
    assert Approximate(left) != Approximate(right) and not Approximate(left) == Approximate(right)


def sanitized(text: str) -> str:
    for pattern, replacement in get_sanitize_patterns(CONFIG.read_text()):
        text = re.sub(pattern, replacement, text)
    return text


def test_nbval_loads_every_pattern():
    """A pattern with an indent, an empty replacement or a lost line would be ignored without a word."""
    patterns = get_sanitize_patterns(CONFIG.read_text())
    assert CONFIG.read_text().count("regex:") == len(dict(patterns)) == len(patterns)
    assert all(replacement.strip() for _, replacement in patterns)


@pytest.mark.parametrize("left, right", [
    ("<Axes at 0x7f3a5c0e1d90>", "<Axes at 0x7f11deadbeef>"), ("load 0.12 s, all 3 ms", "load 1,312.50 s, all 12ms"),
    ("in 1.5 min", "in 12 min"), ("2.0e-05 s", "0.1 s"), ("peak memory 765 MiB", "peak memory 1.2 GB"),
    ("device='cpu'", "device='cuda:0'"), ("(torch.float32, mps)", "(torch.float32, cpu)"),
    ("saved to /tmp/tmpab12/model", "saved to /home/ada/model/"), ("'/root/a/b.json'", "'/work/main/b.json'"),
    ("run 2026-01-02", "run 2025-11-21T10:53:00.123Z"),
    ("name  seconds\n wte  0.123 s", "name   seconds\n wte  10.1 s")])
def test_patterns_hide_the_machine(left, right):
    """What depends on the machine, the clock or the place becomes equal."""
    assert sanitized(left) == sanitized(right)


@pytest.mark.parametrize("text", [
    "27.65 ± 0.12 (32 windows of 2048 tokens)", "sparsity 0.5 in 72 matrices", "50.00% zeros, mean error 0.093", "2:4",
    "facebook/opt-1.3b has 1.3B weights", "2048 samples", "4096 bytes", "https://arxiv.org/abs/2301.00774", "1/2/3",
    "data/models/opt-mini", "||WX|| / ||W'X||", "min 0.1 max 0.5", "opt-125m 27.65", "1e-05", "shape (768, 768)"])
def test_patterns_keep_what_matters(text):
    """Perplexities, sparsities, errors, sizes and names stay."""
    assert sanitized(text) == text
