"""The lessons with what they take, into a page: python -m tools.course_map README.md"""

import json
import sys
from pathlib import Path

import nbformat

from sparselab.course.exercises.checking import exercises_of
from sparselab.experiments.tables import insert

from . import ROOT, lessons


def course_map() -> str:
    """A Markdown table: a row for each lesson, with minutes to read it and for its exercises, and
    the seconds that it runs on two cores. Links are from the project's folder."""
    known = json.loads((ROOT / "notebooks" / "timings.json").read_text())
    lines = ["| lesson | read | exercises | run |", "|---|---|---|---|"]
    for lesson in lessons():
        title = nbformat.read(lesson, as_version=4).cells[0].source.splitlines()[0]
        cost, minutes = known[lesson.stem], _exercise_minutes(lesson.stem[:2])
        lines.append(
            f"| [{title.removeprefix('# ')}](notebooks/{lesson.name}) | {cost['minutes']} min"
            f" | {minutes or '–'}{' min' if minutes else ''} | {cost['seconds']} s |"
        )
    return "\n".join(lines)


def _exercise_minutes(number: str) -> int:
    """Of the exercises but the stretch ones, which are optional; 0 where a lesson has none."""
    try:
        exercises = exercises_of(number).values()
        return sum(exercise.minutes for exercise in exercises if exercise.kind != "stretch")
    except ValueError:  # no file of exercises
        return 0


if __name__ == "__main__":
    insert(Path(sys.argv[1]), course_map(), "notebooks")
