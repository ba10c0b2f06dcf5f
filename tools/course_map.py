"""The lessons with what they take, into a page, and a picture of the scoreboard beside the lessons:
python -m tools.course_map README.md"""

import json
import re
import sys
from pathlib import Path

import nbformat

from sparselab.course.exercises.checking import exercises_of
from sparselab.course.scores import PROTOCOL, picture
from sparselab.experiments.tables import insert

from . import ROOT, lessons

PICTURE = ROOT / "notebooks" / "figures" / "scoreboard.png"
BOARD = re.compile(r"scoreboard of (\S+), .*, ([\d.]+) % zeros: perplexity (.*)")
ROW = re.compile(r"(.+?) ([\d.]+)(?:, |$)")


def course_map() -> str:
    """A Markdown table: a row for each lesson, with minutes to read it and for its exercises, and
    the seconds that it runs on two cores. Links are from the project's folder."""
    known = json.loads((ROOT / "notebooks" / "timings.json").read_text())
    lines = ["| lesson | read | exercises | run |", "|---|---|---|---|"]
    for lesson in lessons():
        head = nbformat.read(lesson, as_version=4).cells[0].source
        title, cost = head.splitlines()[0], known[lesson.stem]
        minutes = _exercise_minutes(lesson.stem[:2], head)
        lines.append(
            f"| [{title.removeprefix('# ')}](notebooks/{lesson.name}) | {cost['minutes']} min"
            f" | {minutes or '–'}{' min' if minutes else ''} | {cost['seconds']} s |"
        )
    return "\n".join(lines)


def _exercise_minutes(number: str, head: str) -> int:
    """What a lesson's head says of its exercises; else the sum of all but the stretch ones. 0 where
    it has none."""
    if stated := re.search(r"exercises take about (\d+) minutes", head):
        return int(stated[1])
    try:
        exercises = exercises_of(number).values()
        return sum(exercise.minutes for exercise in exercises if exercise.kind != "stretch")
    except ValueError:  # no file of exercises
        return 0


def board(zeros: str = "80", model: str = "opt-mini") -> dict[str, float]:
    """The scoreboards that the lessons store, of one share of zeros, as one: perplexity by name, in
    the order in which a reader builds them."""
    rows = {}
    for lesson in lessons():
        for cell in nbformat.read(lesson, as_version=4).cells:
            for output in cell.get("outputs", []):
                about = output.get("metadata", {}).get("image/png", {})
                found = BOARD.fullmatch(about.get("alt", "") if isinstance(about, dict) else "")
                if found and found.group(1, 2) == (model, zeros):
                    rows |= {name: float(value) for name, value in ROW.findall(found[3])}
    return rows


def draw_board(file: Path = PICTURE) -> None:
    """Write the picture of that board."""
    rows = board()
    dense = rows.pop("dense")
    marks = [{"name": name, "perplexity": value, "ours": False} for name, value in rows.items()]
    picture(marks, dense, f"opt-mini, 80 % zeros, {PROTOCOL}").savefig(
        file, dpi=130, bbox_inches="tight"
    )


if __name__ == "__main__":
    insert(Path(sys.argv[1]), course_map(), "notebooks")
    draw_board()
