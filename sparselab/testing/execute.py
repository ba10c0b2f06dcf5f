"""Execute notebooks from top to bottom, in place: python -m sparselab.testing.execute notebooks/*.ipynb"""
import json
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm


def execute(file: Path) -> None:
    """Run every cell in a fresh kernel and store what came out; widget state, which GitHub cannot render, is dropped."""
    notebook = nbformat.read(file, as_version=4)
    started = time.perf_counter()
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": file.parent}}).execute()
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)                                 # time stamps: noise in every diff
    _note_seconds(file, notebook, round(time.perf_counter() - started))
    part = file.with_suffix(".part")
    nbformat.write(notebook, part)
    part.replace(file)


def _note_seconds(file: Path, notebook, seconds: int) -> None:
    """The measured run time goes into timings.json and into the cost card, '... 60 s to run', of the first cell."""
    timings = file.with_name("timings.json")
    known = json.loads(timings.read_text()) if timings.exists() else {}
    timings.write_text(json.dumps({**known, file.stem: seconds}, indent=1, sort_keys=True) + "\n")
    card = notebook.cells[0]
    card.source = re.sub(r"\d+ s to run", f"{seconds} s to run", card.source)


if __name__ == "__main__":
    for name in tqdm(sys.argv[1:], unit="notebook"):
        execute(Path(name))
