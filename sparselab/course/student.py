"""The students' edition of a notebook: the same cells, without the folded solutions, answers and
stored outputs."""

import re
from pathlib import Path

import nbformat

SOLUTION = re.compile(  # with the indent before it, or the next line would be part of this one
    r"[ \t]*<details>\s*<summary>\s*(?:Solution|Answers?)\b.*?</details>\s*",
    re.DOTALL | re.IGNORECASE,
)


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


def write_student_edition(source: Path, folder: Path) -> Path:
    """Write the edition of one notebook into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / source.name
    nbformat.write(student_edition(nbformat.read(source, as_version=4)), file)
    return file
