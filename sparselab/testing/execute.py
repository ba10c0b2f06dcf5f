"""Execute notebooks from top to bottom, in place: python -m sparselab.testing.execute notebooks/*.ipynb"""
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

from . import KERNEL_ENVIRONMENT

WORDS_A_MINUTE, LINES_A_MINUTE = 200, 15                                     # prose, and code that one wants to understand


def execute(file: Path) -> None:
    """Run every cell in a fresh kernel and store what came out; widget state, which GitHub cannot render, is dropped."""
    notebook = nbformat.read(file, as_version=4)
    started = time.perf_counter()
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": file.parent}})
    with client.setup_kernel(env={**os.environ, **KERNEL_ENVIRONMENT}):
        notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
        for place, cell in enumerate(notebook.cells):
            client.execute_cell(cell, place)
        peak = _peak_mib(client.km.provisioner.pid)
    notebook.metadata.pop("widgets", None)
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
        cell.metadata.pop("execution", None)                                 # time stamps: noise in every diff
    _note_cost(file, notebook, {"minutes": reading_minutes(notebook), "seconds": round(time.perf_counter() - started),
                                "mib": peak})
    part = file.with_suffix(".part")
    nbformat.write(notebook, part)
    part.replace(file)


def reading_minutes(notebook: nbformat.NotebookNode) -> int:
    """Time to read a notebook, its folded parts left out."""
    prose = [re.sub(r"<details>.*?</details>", "", cell.source, flags=re.DOTALL)
             for cell in notebook.cells if cell.cell_type == "markdown"]
    lines = sum(len(cell.source.splitlines()) for cell in notebook.cells if cell.cell_type == "code")
    return max(1, round(len(" ".join(prose).split()) / WORDS_A_MINUTE + lines / LINES_A_MINUTE))


def _peak_mib(pid: int) -> int:
    """The largest memory that a process ever held (Linux); 0 where the system does not say."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) // 1024 if found else 0


def _note_cost(file: Path, notebook: nbformat.NotebookNode, cost: dict[str, int]) -> None:
    """What was measured goes into timings.json and into the cost card of the first cell:
    '12 minutes to read, 60 s to run on two CPU cores, 900 MiB of memory'."""
    timings = file.with_name("timings.json")
    known = json.loads(timings.read_text()) if timings.exists() else {}
    timings.write_text(json.dumps({**known, file.stem: cost}, indent=1, sort_keys=True) + "\n")
    card = notebook.cells[0]
    for words, key in ((r"min\w* to read", "minutes"), ("s to run", "seconds"), ("MiB of memory", "mib")):
        card.source = re.sub(rf"\d+( {words})", rf"{cost[key]}\1", card.source)


if __name__ == "__main__":
    for name in tqdm(sys.argv[1:], unit="notebook"):
        execute(Path(name))
