"""Drawings of an idea rather than of data: boxes, circles and arrows in one style.

One unit is a fifth of an inch. Colours mean the same in every drawing: see `ROLES`. In grey they
differ by brightness and by the line of their edges.
"""

from collections.abc import Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Patch, Rectangle

from .viz import KEPT, PRUNED, style

# What a part is in pruning: face, edge, line.
ROLES = {
    "plain": (KEPT[0], "#444444", "-"),
    "pruned": (*PRUNED, "-"),  # a matrix that gets zeros, or a weight that is zero
    "free": ("#fdebc6", "#E69F00", "--"),  # what the method may change
    "frozen": ("#dedede", "#777777", "-"),  # what it leaves as it is
    "wrong": ("#eb9b73", "#D55E00", "-"),  # the error
    "faint": ("#ffffff", "#c4c4c4", "-"),  # there, and not at stake
}
INK = "#444444"


class Schematic:
    """A canvas of so many units; parts are placed by their centres, and arrows join them."""

    def __init__(self, width: float, height: float, title: str = ""):
        with style():
            self.figure, self.axis = plt.subplots(figsize=(width / 5, height / 5))
        self.axis.set(xlim=(0, width), ylim=(0, height), aspect="equal")
        self.axis.set_axis_off()
        if title:
            self.axis.set_title(title, fontsize=10, loc="left")

    def box(
        self,
        x: float,
        y: float,
        words: str,
        role: str = "plain",
        *,
        width: float = 5,
        height: float = 2.4,
        size: float = 9,
    ) -> FancyBboxPatch:
        """A matrix or a step."""
        corner = (x - width / 2, y - height / 2)
        shape = "round,pad=0,rounding_size=0.3"
        patch = FancyBboxPatch(corner, width, height, shape, **_look(role))
        self.axis.add_patch(patch)
        self.text(x, y, words, size=size)
        return patch

    def circle(
        self, x: float, y: float, words: str, role: str = "plain", *, radius: float = 1.2
    ) -> Circle:
        """A variable."""
        patch = Circle((x, y), radius, **_look(role))
        self.axis.add_patch(patch)
        self.text(x, y, words)
        return patch

    def grid(
        self,
        x: float,
        y: float,
        words: Sequence[Sequence[str]],
        roles: str | Sequence[Sequence[str]] = "plain",
        *,
        width: float = 1.6,
        height: float = 1.6,
        size: float = 9,
    ) -> list[list[Rectangle]]:
        """A matrix, cell by cell from the top; one role for all cells, or one for each."""
        left, top = x - width * len(words[0]) / 2, y + height * len(words) / 2
        cells = []
        for i, row in enumerate(words):
            cells.append([])
            for j, word in enumerate(row):
                look = _look(roles if isinstance(roles, str) else roles[i][j])
                corner = (left + width * j, top - height * (i + 1))
                cells[-1].append(Rectangle(corner, width, height, **look))
                self.axis.add_patch(cells[-1][-1])
                self.text(corner[0] + width / 2, corner[1] + height / 2, word, size=size)
        return cells

    def bars(
        self,
        x: float,
        y: float,
        heights: Sequence[float],
        role: str = "plain",
        *,
        step: float = 1.6,
        width: float = 1.0,
    ) -> list[Rectangle]:
        """Sizes as bars on a base line, centred at x, x + step, ...; negative ones hang."""
        bars = [
            Rectangle((x + step * place - width / 2, y), width, height, **_look(role))
            for place, height in enumerate(heights)
        ]
        for bar in bars:
            self.axis.add_patch(bar)
        return bars

    def chain(self, parts) -> None:
        """An arrow from each part to the next."""
        for before, after in pairwise(parts):
            self.arrow(before, after)

    def arrow(
        self,
        start,
        end,
        words: str = "",
        *,
        curve: float = 0.0,
        dashed: bool = False,
        role: str = "plain",
    ):
        """From one part to another; words stand above its middle."""
        self.axis.add_patch(
            FancyArrowPatch(
                _centre(start),
                _centre(end),
                patchA=start if not isinstance(start, tuple) else None,
                patchB=end if not isinstance(end, tuple) else None,
                shrinkA=1,
                shrinkB=1,
                arrowstyle="-|>",
                mutation_scale=9,
                connectionstyle=f"arc3,rad={curve}",
                linestyle="--" if dashed else "-",
                color=ROLES[role][1],
            )
        )
        if words:
            (x0, y0), (x1, y1) = _centre(start), _centre(end)
            self.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.7, words, size=8)

    def bracket(
        self, start: tuple[float, float], end: tuple[float, float], words: str, *, gap: float = 0.4
    ) -> None:
        """Names a stretch, seen from its start to its end on its right hand."""
        (x0, y0), (x1, y1) = start, end
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        right = ((y1 - y0) / length, (x0 - x1) / length)
        near, far = (
            [(x + right[0] * by, y + right[1] * by) for x, y in (start, end)]
            for by in (gap / 2, gap)
        )
        outline = [near[0], far[0], far[1], near[1]]
        self.line(*outline)
        side = {(1, 0): "left", (-1, 0): "right"}.get((round(right[0]), round(right[1])), "center")
        middle = ((far[0][0] + far[1][0]) / 2, (far[0][1] + far[1][1]) / 2)
        away = 0.4 if side != "center" else 0.75 + 0.4 * words.count("\n")
        self.text(middle[0] + right[0] * away, middle[1] + right[1] * away, words, size=8, ha=side)

    def line(self, *points: tuple[float, float], **look) -> None:
        """From point to point."""
        xs, ys = zip(*points, strict=True)
        self.axis.plot(xs, ys, **{"color": INK, "linewidth": 1, "zorder": 0.9, **look})

    def text(self, x: float, y: float, words: str, *, size: float = 9, **look) -> None:
        """Words around a point."""
        if words:
            self.axis.text(x, y, words, fontsize=size, **{"ha": "center", "va": "center", **look})

    def legend(self, x: float, y: float, roles: dict[str, str], step: float = 10) -> None:
        """What the colours mean, from (x, y) to the right."""
        for place, (role, words) in enumerate(roles.items()):
            corner = (x + step * place, y - 0.4)
            self.axis.add_patch(Rectangle(corner, 1.2, 0.8, **_look(role)))
            self.text(x + step * place + 1.7, y, words, size=8, ha="left")


def _look(role: str) -> dict[str, str]:
    """A role as matplotlib's keywords."""
    face, edge, line = ROLES[role]
    return {"facecolor": face, "edgecolor": edge, "linestyle": line}


def _centre(part: Patch | tuple[float, float]) -> tuple[float, float]:
    """Of a part, or the point itself."""
    if isinstance(part, tuple):
        return part
    if isinstance(part, Circle):
        return part.center
    return (part.get_x() + part.get_width() / 2, part.get_y() + part.get_height() / 2)
