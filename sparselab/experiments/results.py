"""Recorded rows: one CSV file a sweep, which an interrupted run goes on with."""

import os
import platform
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from ..data.corpora import CORPORA, sha256_of
from ..errors import SparselabError


def machine() -> str:
    """What the digits of a result depend on: the processor's family and the instruction set that
    torch uses."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def name_of(text: str) -> str:
    """What a text is called in tables."""
    return Path(text).name


def complete_lines(file: Path) -> bytes:
    """What a CSV file holds, without a last line that a killed run left unfinished; nothing where
    there is no file."""
    content = file.read_bytes() if file.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def read(file: Path) -> pd.DataFrame:
    """A sweep's CSV; patterns are words, also where all of them look like numbers."""
    try:
        return pd.read_csv(BytesIO(complete_lines(file)), dtype={"pattern": str})
    except ValueError as error:
        raise SparselabError(
            f"{file} is not a whole table: {str(error).strip()}. Mend that line, or move the file"
            " away."
        ) from error


def read_from(table: pd.DataFrame, column: str, text: str, use: str) -> pd.Series | bool:
    """Where a table's sha256 is that of a text file; all rows, where there is no such column or
    file to compare."""
    if column not in table or text in CORPORA or not Path(text).is_file():
        return True
    return table[column] == sha256_of(text, use)


def rows_matching(table: pd.DataFrame, key: dict) -> pd.Series:
    """Where a table's rows carry the key, compared as text."""
    if not {*key} <= {*table}:
        raise SparselabError(
            f"this table lacks the columns {', '.join(sorted({*key} - {*table}))}: it is of"
            " something else. Choose another file."
        )
    return (
        table[list(key)].astype(str) == pd.Series({name: str(value) for name, value in key.items()})
    ).all(axis=1)


def append(file: Path, rows: list[dict]) -> None:
    """Add rows to a CSV file; if it is there, its columns are kept, and the rows must have them."""
    table, lines = pd.DataFrame(rows), complete_lines(file)
    columns = [*pd.read_csv(BytesIO(lines), nrows=0)] if lines else [*table]
    if not {*columns} <= {*table}:
        raise SparselabError(
            f"{file} was written with other columns than these rows have. Move it away, or choose"
            " another file."
        )
    if file.exists():
        os.truncate(file, len(lines))
    table[columns].to_csv(file, mode="a", header=not lines, index=False)


def load_or_compute(
    file: Path, keys: list[dict], make: Callable[[dict], list[dict]], progress: bool
) -> pd.DataFrame:
    """The rows of a CSV file that carry one of the keys; what is missing is made, a key at a time,
    and added."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for key in tqdm(keys, desc=file.stem, unit="run", disable=not progress):
        if not file.exists() or not rows_matching(read(file), key).any():
            append(file, [{**key, **row} for row in make(key)])
    table = read(file)
    return table[pd.concat([rows_matching(table, key) for key in keys], axis=1).any(axis=1)]
