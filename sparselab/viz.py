"""One figure style, and the figures that several places share. Every figure comes with a sentence
that says its data."""

import textwrap
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path as FilePath

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath, text_to_path
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Affine2D
from torch import Tensor

from .errors import SparselabError

# Okabe-Ito colours with a marker and a line each: told apart by colour-blind readers and in grey.
STYLES = {
    "dense": ("#000000", "", ":"),
    "magnitude": ("#D55E00", "s", "--"),
    "wanda": ("#009E73", "^", "-."),
    "sparsegpt": ("#0072B2", "o", "-"),
    "dsnot": ("#CC79A7", "D", "--"),
    "swaps": ("#56B4E9", "P", ":"),
    "alps": ("#882255", "p", "-."),
    "admm": ("#666666", "X", "-."),
    "admm:guided": ("#332288", "*", "-"),
    "sparsellm": ("#E69F00", "v", "-"),
    "global": ("#000000", "*", "--"),
}
LABELS = {
    "magnitude": "magnitude",
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "dsnot": "DSnoT",
    "swaps": "exact swaps",
    "alps": "ALPS",
    "admm": "ADMM",
    "guided": "guided",
    "elsa": "ELSA",
    "sparsellm": "SparseLLM",
    "dense": "dense",
    "global": "global",
}
# A weight in a table, a mask or a drawing (`schematics.ROLES`): pruned, or kept, in grey.
PRUNED = ("#a6cbe9", "#0072B2")  # face, edge
KEPT = ("#ffffff", "#999999")  # from zero to the largest; black text is readable on both
CELLS = LinearSegmentedColormap.from_list("cells", KEPT).with_extremes(under=PRUNED[0], bad=KEPT[0])
MASK = ListedColormap([PRUNED[0], KEPT[0]], "mask")
FILLS = {"": "full", "wanda": "left", "sparsegpt": "bottom"}  # of variants; others are hollow
RC = {
    "figure.dpi": 110,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "image.cmap": "cividis",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def label_of(method: str) -> str:
    """A sweep's method as figures call it: 'sparsellm:published' is 'SparseLLM (published)'."""
    name, _, variant = method.partition(":")
    return LABELS.get(name, name) + (f" ({LABELS.get(variant, variant)})" if variant else "")


def style_of(method: str) -> tuple[str, str, str]:
    """Colour, marker and line of a sweep's method; a variant has its method's colour and marker,
    and a line of its own."""
    name, _, variant = method.partition(":")
    if method in STYLES:
        return STYLES[method]
    colour, marker, line = STYLES.get(name, ("#666666", "o", "-"))
    return colour, marker, line if not variant else STYLES[variant][2] if variant in STYLES else ":"


def fill_of(method: str) -> str:
    """How the markers of a sweep's method are filled, so that its variants differ without their
    lines."""
    return FILLS.get(method.partition(":")[2], "none")


def style():
    """The context in which every figure is drawn: `with sl.viz.style(): ...`."""
    return plt.rc_context(RC)


def show(figure: Figure, alt: str) -> None:
    """Display a figure in a notebook and print its description.

    Parameters
    ----------
    figure : Figure
    alt : str
        The data in one sentence, with its numbers: readers without the picture read it, and nbval
        compares it (it never compares pixels).
    """
    from IPython.display import display

    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)
    # In lines of a cell's width: JupyterLab breaks longer ones in the middle of a word.
    glued = f"Figure: {alt}".replace(" ± ", "\N{NBSP}±\N{NBSP}").replace(" %", "\N{NBSP}%")
    lines = textwrap.fill(glued, 88, break_long_words=False, break_on_hyphens=False)
    print(lines.replace("\N{NBSP}", " "))


FORMATS = ("png", "svg", "pdf")


def save(figure: Figure, name: str | FilePath, formats: Iterable[str] = FORMATS) -> list[FilePath]:
    """Save a figure for a page, slides and a paper.

    Parameters
    ----------
    figure : Figure
    name : str or Path
        Without an ending. Its folder is made.
    formats : iterable of str
        Of 'png' (300 dots an inch), 'svg' and 'pdf' (letters stay letters).

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    SparselabError
        For another format.
    """
    formats = list(formats)
    for ending in formats:
        if ending not in FORMATS:
            raise SparselabError(f"no format {ending!r} for figures: one of {', '.join(FORMATS)}.")
    name = FilePath(name)
    name.parent.mkdir(parents=True, exist_ok=True)
    files = [name.with_name(f"{name.name}.{ending}") for ending in formats]
    with plt.rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):
        for file in files:
            figure.savefig(file, dpi=300)
    return files


def sparsity_curve(axes: Axes, table: pd.DataFrame) -> None:
    """Perplexity against sparsity, one line a method.

    Parameters
    ----------
    axes : Axes
        Where to draw.
    table : DataFrame
        Columns method, sparsity (a share), perplexity, stderr; one row of the method 'dense'.
    """
    dense = table[table.method == "dense"].iloc[0]
    axes.axhline(dense.perplexity, color="black", linestyle=":", label="dense")
    for name, rows in table[table.method != "dense"].groupby("method", sort=False):
        x, y = [0, *(100 * rows.sparsity)], [dense.perplexity, *rows.perplexity]
        errors = [dense.stderr, *rows.stderr]
        axes.errorbar(x, y, errors, capsize=3, label=label_of(name), **line_style(*style_of(name)))
    axes.set(xlabel="zeros (%)", ylabel="perplexity", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.25, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend()


def line_style(colour: str, marker: str, line: str) -> dict[str, str]:
    """A look as matplotlib's keywords."""
    return {"color": colour, "marker": marker, "linestyle": line}


def masks(masks_by_name: dict[str, Tensor], *, corner: int = 32, title: str = "") -> Figure:
    """Masks of the same matrix side by side; white is kept, light blue pruned.

    Parameters
    ----------
    masks_by_name : dict of bool Tensor of shape (r, c)
        Masks by the name of their method.
    corner : int
        How many rows and columns of the upper left corner to show.
    title : str
    """
    count = len(masks_by_name)
    with style():
        figure, axes = plt.subplots(1, count, figsize=(2.4 * count, 2.8), squeeze=False)
        for axis, (name, mask) in zip(axes[0], masks_by_name.items(), strict=True):
            draw_mask(axis, mask, LABELS.get(name, name), corner)
        figure.suptitle(title)
    return figure


def draw_mask(axis: Axes, mask: Tensor, title: str, corner: int = 32) -> None:
    """One mask's upper left corner, white = kept, light blue = pruned."""
    part = mask[:corner, :corner].cpu()
    axis.imshow(part.float().numpy(), vmin=0, vmax=1, cmap=MASK, interpolation="nearest")
    axis.set_title(f"{title}: {part.float().mean():.0%} kept", fontsize=9)
    axis.set(xticks=[], yticks=[], xlabel="inputs", ylabel="outputs")
    axis.spines[:].set_visible(True)
    axis.grid(False)


def agreement(a: Tensor, b: Tensor) -> float:
    """Share of the weights on which two masks agree."""
    return (a == b).float().mean(dtype=torch.float64).item()


def numbers(
    axis: Axes,
    matrix: Tensor,
    title: str = "",
    *,
    mask: Tensor | None = None,
    empty: Tensor | None = None,
    highlight: Tensor | None = None,
    digits: int = 1,
    rows: list[str] | None = None,
    columns: list[str] | None = None,
    by_row: bool = False,
    top: float | None = None,
) -> None:
    """A small matrix with its numbers in the cells: the larger in absolute value, the darker.

    Parameters
    ----------
    axis : Axes
        Where to draw.
    matrix : Tensor of shape (r, c)
    title : str
    mask : bool Tensor of shape (r, c), optional
        Cells where it is False are light blue and crossed out: they are pruned.
    empty : bool Tensor of shape (r, c), optional
        Cells where it is True have a dash in place of their number.
    highlight : bool Tensor of shape (r, c), optional
        Cells to frame.
    digits : int
        After the decimal point.
    rows, columns : list of str, optional
        Names at the left and below.
    by_row : bool
        A scale of greys for each row.
    top : float, optional
        The absolute value that is darkest. Default: the matrix's largest. Tables with the same top
        can be compared.
    """
    matrix = matrix.detach().cpu().float()
    mask, empty = _all_or(mask, matrix, True), _all_or(empty, matrix, False)
    size = matrix.abs().masked_fill(empty, 0)
    largest = (size.amax(1, keepdim=True) if by_row else size.max()).clamp(min=1e-30)
    shade = (size / (largest if top is None else top)).masked_fill(~mask, -1)  # below zero: pruned
    axis.imshow(shade.numpy(), vmin=0, vmax=1, cmap=CELLS, interpolation="nearest")
    across, down = ([edge - 0.5 for edge in range(count + 1)] for count in matrix.shape[::-1])
    look = {"colors": "white", "linewidth": 1, "zorder": 0.5}
    axis.hlines(down[1:-1], across[0], across[-1], **look)
    axis.vlines(across[1:-1], down[0], down[-1], **look)
    words, places, colours = [], [], []
    for (row, column), value in np.ndenumerate(matrix.numpy()):
        places.append((column, row))
        sign = "×" if not mask[row, column] else "–" if empty[row, column] else ""
        words.append(_outline(sign or f"{value:.{digits}f}"))
        colours.append("#555555" if sign else "black")
        if highlight is not None and bool(highlight[row, column]):
            corner, frame = (column - 0.47, row - 0.47), {"edgecolor": "#D55E00", "lw": 2}
            axis.add_patch(plt.Rectangle(corner, 0.94, 0.94, fill=False, **frame))
    _write(axis, words, places, colours)
    for row, name in enumerate(rows or []):  # texts are quicker to draw than ticks are
        axis.text(-0.6, row, name, ha="right", va="center", fontsize=9)
    for column, name in enumerate(columns or []):
        axis.text(column, len(matrix) - 0.4, name, ha="center", va="top", fontsize=9)
    axis.set(title=title, xticks=[], yticks=[])
    axis.spines[:].set_visible(True)
    axis.grid(False)


def _all_or(cells: Tensor | None, matrix: Tensor, value: bool) -> Tensor:
    """The cells, or the same value for all."""
    return torch.full(matrix.shape, value) if cells is None else cells.cpu().bool()


def _write(
    axis: Axes, words: list[Path], places: list[tuple[float, float]], colours: list[str]
) -> None:
    """All words at once, centred at their places: a text object for each takes a millisecond, too
    slow for a slider."""
    letters = PathCollection(
        words, offsets=places, offset_transform=axis.transData, facecolors=colours, linewidths=0
    )
    in_points = Affine2D().scale(1 / 72)
    letters.set_transform(in_points + axis.figure.dpi_scale_trans)
    letters.set_snap(False)  # a dash is a flat box, which may be rounded away
    axis.add_collection(letters, autolim=False)


def _outline(word: str, size: float = 9) -> Path:
    """A word's outline in points around (0, 0), put together from its letters'."""
    letters = [_letter(letter, size) for letter in word]
    left, vertices, codes = -sum(width for _, width in letters) / 2, [], []
    for outline, width in letters:
        vertices.append(outline.vertices + (left, -0.36 * size))
        codes.append(outline.codes)
        left += width
    return Path(np.concatenate(vertices), np.concatenate(codes))


@lru_cache(maxsize=256)
def _letter(letter: str, size: float) -> tuple[Path, float]:
    """A letter's outline and width in points; a digit is 0.72 of the size high."""
    width, *_ = text_to_path.get_text_width_height_descent(letter, FontProperties(size=size), False)
    return TextPath((0, 0), letter, size=size), width


def row_names(axis: Axes, names: list[str]) -> None:
    """Names at the left of rows 0, 1, 2, ... and a pale line along each: as y ticks do, but
    quicker."""
    axis.set_yticks([])
    across = axis.get_yaxis_transform()
    axis.hlines(range(len(names)), 0, 1, transform=across, colors="#eeeeee", zorder=0)
    for row, name in enumerate(names):
        axis.text(-0.02, row, name, ha="right", va="center", transform=across)


def matrices(
    panels: dict[str, Tensor],
    *,
    masks: list[Tensor | None] | None = None,
    highlight: Tensor | None = None,
    size: tuple[float, float] = (9, 2.7),
    counted: bool = False,
    shared: bool = False,
) -> Figure:
    """Small matrices side by side, with their numbers.

    Parameters
    ----------
    panels : dict of Tensor of shape (r, c)
        Matrices by title.
    masks : list of bool Tensor or None, optional
        One for each panel, None where nothing is pruned.
    highlight : bool Tensor, optional
        Cells to frame in every panel.
    size : (float, float)
        Inches.
    counted : bool
        Number the rows and columns, from 0.
    shared : bool
        One scale of greys for all panels.
    """
    widths = [matrix.shape[1] for matrix in panels.values()]
    top = max(matrix.abs().max().item() for matrix in panels.values()) if shared else None
    masks = masks or [None] * len(panels)
    with style():
        figure, axes = plt.subplots(
            1, len(panels), figsize=size, squeeze=False, width_ratios=widths
        )
        for axis, (title, matrix), mask in zip(axes[0], panels.items(), masks, strict=True):
            whole = bool((matrix == matrix.round()).all())
            names = [[*map(str, range(count))] if counted else None for count in matrix.shape]
            look = {"rows": names[0], "columns": names[1], "digits": 0 if whole else 1, "top": top}
            numbers(axis, matrix, title, mask=mask, highlight=highlight, **look)
    return figure


def beside(mine: Tensor, expected: Tensor, title: str) -> Figure:
    """A small result, a vector or a matrix, beside the expected one; what differs is framed.

    Parameters
    ----------
    mine, expected : Tensor of shape (c,) or (r, c)
    title : str
    """
    pair = [torch.atleast_2d(each.detach().float()) for each in (mine, expected)]
    differs = None
    if pair[0].shape == pair[1].shape:
        differs = ~torch.isclose(*pair, rtol=1e-4, atol=1e-4 * pair[1].abs().max().item())
    height = 1.6 + 0.3 * max(len(each) for each in pair)
    with style():
        figure = Figure(figsize=(9, height))
        figure.suptitle(title)
        axes = figure.subplots(1, 2)
        for axis, name, each in zip(axes, ("yours", "expected"), pair, strict=True):
            whole = bool((each == each.round()).all())
            shape = f"{each.shape[0]} x {each.shape[1]}"
            digits = 0 if whole else 1
            rounded = each.round(decimals=digits) + 0.0  # no minus before a zero
            numbers(axis, rounded, f"{name}, {shape}", highlight=differs, digits=digits)
    return figure


def lines(
    axis: Axes,
    series: dict[str, list[float]],
    *,
    x: list | None = None,
    xlabel: str = "",
    ylabel: str = "",
    log: bool = False,
) -> None:
    """One line a method, in the methods' styles, such as errors by block or losses by epoch.

    Parameters
    ----------
    axis : Axes
        Where to draw.
    series : dict of list of float
        Values by method; names that are no methods take grey styles.
    x : list, optional
        Default: 0, 1, 2, ...
    xlabel, ylabel : str
    log : bool
        A logarithmic scale.
    """
    for place, (name, values) in enumerate(series.items()):
        grey = f"{0.2 + 0.15 * place:.2f}", "o^sDv"[place % 5], "-"
        style_of_line = line_style(*STYLES.get(name, grey))
        places = range(len(values)) if x is None else x
        axis.plot(places, values, markersize=5, label=LABELS.get(name, name), **style_of_line)
    axis.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    axis.legend(fontsize=9)


def histogram(axis: Axes, weights: dict[str, Tensor], *, bins: int = 81, title: str = "") -> None:
    """Distributions of weights on one scale, without the zeros.

    Parameters
    ----------
    axis : Axes
        Where to draw.
    weights : dict of Tensor
        Weights by method. The first, filled, is the one to compare with; the others are outlines.
    bins : int
    title : str
    """
    top = max(weight.abs().max().item() for weight in weights.values())
    for place, (name, weight) in enumerate(weights.items()):
        values = weight[weight != 0].flatten().detach().cpu().float().numpy()
        colour, _, line = STYLES.get(name, ("#666666", "", "-"))
        drawn = {"histtype": "step", "color": colour, "linestyle": line}
        if place == 0:
            drawn = {"histtype": "stepfilled", "color": "#cccccc", "linestyle": "-"}
        label = LABELS.get(name, name)
        axis.hist(values, bins=bins, range=(-top, top), linewidth=1.5, label=label, **drawn)
    axis.set(xlabel="weight", ylabel="count", title=title, yscale="log")
    axis.legend(fontsize=9)
