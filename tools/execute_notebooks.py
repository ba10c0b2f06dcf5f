"""Execute notebooks from top to bottom: python -m tools.execute_notebooks [--costs | --copies
FOLDER] notebooks/*.ipynb

In place, with one thread, whose sums the tests repeat; with --costs for the cost cards alone, with
all cores of a machine that does nothing else; or as copies in a folder: with SPARSELAB_MODEL naming
another model, and no trace in the repository. A large model on a small machine does it with
--seqlen 64: the copies' windows are that short, and all else is the same.
"""

import argparse
import base64
import io
import json
import os
import re
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image
from tqdm import tqdm

from sparselab.runtime.memory import peak_rss
from tools import KERNEL_ENVIRONMENT

WORDS_A_MINUTE, LINES_A_MINUTE = 200, 15  # prose, and code that one wants to understand


def execute(file: Path) -> None:
    """Run every cell in a fresh kernel and store what came out; widget state, which GitHub cannot
    render, is dropped."""
    notebook = nbformat.read(file, as_version=4)
    cost = run(notebook, file.parent, KERNEL_ENVIRONMENT)
    notebook.metadata.pop("widgets", None)
    for count, cell in enumerate(
        (cell for cell in notebook.cells if cell.cell_type == "code"), start=1
    ):
        cell.execution_count = count
        cell.metadata.pop("execution", None)  # time stamps: noise in every diff
    shrink(notebook)
    _note_cost(
        file, notebook, {**cost, **_timings(file).get(file.stem, {})}
    )  # the first time its own
    _write(file, notebook)


def measure(file: Path) -> None:
    """Run a notebook as a reader does, with all cores, and put the seconds and the memory on its
    cost card."""
    notebook = nbformat.read(file, as_version=4)
    environment = {
        name: value for name, value in KERNEL_ENVIRONMENT.items() if name != "OMP_NUM_THREADS"
    }
    cost = run(nbformat.read(file, as_version=4), file.parent, environment)
    _note_cost(file, notebook, cost)
    _write(file, notebook)


def run(
    notebook: nbformat.NotebookNode,
    folder: Path,
    environment: dict[str, str],
    *,
    allow_errors: bool = False,
) -> dict[str, int]:
    """Execute in place, in a fresh kernel; seconds, and MiB of memory at the peak. Errors end it,
    or are stored."""
    started = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        resources={"metadata": {"path": folder}},
        allow_errors=allow_errors,
    )
    with client.setup_kernel(env={**os.environ, **environment}):
        notebook.metadata["kernelspec"] = {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        }
        for place, cell in enumerate(notebook.cells):
            client.execute_cell(cell, place)
        return {
            "seconds": round(time.perf_counter() - started),
            "mib": peak_rss(client.km.provisioner.pid) // 2**20,
        }


def _write(file: Path, notebook: nbformat.NotebookNode) -> None:
    part = file.with_suffix(".part")
    nbformat.write(notebook, part)
    part.replace(file)


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Store figures with a palette of 256 colours, at a third of the bytes: plots need no more."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                picture = Image.open(
                    io.BytesIO(base64.b64decode(output.data["image/png"]))
                ).convert("RGB")
                picture.quantize(256).save(file := io.BytesIO(), "PNG", optimize=True)
                output.data["image/png"] = base64.b64encode(file.getvalue()).decode()


def reading_minutes(notebook: nbformat.NotebookNode) -> int:
    """Time to read a notebook, its folded parts left out."""
    prose = [
        re.sub(r"<details>.*?</details>", "", cell.source, flags=re.DOTALL)
        for cell in notebook.cells
        if cell.cell_type == "markdown"
    ]
    lines = sum(
        len(cell.source.splitlines()) for cell in notebook.cells if cell.cell_type == "code"
    )
    return max(1, round(len(" ".join(prose).split()) / WORDS_A_MINUTE + lines / LINES_A_MINUTE))


def _timings(file: Path) -> dict[str, dict[str, int]]:
    timings = file.with_name("timings.json")
    return json.loads(timings.read_text()) if timings.exists() else {}


def _note_cost(file: Path, notebook: nbformat.NotebookNode, cost: dict[str, int]) -> None:
    """What was measured goes into timings.json and into the cost card of the first cell:
    '12 minutes to read, 60 s to run on two CPU cores, 900 MiB of memory'."""
    cost["minutes"] = reading_minutes(notebook)
    known = {**_timings(file), file.stem: cost}
    file.with_name("timings.json").write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    card = notebook.cells[0]
    for words, key in (
        (r"min\w* to read", "minutes"),
        ("s to run", "seconds"),
        ("MiB of memory", "mib"),
    ):
        card.source = re.sub(rf"\d+( {words})", rf"{cost[key]}\1", card.source)


def main() -> None:
    """Run the notebooks that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument(
        "--costs", action="store_true", help="measure time and memory; the outputs stay as they are"
    )
    parser.add_argument(
        "--copies", type=Path, metavar="FOLDER", help="leave the notebooks as they are"
    )
    parser.add_argument(
        "--seqlen", type=int, help="tokens in a window of the copies; default: as the notebook says"
    )
    args = parser.parse_args()
    if args.seqlen and not args.copies:
        parser.error("--seqlen is for --copies: the notebooks themselves are stored as they are")
    for file in tqdm(args.notebooks, unit="notebook"):
        work = measure if args.costs else execute
        work(copy(file, args.copies, args.seqlen) if args.copies else file)


def copy(file: Path, folder: Path, seqlen: int | None) -> Path:
    """A copy of a notebook, its windows as long as asked."""
    folder.mkdir(parents=True, exist_ok=True)
    text = file.read_text(encoding="utf8")
    if seqlen:
        text, found = re.subn(r"(SEQLEN\b[^\n]* = [^\n]*?)\b256\b", rf"\g<1>{seqlen}", text)
        if found != 1:
            raise SystemExit(f"{file}: expected one line that sets SEQLEN to 256, found {found}.")
    (folder / file.name).write_text(text, encoding="utf8")
    return folder / file.name


if __name__ == "__main__":
    main()
