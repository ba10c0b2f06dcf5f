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
from ..registry import entries
from .ablations import ABLATIONS
from .convergence import convergence_table, draw_convergence
from .costs import costs_table, draw_costs
from .pipeline import draw_pipeline, pipeline_table
from .recorded import (
    draw_divisions,
    draw_finetuning,
    draw_products,
    draw_sizes,
    of_bench,
    sizes_table,
)
from .sparsity import draw_sparsity, sparsity_table
from .weights import draw_weights, weights_table
from .zeroshot import draw_zeroshot, zeroshot_table


@dataclass(frozen=True)
class Figure:
    """How a figure's table is made, kept in a CSV file and resumed, and how it is drawn, in the
    style of `viz`, and described. measured: whether it prunes anything."""

    table: Callable[[Profile, Path, bool], pd.DataFrame]
    draw: Callable[[pd.DataFrame], tuple[plt.Figure, str]]
    measured: bool = True


FIGURES = {
    "sparsity": Figure(sparsity_table, draw_sparsity),
    "convergence": Figure(convergence_table, draw_convergence),
    "weights": Figure(weights_table, draw_weights),
    "costs": Figure(costs_table, draw_costs),
    "zeroshot": Figure(zeroshot_table, draw_zeroshot),
    "pipeline": Figure(pipeline_table, draw_pipeline, measured=False),
    "sizes": Figure(sizes_table, draw_sizes, measured=False),
    "divisions": Figure(
        of_bench("divisions.csv", "python bench/beyond.py divisions"), draw_divisions
    ),
    "products": Figure(
        of_bench("sparse_products.csv", "python bench/sparse_products.py"), draw_products
    ),
    "finetuning": Figure(of_bench("finetuning.csv", "python bench/finetuning.py"), draw_finetuning),
    **{name: Figure(ablation.table, ablation.draw) for name, ablation in ABLATIONS.items()},
}


def figure(
    name: str,
    *,
    profile: str | Profile | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    **changes,
) -> tuple[pd.DataFrame, plt.Figure, str]:
    """A figure by name.

    Parameters
    ----------
    name : str
        An entry of the registry, such as 'sparsellm-table-1', or one of `FIGURES`, which entries
        share.
    profile : str or Profile, optional
        'mini' (opt-mini, minutes on a CPU), 'small' (smollm2-135m), or 'paper' (the paper's model,
        128 x 2048 tokens of C4, whole texts). Default: an entry's first, else 'mini'.
    folder : str or Path, optional
        Where the table is kept, as NAME-MODEL.csv; rows that are there are not made again. Default:
        bench/figures of a checkout; from an installed wheel sparselab-figures in the working
        folder, begun with the rows that ship with the package.
    progress : bool
        Show progress bars.
    **changes
        Other fields of the profile, such as model='facebook/opt-1.3b', layers='first half'
        or layers=range(2).

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
    name, chosen = named_figure(name, profile, **changes)
    if chosen.layers not in (None, "first half") and not isinstance(chosen.layers, range):
        raise SparselabError(
            f"layers={chosen.layers!r}: a figure prunes all layers (None), the 'first half', or a"
            " range of them."
        )
    file = table_file(name, chosen, folder)
    if folder is None:
        start_table(file)
    table = FIGURES[name].table(chosen, file, progress)
    with style():
        drawing, sentence = FIGURES[name].draw(table)
    plt.close(drawing)  # or a notebook would show it once more, by itself
    return table, drawing, sentence


def named_figure(name: str, profile: str | Profile | None = None, **changes) -> tuple[str, Profile]:
    """Which of `FIGURES` a name means, of those or of the registry's entries, and its profile with
    the entry's changes and these. Raises a SparselabError for what is not there."""
    entry = entries().get(name)
    if entry is None and name not in FIGURES:
        raise SparselabError(
            f"unknown figure {name!r}.{did_you_mean(name, [*entries(), *FIGURES])}"
        )
    if entry is not None and not entry.figure:
        raise SparselabError(f"{name} cannot be made here: {entry.missing}")
    if profile is None:
        profile = next(iter(entry.profiles)) if entry else "mini"
    if isinstance(profile, str) and profile not in PROFILES:
        raise SparselabError(f"unknown profile {profile!r}.{did_you_mean(profile, PROFILES)}")
    if entry is None:
        base = PROFILES[profile] if isinstance(profile, str) else profile
        return name, replace(base, **changes)
    if isinstance(profile, str):
        return entry.figure, replace(PROFILES[profile], **entry.changes(profile) | changes)
    return entry.figure, replace(profile, **changes)


def table_file(name: str, profile: Profile, folder: str | Path | None = None) -> Path:
    """Where a figure's table of a model is kept."""
    place = Path(folder or figure_tables()).expanduser()
    return place / f"{name}-{Path(profile.model).name}.csv"
