"""Published numbers, each with where it was read, and ours beside them: signed gaps, and never
across protocols unsaid."""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
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
    table["difference"] = [", ".join(_differences(row)) for row in table.to_dict("records")]
    if table.difference.any() and not mixed:
        differences = "; ".join(text for text in table.difference.unique() if text)
        raise SparselabError(
            f"ours and theirs cannot be compared: {differences}. Run the same protocol, or pass"
            " mixed=True to draw both with the difference in the title."
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
        places=rows.get("places", "first"),
        pattern=rows.pattern.map(Pattern.parse).map(str),
    )
    dense = rows.drop_duplicates([*PROTOCOL]).assign(method="dense", pattern="0")
    dense = dense.assign(perplexity=dense.dense, stderr=float("nan"), layers_pruned="none")
    keys = [*PROTOCOL, "windows", "text_windows", "places", "method", "pattern"]
    groups = pd.concat([dense, rows]).groupby(keys, sort=False, dropna=False, as_index=False)
    return groups[["perplexity", "stderr"]].mean()


def _differences(row: dict) -> list[str]:
    """What differs between our protocol and theirs, in words."""
    found = []
    for key, words in PROTOCOL.items():
        ours, theirs = row[key], row[f"{key}_theirs"]
        if ours != theirs:
            found.append(f"{words}: {ours} here, {theirs} there")
    windows, of_text = row["windows"], row["text_windows"]
    first, spread = ("the first ", "") if row["places"] == "first" else ("", ", from all over")
    if pd.isna(of_text):
        found.append(
            f"{first}{windows} windows here{spread}, without a record of how many the text has"
        )
    elif windows < of_text:
        found.append(f"{first}{windows} of {of_text:.0f} windows here{spread}, all there")
    return found


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
        Under one protocol ours are filled, with standard errors, theirs hollow; the signed gap in
        percent stands at each pair. Where protocols differ, each model has a panel and an axis of
        its own, for only the shapes may be compared.
    description : str
        The same numbers in a sentence.

    Raises
    ------
    SparselabError
        As `gaps`.
    """
    table = gaps(ours, theirs, dataset=dataset, mixed=mixed)
    found = (part for row in table.to_dict("records") for part in _differences(row))
    differences = [*dict.fromkeys(found)]
    with viz.style():
        figure = _panels(table, differences) if differences else _pairs(table)
        figure.axes[0].set_ylabel(f"perplexity on {dataset}")
    return figure, _sentence(table, dataset, differences)


def _pairs(table: pd.DataFrame) -> Figure:
    """Ours and theirs side by side, method by method."""
    figure, axis = plt.subplots(figsize=(max(5.5, 0.8 * len(table) + 2), 4.2))
    for place, row in enumerate(table.itertuples()):
        _pair(axis, place, row)
    names = [
        f"{viz.label_of(row.method)}\n{Pattern.parse(row.pattern).words}"
        for row in table.itertuples()
    ]
    axis.set_xticks(range(len(table)), names, rotation=45, ha="right", fontsize=8)
    axis.set(yscale="log", xlim=(-0.6, len(table) - 0.4), xlabel="method and zeros")
    axis.margins(y=0.15)
    models, sources = ", ".join(table.model.unique()), "; ".join(table.paper.unique())
    axis.plot([], [], "ko", label=f"ours: {models}; in %: above the paper's")
    axis.plot([], [], "ko", markerfacecolor="white", label=f"from the paper: {sources}")
    figure.legend(loc="outside upper left", fontsize=8)
    return figure


def _panels(table: pd.DataFrame, differences: list[str]) -> Figure:
    """A panel for each model of ours and of theirs, with its own axis: from the dense model over
    the sparsities, a line for each method; n:m as points."""
    sources = (("ours", "model", "perplexity"), ("from the paper", "model_theirs", "value"))
    sides = [
        (f"{words}: {model}", rows, values)
        for words, key, values in sources
        for model, rows in table.groupby(key, sort=False)
    ]
    figure, axes = plt.subplots(1, len(sides), figsize=(3.8 * len(sides), 3.9), squeeze=False)
    patterns = sorted(table.pattern.unique(), key=_shares_first)
    for axis, (title, rows, values) in zip(axes[0], sides, strict=True):
        _panel(axis, rows, values, patterns)
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(patterns)), [Pattern.parse(one).words for one in patterns])
        axis.set(xlabel="zeros", xlim=(-0.3, len(patterns) - 0.7))
    axes[0, 0].legend(fontsize=8)
    wide = int(12 * figure.get_figwidth())  # letters of size 8 in a line
    lines = textwrap.wrap(f"NOT the same protocol: {'; '.join(differences)}", wide)
    figure.suptitle("\n".join(lines), fontsize=8, color="#D55E00")
    return figure


def _shares_first(pattern: str) -> tuple[bool, float]:
    """The order of patterns on an axis: n:m stand behind."""
    parsed = Pattern.parse(pattern)
    return bool(parsed.m), parsed.sparsity


def _panel(axis: Axes, rows: pd.DataFrame, values: str, patterns: list[str]) -> None:
    """One model's perplexities, those of the column `values`."""
    dense = rows[rows.method == "dense"]
    if len(dense):
        axis.axhline(dense[values].iloc[0], color="black", linestyle=":", label="dense")
    for method, part in rows[rows.method != "dense"].groupby("method", sort=False):
        part = pd.concat([dense, part]).assign(place=lambda t: t.pattern.map(patterns.index))
        look = viz.line_style(*viz.style_of(method)) | {"fillstyle": viz.fill_of(method)}
        grouped = part.pattern.str.contains(":")
        shares = part[~grouped].sort_values("place")
        axis.plot(shares.place, shares[values], label=viz.label_of(method), **look)
        axis.plot(part.place[grouped], part[values][grouped], **{**look, "linestyle": "none"})


def _pair(axis: Axes, place: int, row) -> None:
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
        where = f"{viz.label_of(row.method)} at {Pattern.parse(row.pattern).words}"
        ours = f"{where} {row.perplexity:.2f}"
        gap = "" if differences else f" ({row.gap_percent:+.1f} %)"  # of different things: no gap
        pairs.append(f"{ours} against {row.value:g}{gap}")
    warning = f" The protocols differ: {'; '.join(differences)}." if differences else ""
    return f"perplexity on {dataset}, ours against published: {', '.join(pairs)}.{warning}"
