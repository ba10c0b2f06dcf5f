"""How long a move of each slider in the notebooks takes, in milliseconds: python bench/sliders.py
[notebooks/*.ipynb]

Runs each notebook with `course.explore` replaced by one that builds the live widget, moves every
control through its values and back, and prints the median and the longest. Goal: 100 ms, at which a
picture seems to follow the hand.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

GOAL = 100
TIMED = """
import time
from sparselab import course

def _timed(draw, frames, *, size=(5, 3), columns=None, **controls):
    *knobs, picture, sentence = course.explorer(draw, frames[0], size=size, **controls).children
    for knob in knobs:
        start = knob.value
        if hasattr(knob, "options"):
            values = [option[1] if isinstance(option, tuple) else option for option in knob.options]
            values = values[:12]
        else:
            steps = round((knob.max - knob.min) / knob.step)  # a hand can only stop at a step
            values = sorted({knob.min + knob.step * (steps * share // 10) for share in range(11)})
        moves = []
        for value in [*values, start]:
            begin, knob.value = time.perf_counter(), value
            moves.append(1000 * (time.perf_counter() - begin))
        moves.sort()
        median, longest = moves[len(moves) // 2], moves[-1]
        print(f"MOVE {knob.description:12} median {median:6.1f} ms, longest {longest:6.1f} ms")

course.explore = _timed
"""


def moves(file: Path) -> list[str]:
    """Run a notebook; one line for each control."""
    notebook = nbformat.read(file, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(TIMED))
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": file.parent}}
    ).execute()
    return [
        line
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
        for line in output.text.splitlines()
        if line.startswith("MOVE ")
    ]


def main() -> None:
    files = [Path(name) for name in sys.argv[1:]] or sorted(Path("notebooks").glob("*.ipynb"))
    for file in files:
        if "course.explore(" in file.read_text(encoding="utf8"):
            for line in moves(file):
                print(f"{file.stem[:2]} {line.removeprefix('MOVE ')} (goal {GOAL} ms)", flush=True)


if __name__ == "__main__":
    main()
