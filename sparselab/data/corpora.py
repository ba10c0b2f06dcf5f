"""Texts as the papers read them: calibration windows and evaluation tokens. None of them is
shipped."""

import json
import lzma
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import SparselabError, did_you_mean
from ..models.hub import online
from ..runtime.files import cache, sha256

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
    split = "test" if use == "evaluation" else "train"
    return _hub_rows("Salesforce/wikitext", "text", name="wikitext-2-raw-v1", split=split)


def _ptb(use: str) -> Sequence[str]:
    split = "test" if use == "evaluation" else "train"
    return _hub_rows(
        "parquet", "sentence", data_files={"rows": PTB_HUB.format(split)}, split="rows"
    )


def _c4(use: str) -> Sequence[str]:
    file = (
        "en/c4-train.00000-of-01024.json.gz"
        if use == "calibration"
        else "en/c4-validation.00000-of-00008.json.gz"
    )
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
    return (
        Path(os.environ["SPARSELAB_DATA"]).expanduser()
        if os.environ.get("SPARSELAB_DATA")
        else None
    )


def local_file(corpus: str, use: str) -> Path | None:
    """The local file of a corpus for 'evaluation' or 'calibration', or None."""
    folder = cache("demo") if corpus == "demo" else data_folder()
    names = getattr(CORPORA[corpus], f"{use}_files")
    return next((folder / name for name in names if folder and (folder / name).exists()), None)


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
    text = _text(file)
    if file.suffix == ".jsonl":  # not splitlines: strings may hold line separators other than \n
        return [
            _document(file, number, line)
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip()
        ]
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


def _text(file: Path) -> str:
    """A text file, also one that xz has packed."""
    try:
        with (lzma.open if file.suffix == ".xz" else open)(file, "rt", encoding="utf8") as opened:
            return opened.read()
    except (UnicodeDecodeError, lzma.LZMAError, EOFError) as error:
        raise SparselabError(
            f"{file} could not be read as text in UTF-8 ({error}). Convert it, or choose another"
            " file."
        ) from error


def joined(corpus: "str | Path", use: str) -> str:
    """The whole text of a corpus, or of a text file, as one string."""
    if isinstance(corpus, Path) or corpus not in CORPORA:
        path = Path(corpus)
        if not path.is_file():
            raise SparselabError(
                f"unknown text {str(corpus)!r}.{did_you_mean(str(corpus), CORPORA)} "
                "The path of a text file serves too."
            )
        return _text(path)
    joiner = CORPORA[corpus].evaluation_joiner if use == "evaluation" else " "
    return joiner.join(rows_of(corpus, use))
