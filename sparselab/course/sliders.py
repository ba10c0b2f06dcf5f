"""A picture with sliders; where there is no front end, the same picture at a few settings side by
side."""

import gc
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from .. import viz

Draw = Callable[..., str]
DPI = 100  # pixels of the page; a move stays under 100 ms
# Titles do not look for a place (20 ms), letters do not for pixels.
QUICK = {"axes.titley": 1, "text.hinting": "none"}


def explore(
    draw: Draw,
    frames: Sequence[dict],
    /,
    *,
    size: tuple[float, float] = (5, 3),
    columns: int | None = None,
    **controls: Any,
) -> None:
    """Show draw(figure, **values) with one control for each value; without a front end, show the
    frames instead.

    draw: draws into a figure and returns one sentence with the picture's numbers (its alt text).
    frames: the values of each static picture. size: inches of one picture. controls: (low, high,
    step) gives a slider, a list a row of buttons (words) or a slider over the list (numbers).
    SPARSELAB_STATIC=1 asks for the frames; the tests set it.
    """
    form = explorer(draw, frames[0], size=size, **controls)  # always, so that tests see it fail
    if os.environ.get("SPARSELAB_STATIC") == "1":
        viz.show(*static(draw, frames, size, columns or len(frames)))
    else:
        from IPython.display import display

        display(form)


def static(
    draw: Draw, frames: Sequence[dict], size: tuple[float, float], columns: int
) -> tuple[Figure, str]:
    """The frames as small multiples, and their sentences."""
    rows = -(-len(frames) // columns)
    with viz.style():
        figure = plt.figure(figsize=(size[0] * columns, size[1] * rows))
        parts = figure.subfigures(rows, columns, squeeze=False).flat
        sentences = [draw(part, **frame) for part, frame in zip(parts, frames, strict=False)]
    return figure, "; ".join(sentences)


def explorer(
    draw: Draw, start: dict, /, *, size: tuple[float, float] = (5, 3), **controls: Any
) -> ipywidgets.VBox:
    """The live form: controls, picture, sentence, one below the other; `children` in that order."""
    knobs = {name: _knob(name, values, start[name]) for name, values in controls.items()}
    fixed = {name: value for name, value in start.items() if name not in knobs}
    width = f"{size[0] * DPI:.0f}px"
    layout = ipywidgets.Layout(width=width, max_width="100%", align_self="flex-start")
    picture, sentence = ipywidgets.Image(format="png", layout=layout), ipywidgets.HTML()
    places: list = []

    def redraw(*_: Any) -> None:
        values = {**fixed, **{name: knob.value for name, knob in knobs.items()}}
        with _no_collection():
            picture.value, sentence.value = _png(draw, values, size, places)

    for knob in knobs.values():
        knob.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*knobs.values(), picture, sentence])


def _knob(name: str, values: Any, start: Any) -> ipywidgets.Widget:
    if isinstance(values, tuple):
        low, high, step = values
        whole = all(isinstance(value, int) for value in values)
        kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        return kind(value=start, min=low, max=high, step=step, description=name)
    kind = ipywidgets.ToggleButtons if isinstance(values[0], str) else ipywidgets.SelectionSlider
    return kind(options=values, value=start, description=name)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage is collected after the move: to look through all of torch's objects takes up to half
    a second."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _png(draw: Draw, values: dict, size: tuple[float, float], places: list) -> tuple[bytes, str]:
    """A picture and its sentence. `places`: where the axes of the picture before stood; to lay them
    out anew would take as long as to draw them."""
    with viz.style(), plt.rc_context(QUICK):
        figure: Figure | SubFigure = Figure(figsize=size, dpi=DPI)
        sentence = draw(figure, **values)
        if len(places) == len(figure.axes):
            for axis, place in zip(figure.axes, places, strict=True):
                axis.set_position(place)
        else:
            figure.set_layout_engine("constrained")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # once, where savefig draws twice
        places[:] = [axis.get_position(original=True) for axis in figure.axes]
        file, pixels = io.BytesIO(), np.asarray(canvas.buffer_rgba())
        plt.imsave(file, pixels, format="png", pil_kwargs={"compress_level": 1})
    return file.getvalue(), sentence
