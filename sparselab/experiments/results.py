"""Recorded rows: one CSV file a sweep, which an interrupted run goes on with."""

import csv
import platform
from io import StringIO
from pathlib import Path

import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype

from ..data.corpora import CORPORA, sha256_of
from ..errors import SparselabError
from ..runtime.files import naming_file_errors, waiting_lock, write_whole

WORDS = ("model", "calibration", "text", "method", "pattern", "layers_pruned", "settings")


def machine() -> str:
    """What the digits of a result depend on: the processor's family and the instruction set that
    torch uses."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def name_of(text: str) -> str:
    """What a text is called in tables."""
    return Path(text).name


def complete_lines(file: Path) -> bytes:
    """What a CSV file holds, without a last line that was left unfinished; nothing where there is
    no file, or nothing in it."""
    content = file.read_bytes() if file.exists() else b""
    content = content[: content.rfind(b"\n") + 1]
    return content if content.strip() else b""


def read(file: Path) -> pd.DataFrame:
    """A sweep's CSV. Names and patterns are words, also where they look like numbers ('007',
    'nan'); a row with fewer cells than the header was cut, and is left out."""
    text = complete_lines(file).decode("utf8", "replace")
    header, *rows = csv.reader(StringIO(text)) if text else [[]]
    whole = [row for row in rows if len(row) >= len(header)]
    content = StringIO()
    csv.writer(content).writerows([header, *whole])
    content.seek(0)
    numbers = {name: ["", "nan", "NaN"] for name in header if name not in WORDS}
    try:
        return pd.read_csv(
            content,
            dtype=dict.fromkeys(WORDS, str),
            na_values=numbers,
            keep_default_na=False,
            index_col=False,
        )
    except (ValueError, pd.errors.ParserWarning) as error:
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
    lacking = sorted({*key} - {*table})
    if lacking:
        raise SparselabError(
            f"this table lacks the columns {', '.join(lacking)}: it is of something else. Choose"
            " another file."
        )
    found = pd.Series(True, table.index)
    for name, value in key.items():
        if is_numeric_dtype(table[name]):  # with one empty cell whole numbers are read as 4.0
            found &= table[name] == pd.to_numeric(str(value), errors="coerce")
        else:
            found &= table[name].astype(str) == str(value)
    return found


def append(file: Path, rows: list[dict]) -> None:
    """Add rows to a CSV file, all or none; if it is there, its columns are kept, and the rows must
    have them. Several processes may add to one file."""
    table = pd.DataFrame(rows)
    with (
        naming_file_errors(
            f"the rows cannot be added to {file}", "No row was lost; repeat the call."
        ),
        waiting_lock(file.parent),
    ):
        lines = complete_lines(file)
        columns = next(csv.reader([lines.decode("utf8").splitlines()[0]])) if lines else [*table]
        if not {*columns} <= {*table}:
            raise SparselabError(
                f"{file} was written with other columns than these rows have. Move it away, or"
                " choose another file."
            )
        more = table[columns].to_csv(header=not lines, index=False)
        write_whole(file.resolve(), lines + more.encode("utf8"))
