"""Published numbers, each with where it was read, and ours beside them: signed gaps, and never
across protocols unsaid."""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from .. import viz
from ..errors import SparselabError, did_you_mean
from ..patterns import Pattern
from ..runtime.files import ROOT

PAPERS = ROOT / "data" / "papers"
COLUMNS = tuple(
    "paper table_or_figure model method pattern sparsity metric dataset value layers_pruned seqlen"
    " source seen note".split()
)
SEEN = {"yes": 0, "quoted": 1, "no": 2}  # how a number was found, the best first
# What must agree before two perplexities can be compared, with the words for it.
PROTOCOL = {"model": "model", "layers_pruned": "layers pruned", "seqlen": "tokens in a window"}


def known_dense(name: str, corpus: str, seqlen: int) -> float | None:
    """The dense perplexity that the papers print, to tell at once whether model, text and protocol
    are right.

    Parameters
    ----------
    name : str
        The model's Hub id.
    corpus : str
        The text.
    seqlen : int
        Tokens in a window.

    Returns
    -------
    float or None
        None where no paper prints it.
    """
    table = papers()
    rows = table[
        (table.method == "dense")
        & (table.metric == "perplexity")
        & (table.model == name)
        & (table.dataset == corpus)
        & (table.seqlen == seqlen)
    ]
    return rows.value.iloc[0] if len(rows) else None


def papers(*names: str) -> pd.DataFrame:
    """Published numbers as a table.

    Parameters
    ----------
    *names : str
        Papers, such as 'sparsellm' and 'wanda'. Default: all.

    Returns
    -------
    DataFrame
        One row a number. Columns: paper, table_or_figure, model (Hub id), method (as in sweeps),
        pattern (n:m counts zeros), sparsity, metric, dataset, value, layers_pruned ('all', 'first
        half', 'none' for dense), seqlen (tokens in an evaluation window), source (a public
        address), seen ('yes' where this very number was read at that address, 'quoted' where a
        text that quotes the paper was read there, 'no' where it could not be opened), note (what
        else to know of it). The papers' tables are not whole: what is missing is missing, not zero.

    Raises
    ------
    SparselabError
        For a name that is not there, with those that are.
    """
    files = {file.stem: file for file in sorted(PAPERS.glob("*.csv"))}
    for name in names:
        if name not in files:
            raise SparselabError(f"no published numbers under {name!r}.{did_you_mean(name, files)}")
    types = {"pattern": str, "seqlen": "Int64"}
    tables = [pd.read_csv(files[name], dtype=types) for name in names or files]
    return pd.concat(tables, ignore_index=True)


def gaps(
    ours: pd.DataFrame,
    theirs: pd.DataFrame | None = None,
    *,
    dataset: str = "wikitext2",
    mixed: bool = False,
) -> pd.DataFrame:
    """Our perplexities beside the published ones, by method and pattern.

    Parameters
    ----------
    ours : DataFrame
        Rows of a sweep or a figure's table. Where a model was loaded from a folder, say which it is
        first: `ours.assign(model="facebook/opt-125m")`.
    theirs : DataFrame, optional
        Some of `papers()`. Default: all for the models of `ours`.
    dataset : str
        The text.
    mixed : bool
        Compare numbers of different protocols too.

    Returns
    -------
    DataFrame
        With the columns perplexity (mean over seeds), stderr, value (theirs), gap = ours - theirs,
        gap_percent, and `difference`, which names what differs between the protocols ('' where
        nothing does).

    Raises
    ------
    SparselabError
        Where nothing matches, or where protocols differ and mixed=True does not say that this is
        meant.
    """
    mine = _ours(ours, dataset)
    published = papers() if theirs is None else theirs
    published = published[(published.metric == "perplexity") & (published.dataset == dataset)]
    if theirs is None:
        published = published[published.model.isin(mine.model)]
    published = published.assign(pattern=published.pattern.map(Pattern.parse).map(str))
    # Several papers print the same number: the one that was looked up stands.
    published = published.sort_values("seen", key=lambda seen: seen.map(SEEN), kind="stable")
    published = published.drop_duplicates([*PROTOCOL, "method", "pattern", "value"])
    table = mine.merge(published, on=["method", "pattern"], suffixes=("", "_theirs"))
    if table.empty:
        raise SparselabError(
            f"no published perplexity on {dataset} matches these rows"
            f" ({', '.join(mine.model.unique())}; {', '.join(mine.method.unique())}). Choose some"
            " of sl.papers() as theirs=, and pass mixed=True if their model is another."
        )
    table["difference"] = [_difference(row) for row in table.to_dict("records")]
    if table.difference.any() and not mixed:
        raise SparselabError(
            f"ours and theirs cannot be compared: {'; '.join(_distinct(table.difference))}. Run the"
            " same protocol, or pass mixed=True to draw both with the difference in the label."
        )
    table["gap"] = table.perplexity - table.value
    return table.assign(gap_percent=100 * table.gap / table.value)


def _ours(ours: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Means over seeds, with a row for the dense model; what a plain sweep does not record is said
    so."""
    rows = ours[ours.text == dataset]
    if rows.empty:
        raise SparselabError(
            f"these rows hold no perplexity on {dataset!r}, but on {', '.join(ours.text.unique())}."
        )
    rows = rows.assign(
        layers_pruned=rows.get("layers_pruned", "all"),
        text_windows=rows.get("text_windows", float("nan")),
        pattern=rows.pattern.map(Pattern.parse).map(str),
    )
    dense = rows.drop_duplicates([*PROTOCOL]).assign(method="dense", pattern="0")
    dense = dense.assign(perplexity=dense.dense, stderr=float("nan"), layers_pruned="none")
    keys = [*PROTOCOL, "windows", "text_windows", "method", "pattern"]
    groups = pd.concat([dense, rows]).groupby(keys, sort=False, dropna=False, as_index=False)
    return groups[["perplexity", "stderr"]].mean()


def _difference(row: dict) -> str:
    """What differs between our protocol and theirs, in words."""
    found = []
    for key, words in PROTOCOL.items():
        ours, theirs = row[key], row[f"{key}_theirs"]
        if ours != theirs:
            found.append(f"{words}: {ours} here, {theirs} there")
    windows, of_text = row["windows"], row["text_windows"]
    if pd.isna(of_text):
        found.append(f"the first {windows} windows here, without a record of how many the text has")
    elif windows < of_text:
        found.append(f"the first {windows} of {of_text:.0f} windows here, all there")
    return ", ".join(found)


def _distinct(texts: pd.Series) -> list[str]:
    return [text for text in texts.unique() if text]


def overlay(
    ours: pd.DataFrame,
    theirs: pd.DataFrame | None = None,
    *,
    dataset: str = "wikitext2",
    mixed: bool = False,
) -> tuple[Figure, str]:
    """A figure of our perplexities beside the published ones.

    Parameters
    ----------
    ours, theirs, dataset, mixed
        As for `gaps`.

    Returns
    -------
    figure : Figure
        Ours are filled, with standard errors, theirs hollow; the signed gap in percent stands at
        each pair.
    description : str
        The same numbers in a sentence.

    Raises
    ------
    SparselabError
        As `gaps`.
    """
    table = gaps(ours, theirs, dataset=dataset, mixed=mixed)
    with viz.style():
        figure, axis = plt.subplots(figsize=(max(5.5, 0.8 * len(table) + 2), 4.2))
        names = []
        for place, row in enumerate(table.itertuples()):
            _pair(axis, place, row)
            names.append(f"{viz.label_of(row.method)}\n{row.pattern.split(' = ')[0]}")
        axis.set_xticks(range(len(table)), names, rotation=45, ha="right", fontsize=8)
        axis.set(yscale="log", ylabel=f"perplexity on {dataset}", xlim=(-0.6, len(table) - 0.4))
        axis.margins(y=0.15)
        models, sources = ", ".join(table.model.unique()), "; ".join(table.paper.unique())
        axis.plot([], [], "ko", label=f"ours: {models}")
        axis.plot([], [], "ko", markerfacecolor="white", label=f"published: {sources}")
        figure.legend(loc="outside upper left", fontsize=8)
        differences = _distinct(table.difference)
        if differences:
            wide = int(12 * figure.get_figwidth())  # letters of size 8 in a line
            lines = textwrap.wrap(f"NOT the same protocol: {'; '.join(differences)}", wide)
            axis.set_title("\n".join(lines), fontsize=8, color="#D55E00")
    return figure, _sentence(table, dataset, differences)


def _pair(axis, place: int, row) -> None:
    """One of ours and one of theirs, joined by a line with the gap."""
    colour, marker, _ = viz.style_of(row.method)
    marker = marker or "o"
    left, right = place - 0.15, place + 0.15  # side by side: small gaps would hide one
    axis.plot([left, right], [row.perplexity, row.value], color=colour, linewidth=1)
    axis.errorbar(left, row.perplexity, row.stderr, color=colour, marker=marker, capsize=3)
    axis.plot(right, row.value, color=colour, marker=marker, markerfacecolor="white")
    gap, top = f"{row.gap_percent:+.1f} %", max(row.perplexity, row.value)
    above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
    axis.annotate(gap, (place, top), fontsize=8, **above)


def _sentence(table: pd.DataFrame, dataset: str, differences: list[str]) -> str:
    pairs = []
    for row in table.itertuples():
        ours = f"{viz.label_of(row.method)} at {row.pattern} {row.perplexity:.2f}"
        pairs.append(f"{ours} against {row.value:g} ({row.gap_percent:+.1f} %)")
    warning = f" The protocols differ: {'; '.join(differences)}." if differences else ""
    return f"perplexity on {dataset}, ours against published: {', '.join(pairs)}.{warning}"
