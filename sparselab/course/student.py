"""The edition of the lessons that a student works in: the same cells, without the folded solutions,
answers and stored outputs. Copies in a student's folder are never written over once they differ."""

import hashlib
import os
import re
from pathlib import Path

import nbformat

SOLUTION = re.compile(  # with the indent before it, or the next line would be part of this one
    r"[ \t]*<details>\s*<summary>\s*(?:Solution|Answers?)\b.*?</details>\s*",
    re.DOTALL | re.IGNORECASE,
)
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)[^)\s]+(?=\))")
EDITION = "sparselab_edition"  # of a copy's metadata: the sum of its cells as it was written
NEW, SAME, RENEWED, KEPT = "new", "same", "renewed", "kept"


def student_edition(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy without what a student should find alone. Code is the same to the letter: what is
    tested in one edition holds in the other."""
    copy = nbformat.from_dict(notebook)
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = SOLUTION.sub("", cell.source)
        else:
            cell.outputs, cell.execution_count = [], None
    return copy


def write_student_edition(source: Path, folder: Path) -> str:
    """Write the edition of one notebook into a folder.

    A copy that is there already stays if a cell of it was changed. What happened: 'new', 'same' (it
    is of this edition, with or without changes), 'renewed' (an older one without changes) or 'kept'
    (an older one with changes).
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / source.name
    copy = student_edition(nbformat.read(source, as_version=4))
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(lambda link: _from(folder, source.parent, link[0]), cell.source)
    edition = copy.metadata[EDITION] = _sum(copy)
    what = NEW
    if file.exists():
        written, now = _sums(file)
        if written == edition:
            return SAME
        if written != now:
            return KEPT
        what = RENEWED
    nbformat.write(copy, file)
    return what


def write_student_editions(sources: list[Path], folder: Path) -> str:
    """Write the editions of several notebooks into a folder; sentences about what happened."""
    done = {source.name: write_student_edition(source, folder) for source in sources}
    count = {what: [*done.values()].count(what) for what in (NEW, SAME, RENEWED)}
    words = {NEW: "written", SAME: "as they were", RENEWED: "brought up to date"}
    said = ", ".join(f"{number} {words[what]}" for what, number in count.items() if number)
    kept = [name for name, what in done.items() if what == KEPT]
    if kept:
        said += ", " * bool(said) + f"{len(kept)} kept"
    said = f"Your copies of the lessons are in {folder}: {said}."
    if kept:
        said += (
            f" {', '.join(kept)}: the course has changed since, but this copy has your work in it."
            " Rename it, and the next call writes the new one."
        )
    return f"{said} Results and solutions are in {sources[0].parent}."


def _sum(notebook: nbformat.NotebookNode) -> str:
    """Of what stands in the cells, outputs left out: running them changes nothing."""
    cells = "\0".join(cell.cell_type + cell.source for cell in notebook.cells)
    return hashlib.sha256(cells.encode()).hexdigest()[:16]


def _sums(file: Path) -> tuple[str, str]:
    """Of a copy, as it was written and as it is now; two different ones where it is no copy."""
    try:
        notebook = nbformat.read(file, as_version=4)
    except Exception:  # half a file, or no notebook: it is the student's all the same
        return "", "unreadable"
    return notebook.metadata.get(EDITION, ""), _sum(notebook)


def _from(folder: Path, notebooks: Path, target: str) -> str:
    """A link of a notebook as one of a copy: other lessons lie beside it, all else does not."""
    if target.endswith(".ipynb") or not (notebooks / target).exists():
        return target
    return Path(os.path.relpath(notebooks / target, folder)).as_posix()
