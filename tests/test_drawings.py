"""The lessons' drawings: nothing overlaps or is cut off, each stands in one lesson, and what they
say of a lesson's small example is so."""

import inspect
import itertools
import json
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from sparselab import viz
from sparselab.course import drawings
from sparselab.schematics import ROLES, Schematic

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
NAMES = [
    name
    for name, function in inspect.getmembers(drawings, inspect.isfunction)
    if function.__module__ == drawings.__name__ and not name.startswith("_")
]
SMALLEST_FONT = 8


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def faults(figure: Figure) -> list[str]:
    """What a reader would stumble over, as Agg draws it at its printed size."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    written = [text for text in figure.findobj(Text) if text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in written]
    small = [text for text in written if text.get_fontsize() < SMALLEST_FONT]
    found = [f"{text.get_text()!r} is small" for text in small]
    found += [
        f"{a[0]!r} on {b[0]!r}" for a, b in itertools.combinations(boxes, 2) if on(a[1], b[1])
    ]
    parts = figure.findobj(lambda artist: isinstance(artist, Rectangle | FancyBboxPatch | Circle))
    canvases = {figure.patch, *(axis.patch for axis in figure.axes)}
    for part in {*parts} - canvases:
        extent = part.get_window_extent(renderer)
        if not inside(extent, figure.axes[0].get_window_extent(renderer)):
            found.append(f"a part at {extent.bounds} is cut off")
        found += [
            f"{words!r} crosses an edge"
            for words, box in boxes
            if on(box, extent) and not inside(box, extent)
        ]
    return found + [f"{words!r} is cut off" for words, box in boxes if not inside(box, figure.bbox)]


def on(a: Bbox, b: Bbox) -> bool:
    """Whether two boxes share more than a line."""
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5


def inside(a: Bbox, b: Bbox) -> bool:
    return b.x0 - 1 <= a.x0 and b.y0 - 1 <= a.y0 and a.x1 <= b.x1 + 1 and a.y1 <= b.y1 + 1


@pytest.mark.parametrize("name", NAMES)
def test_drawing(name):
    figure, alt = getattr(drawings, name)()
    assert isinstance(figure, Figure)
    assert faults(figure) == []
    assert 7 <= figure.get_figwidth() <= 9
    assert alt.endswith(".") and len(re.split(r"(?<=\.) ", alt)) <= 3
    assert "$" not in alt and "\\" not in alt


@pytest.mark.parametrize(
    "spoil, fault",
    [
        (lambda art: art.text(5, 5.3, "second"), "'first' on 'second'"),
        (lambda art: art.text(0, 2, "out at the left"), "'out at the left' is cut off"),
        (lambda art: art.text(12, 2, "tiny", size=5), "'tiny' is small"),
        (lambda art: art.box(15, 2, "more than fits into it", width=2), "crosses an edge"),
        (lambda art: art.box(19, 7, "", width=4), "is cut off"),
    ],
)
def test_each_fault_is_found(spoil, fault):
    art = Schematic(20, 10)
    art.text(5, 5, "first")
    assert faults(art.figure) == []
    art.figure.set_layout_engine("none")
    spoil(art)
    assert any(fault in found for found in faults(art.figure))


def cells_with(call: str) -> list[tuple[str, nbformat.NotebookNode]]:
    return [
        (path.stem, cell)
        for path in NOTEBOOKS
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code" and call in cell.source
    ]


@pytest.mark.parametrize("name", NAMES)
def test_drawing_stands_in_one_lesson(name):
    ((lesson, cell),) = cells_with(f"drawings.{name}(")
    function = getattr(drawings, name)
    assert cell.source == f"viz.show(*drawings.{name}())"
    assert cell.metadata.tags == ["schematic", "hide-input"]
    assert lesson.startswith(function.__doc__[:2])
    pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    assert [output.metadata["image/png"]["alt"] for output in pictures] == [function()[1]]


def example(path_begins: str, names: set[str]) -> dict:
    """Values that a lesson's cells assign, by running these cells alone."""
    values = {"torch": torch}
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(path_begins))
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and re.match(rf"({'|'.join(names)})\b.* = torch\.", source):
            exec(source, values)
    return values


def test_tables_and_masks_show_a_pruned_weight_as_drawings_do():
    assert ROLES["pruned"][:2] == viz.PRUNED and ROLES["plain"][0] == viz.KEPT[0]


def test_row_of_ten_weights_is_the_lessons():
    lesson = example("05", {"toy_X"})
    weights, inputs = lesson["toy_w"], lesson["toy_X"]
    assert torch.allclose(weights, torch.tensor(drawings.ROW))
    assert lesson["toy_mean"].tolist() == list(drawings.SUMS)
    assert {*lesson["toy_start"].nonzero()[:, 0].tolist()} == drawings.GONE
    after = drawings.GONE - {drawings.GROW, 7} | {drawings.PRUNE, 4}  # the lesson's two swaps
    for pruned, missing in zip((drawings.GONE, after), drawings.MISSING.values(), strict=True):
        gone = torch.tensor([j in pruned for j in range(10)])
        assert torch.allclose((weights * gone) @ inputs, torch.tensor(missing), atol=1e-5)
    cross = 2 * weights[4] * weights[8] * (inputs[4] @ inputs[8])
    by_mean = 2 * weights[4] * weights[8] * inputs[4].sum() * inputs[8].sum() / 6
    assert cross > 3 * by_mean  # what the drawing says of inputs 4 and 8


def test_smaller_groups_lose_higher_scores():
    lost = [
        sum(drawings.SCORES[place] for place in drawings._lowest_of_groups(size))
        for size in (16, 8, 4)
    ]
    assert lost[0] < lost[1] < lost[2]


@pytest.mark.parametrize(
    "start, end, side",
    [
        ((2, 5), (8, 5), (0, -1)),
        ((8, 5), (2, 5), (0, 1)),
        ((5, 2), (5, 8), (1, 0)),
        ((5, 8), (5, 2), (-1, 0)),
    ],
)
def test_bracket_opens_to_the_right_hand(start, end, side):
    art = Schematic(10, 10)
    art.bracket(start, end, "name")
    x, y = art.axis.texts[0].get_position()
    assert (
        math.copysign(1, x - 5) if side[0] else 0,
        math.copysign(1, y - 5) if side[1] else 0,
    ) == (side)
