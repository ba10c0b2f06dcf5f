"""The items of the zero-shot tasks, read from local files, with the prompts of lm-eval 0.4.

An item is a context and several continuations. What the files themselves lack stays missing:
BoolQ's passages come without the titles that SuperGLUE puts before them.
"""

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from ..data.corpora import data_folder
from ..errors import SparselabError, did_you_mean

ANSWER = "\nAnswer:"
SENTENCE_END = re.compile(r"""(?<=[.!?])["')]* """)


@dataclass(frozen=True)
class Item:
    """Context and continuation of every choice, and which is right; an item with one choice asks
    whether the model, taking the likeliest token each time, writes it."""

    requests: tuple[tuple[str, str], ...]
    gold: int = 0

    def __post_init__(self):
        complete = all(choice.strip() for _, choice in self.requests)
        if not complete or not 0 <= self.gold < len(self.requests):
            raise ValueError("an item lacks a choice, or its right answer is none of them")


@dataclass(frozen=True)
class Task:
    """A file, how one of its rows becomes an item, and whether lm-eval reports the
    length-normalised accuracy too."""

    file: str
    item: Callable[[dict], Item]
    norm: bool = False


def _choices(context: str, choices: Iterable[str], gold: int | str) -> Item:
    """The same context before every choice."""
    return Item(tuple((context, " " + choice) for choice in choices), int(gold))


def _rte(row: dict) -> Item:
    context = f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?{ANSWER}"
    return _choices(context, ("True", "False"), row["label"])


def _winogrande(row: dict) -> Item:
    """Partial scoring: the sentence's end is scored after each of the two beginnings, not the names
    themselves."""
    end = " " + row["continuation"]
    return Item(tuple((context, end) for context in row["context_options"]), row["gold"])


def _last_word(row: dict) -> Item:
    return Item(((row["context"], " " + row["continuation"]),))


def _hellaswag(row: dict) -> Item:
    """lm-eval capitalises the last, unfinished sentence of a context and drops WikiHow's bracketed
    marks."""
    context = row["context"]
    if not context.endswith("."):
        begin = max((match.end() for match in SENTENCE_END.finditer(context)), default=0)
        context = context[:begin] + context[begin:].capitalize()
    return _choices(_clean(context), map(_clean, row["endings"]), row["gold"])


def _clean(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _question(row: dict, end: str = ANSWER) -> Item:
    return _choices(row["query"].removeprefix("Passage: ") + end, row["choices"], row["gold"])


TASKS = {
    "boolq": Task("boolq.jsonl", _question),
    "rte": Task("rte-dev.tsv", _rte),
    "hellaswag": Task("hellaswag-val.txt.gz", _hellaswag, norm=True),
    "winogrande": Task("winogrande.jsonl", _winogrande),
    "arc_easy": Task("arc_easy.jsonl", _question, norm=True),
    "arc_challenge": Task("arc_challenge.jsonl", _question, norm=True),
    "openbookqa": Task("openbook_qa.jsonl", partial(_question, end=""), norm=True),
    # The query of PIQA ends the line itself.
    "piqa": Task("piqa.jsonl", partial(_question, end="Answer:"), norm=True),
    "lambada_openai": Task("lambada_openai.jsonl", _last_word),
}


def task_file(name: str, folder: str | Path | None = None) -> Path:
    """Where a task's items are: in the folder, or in that of SPARSELAB_DATA; a SparselabError where
    they are not."""
    if name not in TASKS:
        raise SparselabError(f"unknown task {name!r}.{did_you_mean(name, TASKS)}")
    if not folder and data_folder() is None:
        raise SparselabError(
            "the zero-shot tasks are read from files: set SPARSELAB_DATA to a folder that holds "
            "zeroshot/, pass folder=, or let lm-eval fetch them with harness=True."
        )
    folder = Path(folder).expanduser() if folder else data_folder() / "zeroshot"
    file = folder / TASKS[name].file
    if not file.is_file():
        raise SparselabError(
            f"the task {name} needs the file {file.name}, which is not in {file.parent}. Put it"
            " there, pass another folder=, or let lm-eval fetch it with harness=True."
        )
    return file


def items(name: str, limit: int | None = None, folder: str | Path | None = None) -> list[Item]:
    """The first so many items of a task (None: all) with lm-eval's prompts."""
    file = task_file(name, folder)
    try:
        found = [TASKS[name].item(row) for row in task_rows(file, limit)]
        if not found:
            raise ValueError("it holds no items")
        return found
    except (KeyError, ValueError, TypeError, OSError, EOFError) as error:  # the last two: gzip's
        raise SparselabError(
            f"{file} is not written as the task {name} expects ({type(error).__name__}: {error})."
        ) from error


def task_rows(file: Path, limit: int | None = None) -> list[dict]:
    """The first so many rows of a task's file, as they stand there."""
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf8", newline="") as lines:
        return list(islice(READERS[file.suffix](lines), limit))


def _json_rows(lines: Iterable[str]) -> Iterator[dict]:
    return map(json.loads, lines)


def _table_rows(lines: Iterable[str]) -> Iterator[dict]:
    return csv.DictReader(lines, delimiter="\t")


def _six_line_rows(lines: Iterable[str]) -> Iterator[dict]:
    """HellaSwag as plain text: context, number of the right ending, four endings."""
    lines = (line.rstrip("\n") for line in lines)
    for context, gold, *endings in zip(*[lines] * 6, strict=False):
        yield {"context": context, "gold": gold, "endings": endings}


READERS = {".jsonl": _json_rows, ".tsv": _table_rows, ".gz": _six_line_rows}
