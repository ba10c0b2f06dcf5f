"""Texts as the papers read them: calibration windows and evaluation tokens. None of them is
shipped."""

import json
import lzma
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ..errors import SparselabError, did_you_mean
from ..models.hub import online
from ..runtime.files import cache, sha256

PART = 2**20  # characters of a text file that are read at once
PTB_HUB = (
    "hf://datasets/ptb-text-only/ptb_text_only@refs~convert~parquet/penn_treebank/{}/0000.parquet"
)


@dataclass(frozen=True)
class Corpus:
    """How one text is read: local file names in order of preference and the Hub's rows, for each of
    the two uses.

    `joiner` between rows; calibration draws from single documents (`documents=True`) or from one
    joined stream.
    """

    evaluation_files: tuple[str, ...]
    calibration_files: tuple[str, ...]
    hub: Callable[[str], Sequence[str]]  # "evaluation" or "calibration" -> rows
    evaluation_joiner: str
    documents: bool = False
    evaluation_rows: int | None = None  # no more than the first so many rows are evaluated


def _hub_rows(path: str, column: str, **options) -> Sequence[str]:
    from datasets import load_dataset  # slow to import, and only needed here

    return load_dataset(path, **options)[column]


def _wikitext2(use: str) -> Sequence[str]:
    split = {"evaluation": "test", "calibration": "train"}[use]
    return _hub_rows("Salesforce/wikitext", "text", name="wikitext-2-raw-v1", split=split)


def _ptb(use: str) -> Sequence[str]:
    file = PTB_HUB.format({"evaluation": "test", "calibration": "train"}[use])
    return _hub_rows("parquet", "sentence", data_files={"rows": file}, split="rows")


def _c4(use: str) -> Sequence[str]:
    part = {"evaluation": "validation.00000-of-00008", "calibration": "train.00000-of-01024"}[use]
    file = f"en/c4-{part}.json.gz"
    return _hub_rows("allenai/c4", "text", data_files={"rows": file}, split="rows")


CORPORA = {
    "wikitext2": Corpus(
        ("wikitext2-raw-test.txt",),
        ("wikitext2-raw-train.txt", "wikitext2-unk-valid.txt"),
        _wikitext2,
        "\n\n",
    ),
    "ptb": Corpus(("ptb-test.txt",), ("ptb-train.txt", "ptb-valid.txt"), _ptb, " "),
    "c4": Corpus(
        ("c4-validation.jsonl",),
        ("c4-train.jsonl", "c4-demo.jsonl"),
        _c4,
        " ",
        documents=True,
        evaluation_rows=1100,
    ),
    "demo": Corpus(("wiki_demo.txt",), ("c4_demo.jsonl",), lambda use: [], "\n\n", documents=True),
}


def data_folder() -> Path | None:
    """The folder named by SPARSELAB_DATA, if it is set."""
    named = os.environ.get("SPARSELAB_DATA")
    return Path(named).expanduser() if named else None


def local_file(corpus: str, use: str) -> Path | None:
    """The local file of a corpus for 'evaluation' or 'calibration', or None."""
    folder = cache("demo") if corpus == "demo" else data_folder()
    if folder is None:
        return None
    files = [folder / name for name in getattr(CORPORA[corpus], f"{use}_files")]
    return next((file for file in files if file.exists()), None)


def sha256_of(corpus: str | Path, use: str) -> str:
    """What a text is read from for 'evaluation' or 'calibration': the sha256 of its local file,
    else 'Hub'."""
    file = local_file(corpus, use) if corpus in CORPORA else Path(corpus)
    return sha256(file) if file else "Hub"


def rows_of(corpus: str, use: str) -> Sequence[str]:
    """The rows (documents, articles, sentences) of a corpus, local first, else from the Hub."""
    rows = _all_rows(corpus, use)
    return rows[: CORPORA[corpus].evaluation_rows] if use == "evaluation" else rows


def _all_rows(corpus: str, use: str) -> Sequence[str]:
    file = local_file(corpus, use)
    if file is not None:
        return _read(file)
    if corpus == "demo":
        raise SparselabError(
            "the demo texts are not on this machine yet. Run `make setup`, or "
            "`python -m sparselab fetch`, once with network."
        )
    wanted = " or ".join(getattr(CORPORA[corpus], f"{use}_files"))
    advice = (
        f"Set SPARSELAB_DATA to a folder that holds {wanted}, connect to the network, or use"
        " corpus='demo'."
    )
    if not online():
        raise SparselabError(
            f"the {use} text of {corpus} is not on this machine and the Hub cannot be reached."
            f" {advice}"
        )
    try:
        return CORPORA[corpus].hub(use)
    except Exception as error:
        raise SparselabError(
            f"the {use} text of {corpus} could not be read from the Hub "
            f"({type(error).__name__}). {advice}"
        ) from error


def _read(file: Path) -> list[str]:
    if file.suffix == ".jsonl":  # a file's lines end at \n, not at the separators inside strings
        with _readable(file) as lines:
            numbered = enumerate(lines, 1)
            return [_document(file, number, line) for number, line in numbered if line.strip()]
    text = "".join(TextFile(file))
    if file.name.startswith("ptb"):
        return [line.strip() for line in text.split("\n") if line.strip()]  # one sentence a line
    if file.name == "wiki_demo.txt":
        return [line for line in text.split("\n") if line.strip()]  # one article a line
    return [text]


def _document(file: Path, number: int, line: str) -> str:
    try:
        if isinstance(text := json.loads(line)["text"], str):
            return text
    except (ValueError, KeyError, TypeError):
        pass
    raise SparselabError(
        f'{file}, line {number}, is not a JSON object with a "text" that is a string. Mend or'
        " remove that line."
    )


@contextmanager
def _readable(file: Path) -> Iterator[TextIO]:
    """A text file, opened, also one that xz has packed."""
    try:
        with (lzma.open if file.suffix == ".xz" else open)(file, "rt", encoding="utf8") as opened:
            yield opened
    except (UnicodeDecodeError, lzma.LZMAError, EOFError) as error:
        raise SparselabError(
            f"{file} could not be read as text in UTF-8 ({error}). Convert it, or choose another"
            " file."
        ) from error


@dataclass(frozen=True)
class TextFile:
    """The parts of a text file, in order; never the whole at once."""

    file: Path

    def __iter__(self) -> Iterator[str]:
        with _readable(self.file) as opened:
            while part := opened.read(PART):
                yield part


def parts_of(corpus: str | Path, use: str) -> Iterable[str]:
    """The text of a corpus, or of a text file, in parts."""
    if isinstance(corpus, Path) or corpus not in CORPORA:
        path = Path(corpus)
        if not path.is_file():
            raise SparselabError(
                f"unknown text {str(corpus)!r}.{did_you_mean(str(corpus), CORPORA)} "
                "The path of a text file serves too."
            )
        return TextFile(path)
    joiner = CORPORA[corpus].evaluation_joiner if use == "evaluation" else " "
    return [joiner.join(rows_of(corpus, use))]
