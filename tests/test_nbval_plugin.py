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

from tools.compare import Approximate, Tolerance, deviations, folded, same

CONFIG = Path(__file__).with_name("nbval_sanitize.cfg")


@dataclass
class Cell:
    """A cell with the output that its notebook stores, and the words of the failure that nbval must
    report."""

    source: str
    stored: str | list = ""  # standard output, or whole outputs
    fails: str = ""  # passes if empty
    tags: list[str] = field(default_factory=list)
    tolerance: float | dict | None = None

    def node(self, count: int):
        outputs = (
            [v4.new_output("stream", text=self.stored)]
            if isinstance(self.stored, str)
            else self.stored
        )
        outputs = [output for output in outputs if output.get("text") != ""]
        metadata = {
            "tags": self.tags,
            **({} if self.tolerance is None else {"tolerance": self.tolerance}),
        }
        return v4.new_code_cell(
            self.source, execution_count=count, outputs=outputs, metadata=metadata
        )


def display(**data: str) -> list:
    return [
        v4.new_output(
            "display_data", data={name.replace("_", "/"): text for name, text in data.items()}
        )
    ]


DIFFERS = "Cell outputs differ"
CELLS = {
    "a decimal rounded elsewhere": Cell("print('perplexity 27.6551')", "perplexity 27.6549\n"),
    "another decimal": Cell("print('perplexity 27.65')", "perplexity 99.5\n", DIFFERS),
    "another integer": Cell("print('zeros 100001')", "zeros 100000\n", DIFFERS),
    "another text": Cell("print('Wanda 27.65')", "SparseGPT 27.65\n", DIFFERS),
    "within its error": Cell("print('excess 0.168 ± 0.007 nats')", "excess 0.162 ± 0.007 nats\n"),
    "beyond its error": Cell(
        "print('excess 0.178 ± 0.007 nats')", "excess 0.162 ± 0.007 nats\n", DIFFERS
    ),
    "a tolerance of its own": Cell(
        "print('4400 flipped')", "4100 flipped\n", tolerance={"integers": 0.1}
    ),
    "a tighter one": Cell("print('1.005')", "1.000\n", DIFFERS, tolerance=0.001),
    "an output too many": Cell("print('Wanda')", "", "Unexpected output fields"),
    "progress on stderr": Cell(
        "import sys; print('50%', file=sys.stderr)",
        [v4.new_output("stream", name="stderr", text="90%\n")],
    ),
    "another html": Cell(
        "from IPython.display import HTML, display\n"
        "display({'text/html': '<b>1</b>', 'text/plain': 'one'}, raw=True)",
        display(text_html="<b>2</b>", text_plain="one"),
    ),
    "another text beside html": Cell(
        "display({'text/html': '<b>1</b>', 'text/plain': 'one'}, raw=True)",
        display(text_html="<b>1</b>", text_plain="two"),
        DIFFERS,
    ),
    "patterns apply": Cell("print('0.12 s, 765 MiB, cpu')", "10.5 s, 1,024 MiB, cuda:0\n"),
    "environment": Cell(
        "import os\nprint(os.environ['HF_HUB_OFFLINE'], os.environ['TOKENIZERS_PARALLELISM'])",
        "1 false\n",
    ),
    "an exception": Cell("1 / 0", "", "ZeroDivisionError"),
    "a tagged exception": Cell(
        "1 / 0",
        [v4.new_output("error", ename="ZeroDivisionError", evalue="division by zero")],
        tags=["raises-exception"],
    ),
    "not compared": Cell("print('this')", "that\n", tags=["nbval-ignore-output"]),
    "skipped": Cell("print(undefined)", tags=["nbval-skip"]),
    "an unknown magic": Cell("%notmagic", "", "`%notmagic` not found"),
    "an unknown magic, not compared": Cell(
        "%notmagic", "", "`%notmagic` not found", tags=["nbval-ignore-output"]
    ),
    "a dead kernel": Cell("import os\nos._exit(1)", "", "kernel died"),  # nothing can run after it
}


@dataclass
class Outcome:
    failure: str
    seconds: float


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, Outcome]:
    """All cells in one notebook and one run, since each run costs the start of a kernel; an
    ordinary test beside it."""
    folder = tmp_path_factory.mktemp("nbval")
    cells = [cell.node(count) for count, cell in enumerate(CELLS.values(), start=1)]
    write(v4.new_notebook(cells=cells), folder / "cells.ipynb")
    (folder / "test_ordinary.py").write_text(
        "import os\n\ndef test_ordinary():\n    assert 'HF_HUB_OFFLINE' not in os.environ\n"
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "SPARSELAB_NBVAL_RTOL")
    }
    environment["PYTHONPATH"] = str(CONFIG.parents[1])  # tools/ is in no environment
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--nbval-current-env",
        "--junitxml=results.xml",
        "--color=no",
        "-p",
        "tools.nbval_plugin",
        "-p",
        "no:cacheprovider",
        f"--nbval-sanitize-with={CONFIG}",
    ]
    run = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (folder / "results.xml").exists(), run.stdout + run.stderr
    cases = ElementTree.parse(folder / "results.xml").iter("testcase")
    names = {f"Cell {number}": name for number, name in enumerate(CELLS)}
    return {
        names.get(case.get("name"), case.get("name")): Outcome(
            "".join(node.text for node in case if node.tag in ("failure", "error")),
            float(case.get("time")),
        )
        for case in cases
    }


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


@pytest.mark.parametrize(
    "left, right",
    [
        ("error 1.234e-05", "error 1.235e-05"),
        ("1e-05", "1.001e-05"),
        ("|  99.98 |", "| 100.02 |"),
        ("-0.0", "0.0"),
        ("[0.5001, -0.25]", "[0.5, -0.25]"),
        ("27.65 ± 0.1200", "27.66 ± 0.1201"),
        ("nan", "nan"),
        ("perplexity 80.88", "perplexity 81.12"),
        ("0.99 1.00", "1.00 0.99"),
        ("-0.0048 ± 0.0022", "-0.0030 ± 0.0022"),
        ("-0.0008 ± 0.0022", "0.0010 ± 0.0022"),
        ("+0.162 ± 0.007", "+0.168 ± 0.006"),
        ("5 ± 2 points", "6 ± 2 points"),
        ("no guess; the result is 141. One", "no guess; the result is 141.3. One"),
        ("78.0 ± 2.8 (64 windows)", "78.1 ± 2.7 (64 windows)"),
    ],
)
def test_close(left, right):
    """Decimals in tables, lists and sentences have tolerance: their own uncertainty, or 2 %."""
    assert Approximate(left) == Approximate(right) and not Approximate(left) != Approximate(right)


@pytest.mark.parametrize(
    "left, right",
    [
        ("0.5", "-0.5"),
        ("0.50", "0.53"),
        ("0.5", "0.5, 0.5"),
        ("0.5", "nan"),
        ("1000", "1001"),
        ("12", "12.0"),
        ("opt-1.30b", "opt-1.301b"),
        ("torch 2.13.0", "torch 2.14.0"),
        ("0.0", "0.2"),
        ("2:4 0.5", "4:8 0.5"),
        ("perplexity 80.88", "perplexity 84.92"),
        ("0.162 ± 0.007", "0.172 ± 0.007"),
        ("0.162 ± 0.007", "0.162 ± 0.013"),
        ("5 ± 2 points", "9 ± 2 points"),
        ("Wanda 1.5, SparseGPT 2.5", "SparseGPT 1.5, Wanda 2.5"),
        ("78.0 ± 2.8 (64 windows)", "78.0 ± 2.8 (32 windows)"),
    ],
)
def test_not_close(left, right):
    """Integers, names, versions and texts have none; 5 % off, or twice the error off, is another
    result."""
    assert Approximate(left) != Approximate(right) and not Approximate(left) == Approximate(right)


@pytest.mark.parametrize(
    "metadata, left, right, equal",
    [
        ({"tolerance": 0.001}, "error 0.5000", "error 0.5010", False),
        ({"tolerance": 0.001}, "0.5000", "0.5003", True),
        ({"tolerance": 0.1}, "ppl 100.0", "ppl 108.0", True),
        ({"tolerance": 0.1}, "ppl 100.0", "ppl 115.0", False),
        ({"tolerance": {"errors": 3}}, "0.042 ± 0.004", "0.052 ± 0.004", True),
        ({"tolerance": {"errors": 3}}, "0.042 ± 0.004", "0.062 ± 0.004", False),
        ({}, "0.042 ± 0.004", "0.052 ± 0.004", False),
        ({"tolerance": {"integers": 0.05}}, "4100 flipped", "4200 flipped", True),
        ({"tolerance": {"integers": 0.05}}, "4100 flipped", "4400 flipped", False),
        ({"tolerance": {"integers": 0.5}}, "2:4 in layers.3.fc1", "3:4 in layers.3.fc1", False),
        ({"tolerance": {"integers": 0.5}}, "layers.3.fc1", "layers.4.fc1", False),
        ({}, "4100 flipped", "4101 flipped", False),
    ],
)
def test_metadata_state_the_tolerance(metadata, left, right, equal):
    """Of a cell or a notebook: tighter for exact arithmetic, wider for counts of masks."""
    assert same(left, right, Tolerance().updated(metadata)) == equal


def test_where_the_lines_of_a_figures_sentence_end_says_nothing():
    """Nothing else is folded, and a duration may be cut in two by a line's end."""
    text = "a 1.5\nb\nFigure: dense 9.99, pruned\n12.5 in 3\ns\n\nc\nd"
    assert folded(text) == "a 1.5\nb\nFigure: dense 9.99, pruned 12.5 in 3 s\n\nc\nd"
    assert folded(text) == folded(text.replace("pruned\n12.5", "pruned 12.5"))
    assert folded("no Figure: 1\n2") == "no Figure: 1\n2"


def test_deviations_are_measured():
    """In shares of a number, and in units of its uncertainty; rounding in the last printed place is
    none."""
    first, second, third = deviations("ppl 100.0 ± 2.0, error 0.12", "ppl 104.1 ± 2.0, error 0.13")
    assert first.sigmas == pytest.approx(2.0, abs=0.01) and first.relative == pytest.approx(
        4 / 104.1, rel=0.01
    )
    assert second.relative == third.relative == 0.0 and not first.allowed and third.allowed
    assert deviations("Wanda 1.0", "SparseGPT 1.0") is None


def sanitized(text: str) -> str:
    for pattern, replacement in get_sanitize_patterns(CONFIG.read_text()):
        text = re.sub(pattern, replacement, text)
    return text


def test_nbval_loads_every_pattern():
    """A pattern with an indent, an empty replacement or a lost line would be ignored without a
    word."""
    patterns = get_sanitize_patterns(CONFIG.read_text())
    assert CONFIG.read_text().count("regex:") == len(dict(patterns)) == len(patterns)
    assert all(replacement.strip() for _, replacement in patterns)


@pytest.mark.parametrize(
    "left, right",
    [
        ("<Axes at 0x7f3a5c0e1d90>", "<Axes at 0x7f11deadbeef>"),
        ("load 0.12 s, all 3 ms", "load 1,312.50 s, all 12ms"),
        ("in 1.5 min", "in 12 min"),
        ("2.0e-05 s", "0.1 s"),
        ("peak memory 765 MiB", "peak memory 1.2 GB"),
        ("device='cpu'", "device='cuda:0'"),
        ("(torch.float32, mps)", "(torch.float32, cpu)"),
        ("saved to /tmp/tmpab12/model", "saved to /home/ada/model/"),
        ("'/root/a/b.json'", "'/work/main/b.json'"),
        ("run 2026-01-02", "run 2025-11-21T10:53:00.123Z"),
        ("name  seconds\n wte  0.123 s", "name   seconds\n wte  10.1 s"),
    ],
)
def test_patterns_hide_the_machine(left, right):
    """What depends on the machine, the clock or the place becomes equal."""
    assert sanitized(left) == sanitized(right)


@pytest.mark.parametrize(
    "text",
    [
        "27.65 ± 0.12 (32 windows of 2048 tokens)",
        "sparsity 0.5 in 72 matrices",
        "50.00% zeros, mean error 0.093",
        "2:4",
        "facebook/opt-1.3b has 1.3B weights",
        "2048 samples",
        "4096 bytes",
        "https://arxiv.org/abs/2301.00774",
        "1/2/3",
        "data/models/opt-mini",
        "||WX|| / ||W'X||",
        "min 0.1 max 0.5",
        "opt-125m 27.65",
        "1e-05",
        "shape (768, 768)",
    ],
)
def test_patterns_keep_what_matters(text):
    """Perplexities, sparsities, errors, sizes and names stay."""
    assert sanitized(text) == text
