"""What there is of each of the registry's entries: its state, a list of all, a page of all."""

import html
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ..errors import SparselabError
from ..runtime.files import DISTRIBUTION
from ..viz import style
from .figures import FIGURES, figure, named_figure, table_file
from .figures.recorded import draw_published
from .registry import Entry, entries


def state(entry: Entry, folder: str | Path | None = None) -> str:
    """What was done: reproduced on the paper's model, done as a small analogue, only a command, a
    drawing that measures nothing, or missing and why. Looked up in the recorded tables.

    Parameters
    ----------
    entry : Entry
    folder : str or Path, optional
        Of the tables. Default: as for `figure`.
    """
    if entry.missing:
        return f"missing: {entry.missing}"
    if not FIGURES[entry.figure].measured:
        return "drawn, nothing to measure"
    done = recorded(entry, folder)
    own = [model for profile, model in done if profile == "paper"]
    if own:
        return f"reproduced on {', '.join(own)}"
    if not done:
        return "command only"
    return f"small analogue: {', '.join(model for _, model in done)}"


def recorded(entry: Entry, folder: str | Path | None = None) -> list[tuple[str, str]]:
    """The profiles of an entry, each with a model, of which all rows are there."""
    found = []
    for profile in entry.profiles:
        models = (
            entry.models if profile == "paper" else [named_figure(entry.name, profile)[1].model]
        )
        found += [(profile, model) for model in models if _complete(entry, profile, model, folder)]
    return found


def _complete(entry: Entry, profile: str, model: str, folder: str | Path | None) -> bool:
    name, chosen = named_figure(entry.name, profile, model=model, recorded_only=True)
    try:
        return not FIGURES[name].table(chosen, table_file(name, chosen, folder), False).empty
    except SparselabError:  # rows that are missing, a model or a text that is not here
        return False


def frame(folder: str | Path | None = None) -> pd.DataFrame:
    """A row for each entry: name, paper, where, shows, state."""
    rows = [
        (entry.name, entry.paper, entry.where, entry.shows, state(entry, folder))
        for entry in entries().values()
    ]
    return pd.DataFrame(rows, columns=["name", "paper", "where", "shows", "state"])


def listing(folder: str | Path | None = None) -> str:
    """All entries, a line each: name, where it is, state; and below what it shows."""
    lines = []
    for row in frame(folder).itertuples():
        lines.append(f"{row.name:28} {row.paper}, {row.where}: {row.state}")
        lines.append(f"{'':28} {row.shows}")
    lines.append("Make one: python -m sparselab figure NAME [--profile mini | small | paper]")
    return "\n".join(lines)


def write_page(out: Path, folder: str | Path | None = None) -> Path:
    """All entries in one HTML page that needs no other file: what each shows, the paper's protocol,
    our drawing of what was recorded, the published numbers with their sources.

    Parameters
    ----------
    out : Path
        A folder; the page is its index.html.
    folder : str or Path, optional
        Of the tables.
    """
    parts = [PAGE.format(version=version(DISTRIBUTION))]
    for entry in entries().values():
        parts.append(_section(entry, folder))
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html"
    page.write_text("\n".join(parts), encoding="utf8")
    return page


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Figures and tables</title>
<style>body {{max-width: 62em; margin: 2em auto; font: 16px/1.5 sans-serif}}
svg {{max-width: 100%; height: auto}} code {{background: #eee; padding: 0 .3em}}
table {{font-size: 13px; border-collapse: collapse}} td, th {{padding: 2px 8px; text-align: left}}
.unseen {{color: #888}} figcaption {{color: #444; font-size: 14px}}</style>
<h1>The papers' figures and tables</h1><p>Made by sparselab {version}.</p>"""


def _section(entry: Entry, folder: str | Path | None) -> str:
    """One entry."""
    words = html.escape
    parts = [
        f'<section id="{entry.name}"><h2>{words(entry.paper)}, {words(entry.where)}</h2>',
        f"<p>{words(entry.shows)}. <b>{words(state(entry, folder))}</b></p>",
        f"<p>In the paper: {words(entry.protocol)}.</p>",
    ]
    commands = [words(entry.command(profile)) for profile in entry.profiles]
    parts.append("<p>" + "<br>".join(f"<code>{command}</code>" for command in commands) + "</p>")
    if entry.figure:
        parts += _drawings(entry, folder)
    published = entry.published_rows()
    if len(published):
        with style():
            parts.append(_figure(*draw_published(published)))
        parts.append(_sources(published))
    return "\n".join(parts) + "</section>"


def _drawings(entry: Entry, folder: str | Path | None) -> list[str]:
    """What is recorded of an entry, a drawing for each profile and model; a schematic, once."""
    if not FIGURES[entry.figure].measured:
        _, drawing, sentence = figure(entry.name, folder=folder)
        return [_figure(drawing, sentence)]
    parts = []
    for profile, model in recorded(entry, folder):
        _, drawing, sentence = figure(
            entry.name, profile=profile, model=model, folder=folder, progress=False
        )
        parts.append(_figure(drawing, sentence))
    return parts


def _figure(drawing: plt.Figure, sentence: str) -> str:
    """A drawing inside the page, with its sentence."""
    picture = StringIO()
    drawing.savefig(picture, format="svg")
    plt.close(drawing)
    picture = picture.getvalue()
    svg = picture[picture.index("<svg") :]
    alt = html.escape(sentence[0].upper() + sentence[1:])
    return f"<figure>{svg}<figcaption>{alt}</figcaption></figure>"


def _sources(rows: pd.DataFrame) -> str:
    """Published numbers, each with its address."""
    cells = ["<tr><th>model<th>method<th>zeros<th>measure<th>value<th>where it can be read</tr>"]
    for row in rows.itertuples():
        seen = ' class="unseen"' if row.seen == "no" else ""
        source = html.escape(row.source)
        link = f'<a href="{source}">{source}</a>' if source.startswith("https://") else source
        cells.append(
            f"<tr{seen}><td>{html.escape(row.model)}<td>{row.method}<td>{row.pattern}"
            f"<td>{row.metric}, {row.dataset}<td>{row.value:g}<td>{link}</tr>"
        )
    table = "".join(cells)
    return (
        f"<details><summary>{len(rows)} published numbers</summary><table>{table}</table></details>"
    )
