"""A test of the notebook tests: a lesson with a deliberate fault, in the package or in its text,
fails; a sound one passes.

The lesson is the part of notebook 00 that measures opt-mini, with fewer windows and a method more.
It is executed once as it is; then each fault is put into a copy, whose stored outputs stay.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from sparselab.data.corpora import local_file
from tools import KERNEL_ENVIRONMENT
from tools.execute_notebooks import run

FEWER = {
    "samples=64": "samples=8",
    "64 * 256": "8 * 256",
    '("magnitude", "sparsegpt")': '("magnitude", "wanda", "sparsegpt")',
}
PART = (
    "import time",
    "PROMPTS = ",
    "small, tokenizer = ",
    "for method in (",
    'print("opt-mini, demo',
)
# Code for the first cell, or a text and what takes its place.
FAULTS = {
    "sound": "",
    "Wanda without the square root": (
        "from sparselab.numerics.statistics import Statistics\n"
        "Statistics.norms = property(lambda self: self.square)"
    ),
    "magnitude's masks for Wanda's": (
        "import sparselab\nsparselab.Wanda.solve = lambda self, weight, stats, pattern: "
        "sparselab.Magnitude().solve(weight, stats, pattern)"
    ),
    "perplexities 5 % off": (
        "from sparselab.evaluation import perplexity as evaluate\nlosses = evaluate.window_losses\n"
        "evaluate.window_losses = lambda model, ids: losses(model, ids) + 0.0488"
    ),
    "labels exchanged": (
        "in perplexity.items()",
        "in zip(perplexity, [*perplexity.values()][::-1])",
    ),
    "a dead kernel": ("perplexity = {", "import os\nos._exit(1)\nperplexity = {"),
}


@pytest.fixture(scope="module")
def failures(tmp_path_factory) -> dict[str, list[str]]:
    """What failed in the lesson with each fault."""
    if local_file("demo", "evaluation") is None:
        pytest.skip("the demo texts are not on this machine: python -m sparselab fetch")
    folder = tmp_path_factory.mktemp("faults")
    lesson = executed_lesson(folder)
    for number, fault in enumerate(FAULTS.values()):
        nbformat.write(faulty(lesson, fault), folder / f"fault{number}.ipynb")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--nbval-current-env",
        "--junitxml=results.xml",
        "--color=no",
        "-q",
        "-p",
        "tools.nbval_plugin",
        "-p",
        "no:cacheprovider",
        f"--nbval-sanitize-with={ROOT / 'tests' / 'nbval_sanitize.cfg'}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert (folder / "results.xml").exists(), done.stdout + done.stderr
    cases = [*ElementTree.parse(folder / "results.xml").iter("testcase")]
    return {
        name: [
            case.get("name")
            for case in cases
            if f"fault{number}" in case.get("classname") + case.get("name")
            and any(node.tag in ("failure", "error") for node in case)
        ]
        for number, name in enumerate(FAULTS)
    }


def executed_lesson(folder: Path) -> nbformat.NotebookNode:
    """The part of notebook 00, small, and with the outputs that it has here."""
    lesson = nbformat.read(next((ROOT / "notebooks").glob("00_*.ipynb")), as_version=4)
    starts = [cell for cell in lesson.cells if cell.source.startswith(PART)]
    assert len(starts) == len(PART)
    for cell in starts:
        if cell.source.startswith("PROMPTS"):
            cell.source = cell.source.splitlines()[0]
    lesson.cells = starts
    for cell in lesson.cells:
        for old, new in FEWER.items():
            cell.source = cell.source.replace(old, new)
    run(lesson, folder, KERNEL_ENVIRONMENT)
    return lesson


def faulty(lesson: nbformat.NotebookNode, fault: str | tuple[str, str]) -> nbformat.NotebookNode:
    copy = nbformat.from_dict(lesson)
    code = [cell for cell in copy.cells if cell.cell_type == "code"]
    if isinstance(fault, str):
        code[0].source = f"{fault}\n{code[0].source}"
    else:
        assert any(fault[0] in cell.source for cell in code)
        for cell in code:
            cell.source = cell.source.replace(*fault)
    return copy


def test_a_lesson_with_a_fault_fails_and_a_sound_one_passes(failures):
    """One test for all, since processes that divided them would each execute the lesson."""
    assert {name: bool(found) for name, found in failures.items()} == {
        name: name != "sound" for name in FAULTS
    }
