"""The papers' figures and tables by name: what each shows, how the paper made it, what was
published, what was recorded here, and the command that makes it.

`data/papers/registry.toml` holds the entries. An entry's state is looked up, never written down.
"""

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd

from ..errors import SparselabError, did_you_mean
from ..evaluation.published import PAPERS, papers


@dataclass(frozen=True)
class Entry:
    """A figure or table of a paper.

    name: as the command line takes it. paper, where: whose, and which. shows, protocol: in words.
    figure: which of `figures.FIGURES` draws it; '' where there is none, and `missing` says why.
    models: the paper's, Hub ids. published: (paper, table_or_figure) of the rows of `sl.papers()`.
    profiles: by the profile's name, what differs from it; a profile that is not there is not part
    of the entry.
    """

    name: str
    paper: str
    where: str
    shows: str
    protocol: str
    figure: str = ""
    missing: str = ""
    models: tuple[str, ...] = ()
    published: tuple[tuple[str, str], ...] = ()
    profiles: dict[str, dict] = field(default_factory=dict)

    def changes(self, profile: str) -> dict:
        """What differs from a profile; for the paper's, its first model unless told otherwise."""
        if profile not in self.profiles:
            raise SparselabError(
                f"{self.name} has no {profile!r} profile, but {', '.join(self.profiles) or 'none'}."
            )
        first = {"model": self.models[0]} if profile == "paper" and self.models else {}
        return first | self.profiles[profile]

    def command(self, profile: str) -> str:
        """What to type."""
        chosen = "" if profile == next(iter(self.profiles)) else f" --profile {profile}"
        return f"python -m sparselab figure {self.name}{chosen}"

    def published_rows(self) -> pd.DataFrame:
        """Its rows of `sl.papers()`."""
        table = papers()
        mine = pd.Series(False, table.index)
        for paper, where in self.published:
            mine |= (table.paper == paper) & (table.table_or_figure == where)
        return table[mine]


@cache
def entries(file: Path = PAPERS / "registry.toml") -> dict[str, Entry]:
    """All entries by name."""
    written = tomllib.loads(file.read_text(encoding="utf8"))
    return {name: _entry(name, content) for name, content in written.items()}


def _entry(name: str, content: dict) -> Entry:
    profiles = {
        profile: {key: _frozen(value) for key, value in changes.items()}
        for profile, changes in content.pop("profiles", {}).items()
    }
    published = tuple(tuple(row.split(" | ")) for row in content.pop("published", ()))
    models = tuple(content.pop("models", ()))
    return Entry(name, **content, models=models, published=published, profiles=profiles)


def _frozen(value):
    """A list of TOML as a profile holds it."""
    return tuple(value) if isinstance(value, list) else value


def entry(name: str) -> Entry:
    """An entry by name; a SparselabError where there is none."""
    known = entries()
    if name not in known:
        raise SparselabError(f"no entry {name!r} in the registry.{did_you_mean(name, known)}")
    return known[name]
