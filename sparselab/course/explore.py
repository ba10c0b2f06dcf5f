"""A picture with sliders; where there is no front end, the same picture at a few settings side by side."""
import io
import os
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure, SubFigure

from .. import viz

Draw = Callable[..., str]
DPI = 100                                                                    # pixels of the page; a move stays under 100 ms


def explore(draw: Draw, frames: Sequence[dict], *, size: tuple[float, float] = (5, 3), columns: int | None = None,
            **controls: Any) -> None:
    """Show draw(figure, **values) with one control for each value; without a front end, show the frames instead.

    draw: draws into a figure and returns one sentence with the picture's numbers (its alt text). frames: the values of
    each static picture. size: inches of one picture. controls: (low, high, step) gives a slider, a list a row of buttons
    (words) or a slider over the list (numbers). SPARSELAB_STATIC=1 asks for the frames; the tests set it.
    """
    if os.environ.get("SPARSELAB_STATIC") == "1":
        viz.show(*static(draw, frames, size, columns or len(frames)))
    else:
        from IPython.display import display
        display(explorer(draw, frames[0], size=size, **controls))


def static(draw: Draw, frames: Sequence[dict], size: tuple[float, float], columns: int) -> tuple[Figure, str]:
    """The frames as small multiples, and their sentences."""
    rows = -(-len(frames) // columns)
    with viz.style():
        figure = plt.figure(figsize=(size[0] * columns, size[1] * rows))
        parts = figure.subfigures(rows, columns, squeeze=False).flat
        sentences = [draw(part, **frame) for part, frame in zip(parts, frames, strict=False)]
    return figure, "; ".join(sentences)


def explorer(draw: Draw, start: dict, *, size: tuple[float, float] = (5, 3), **controls: Any) -> ipywidgets.VBox:
    """The live form: controls, picture and sentence, one below the other; `children` in that order."""
    knobs = {name: _knob(name, values, start[name]) for name, values in controls.items()}
    fixed = {name: value for name, value in start.items() if name not in knobs}
    natural = ipywidgets.Layout(width=f"{size[0] * DPI:.0f}px", max_width="100%", align_self="flex-start")
    picture, sentence = ipywidgets.Image(format="png", layout=natural), ipywidgets.HTML()

    def redraw(*_: Any) -> None:
        picture.value, sentence.value = _png(draw, {**fixed, **{name: knob.value for name, knob in knobs.items()}}, size)
    for knob in knobs.values():
        knob.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*knobs.values(), picture, sentence])


def _knob(name: str, values: Any, start: Any) -> ipywidgets.Widget:
    if isinstance(values, tuple):
        kind = ipywidgets.IntSlider if all(isinstance(value, int) for value in values) else ipywidgets.FloatSlider
        low, high, step = values
        return kind(value=start, min=low, max=high, step=step, description=name)
    kind = ipywidgets.ToggleButtons if isinstance(values[0], str) else ipywidgets.SelectionSlider
    return kind(options=values, value=start, description=name)


def _png(draw: Draw, values: dict, size: tuple[float, float]) -> tuple[bytes, str]:
    with viz.style():
        figure: Figure | SubFigure = Figure(figsize=size, dpi=DPI, layout="constrained")
        sentence = draw(figure, **values)
        file = io.BytesIO()
        figure.savefig(file, format="png", pil_kwargs={"compress_level": 1})         # quick rather than small
    return file.getvalue(), sentence
