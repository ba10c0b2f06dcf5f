"""The papers' figures, one call each: a table that is kept as CSV and goes on where it was broken
off, and its drawing.

A figure's rows carry the whole protocol: what was read (sha256), how it was cut, which layers, what
sparsity was asked and reached for each kind of matrix, how long it took, what it weighs. The
notebooks and `python -m sparselab figure` share this.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ...errors import SparselabError, did_you_mean
from ...runtime.files import figure_tables, start_table
from ...viz import style
from ..profiles import PROFILES, Profile
from .ablations import ABLATIONS
from .convergence import convergence_table, draw_convergence
from .costs import costs_table, draw_costs
from .sparsity import draw_sparsity, sparsity_table
from .weights import draw_weights, weights_table


@dataclass(frozen=True)
class Figure:
    """How a figure's table is made, kept in a CSV file and resumed, and how it is drawn, in the
    style of `viz`, and described."""

    table: Callable[[Profile, Path, bool], pd.DataFrame]
    draw: Callable[[pd.DataFrame], tuple[plt.Figure, str]]


FIGURES = {
    "sparsity": Figure(sparsity_table, draw_sparsity),
    "convergence": Figure(convergence_table, draw_convergence),
    "weights": Figure(weights_table, draw_weights),
    "costs": Figure(costs_table, draw_costs),
    **{name: Figure(ablation.table, ablation.draw) for name, ablation in ABLATIONS.items()},
}


def figure(
    name: str,
    *,
    profile: str | Profile = "mini",
    folder: str | Path | None = None,
    progress: bool = True,
    **changes,
) -> tuple[pd.DataFrame, plt.Figure, str]:
    """A figure by name.

    Parameters
    ----------
    name : str
        One of `FIGURES`.
    profile : str or Profile
        'mini' (opt-mini, minutes on a CPU), 'small' (smollm2-135m), or 'paper' (128 x 2048 tokens
        of C4, whole texts).
    folder : str or Path, optional
        Where the table is kept, as NAME-MODEL.csv; rows that are there are not made again. Default:
        bench/figures of a checkout; from an installed wheel sparselab-figures in the working
        folder, begun with the rows that ship with the package.
    progress : bool
        Show progress bars.
    **changes
        Other fields of the profile, such as model='facebook/opt-1.3b' or layers='first half'.

    Returns
    -------
    table : DataFrame
    drawing : matplotlib Figure
    sentence : str
        It describes the drawing: `sl.viz.show(drawing, sentence)`.

    Raises
    ------
    SparselabError
        For a name that is not there, and where the table is of something else.
    """
    if name not in FIGURES:
        raise SparselabError(f"unknown figure {name!r}.{did_you_mean(name, FIGURES)}")
    if isinstance(profile, str) and profile not in PROFILES:
        raise SparselabError(f"unknown profile {profile!r}.{did_you_mean(profile, PROFILES)}")
    chosen = replace(PROFILES[profile] if isinstance(profile, str) else profile, **changes)
    if chosen.layers not in (None, "first half"):
        raise SparselabError(
            f"layers={chosen.layers!r}: a figure prunes all layers (None) or the 'first half'."
        )
    file = Path(folder or figure_tables()).expanduser() / f"{name}-{Path(chosen.model).name}.csv"
    if folder is None:
        start_table(file)
    table = FIGURES[name].table(chosen, file, progress)
    with style():
        drawing, sentence = FIGURES[name].draw(table)
    plt.close(drawing)  # or a notebook would show it once more, by itself
    return table, drawing, sentence
