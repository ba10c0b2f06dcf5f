"""Zero-shot tasks by the definition of lm-evaluation-harness, from local files; or by the harness
itself.

An item is a context and several continuations; the answer is the continuation with the highest
summed log-likelihood (acc), or the highest after division by its length in characters (acc_norm).
Prompts are those of lm-eval 0.4. What the files themselves lack stays missing: BoolQ's passages
come without the titles that SuperGLUE puts before them.
"""

import csv
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..data.corpora import data_folder
from ..errors import SparselabError, did_you_mean
from ..models.architecture import context_length, model_name
from ..models.validation import check_finite, check_ready
from ..runtime.files import sha256
from ..runtime.memory import batch_size, with_batch_halving
from .perplexity import Perplexity

ANSWER = "\nAnswer:"
SENTENCE_END = re.compile(r"""(?<=[.!?])["')]* """)
# Metrics of a row by the harness's names for them.
HARNESS = {
    "accuracy": "acc",
    "stderr": "acc_stderr",
    "accuracy_norm": "acc_norm",
    "stderr_norm": "acc_norm_stderr",
    "perplexity": "perplexity",
    "perplexity_stderr": "perplexity_stderr",
}


@dataclass(frozen=True)
class Item:
    """Context and continuation of every choice, and which is right; an item with one choice asks
    whether the model, taking the likeliest token each time, writes it."""

    requests: tuple[tuple[str, str], ...]
    gold: int = 0

    def __post_init__(self):
        if not 0 <= self.gold < len(self.requests) or not all(
            choice.strip() for _, choice in self.requests
        ):
            raise ValueError(
                "an item without choices, with an empty one, or with a right answer that is none of"
                " them"
            )


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
    return _choices(
        f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?{ANSWER}",
        ("True", "False"),
        row["label"],
    )


def _winogrande(row: dict) -> Item:
    """Partial scoring: the sentence's end is scored after each of the two beginnings, not the names
    themselves."""
    return Item(
        tuple((context, " " + row["continuation"]) for context in row["context_options"]),
        row["gold"],
    )


def _hellaswag(row: dict) -> Item:
    """lm-eval capitalises the last, unfinished sentence of a context and drops WikiHow's bracketed
    marks."""
    context = row["context"]
    if not context.endswith("."):
        begin = [0, *(match.end() for match in SENTENCE_END.finditer(context))][-1]
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
    "piqa": Task(
        "piqa.jsonl", partial(_question, end="Answer:"), norm=True
    ),  # its query ends the line
    "lambada_openai": Task(
        "lambada_openai.jsonl", lambda row: Item(((row["context"], " " + row["continuation"]),))
    ),
}


def task_file(name: str, folder: str | Path | None = None) -> Path:
    """Where a task's items are: in the folder, or in that of SPARSELAB_DATA; a SparselabError where
    they are not."""
    if name not in TASKS:
        raise SparselabError(f"unknown task {name!r}.{did_you_mean(name, TASKS)}")
    data = data_folder()
    if folder is None and data is None:
        raise SparselabError(
            "the zero-shot tasks are read from files: set SPARSELAB_DATA to a folder that holds "
            "zeroshot/, pass folder=, or let lm-eval fetch them with harness=True."
        )
    file = (
        Path(folder).expanduser() / TASKS[name].file
        if folder
        else data / "zeroshot" / TASKS[name].file
    )
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
    except (
        KeyError,
        ValueError,
        TypeError,
        OSError,
        EOFError,
    ) as error:  # the last two: not gzip, or cut off
        raise SparselabError(
            f"{file} is not written as the task {name} expects ({type(error).__name__}: {error})."
        ) from error


def task_rows(file: Path, limit: int | None = None) -> list[dict]:
    """The first so many rows of a task's file, as they stand there."""
    with (gzip.open if file.suffix == ".gz" else open)(
        file, "rt", encoding="utf8", newline=""
    ) as lines:
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


@torch.no_grad()
def loglikelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[tuple[str, str]],
    *,
    progress: bool = True,
) -> list[tuple[float, bool]]:
    """For every (context, continuation) the summed log-likelihood of the continuation's tokens in
    nats, and whether each is the likeliest at its place. What is longer than the model's context
    loses tokens on the left, as in lm-eval.

    Long inputs go first, so that memory runs out at once or not at all; requests that differ in
    their last token only ('yes' and 'no') share a forward pass. Contexts must not be empty. Raises
    a SparselabError for a continuation that does not fit the model.
    """
    check_ready(model)
    wanted = defaultdict(list)  # input tokens -> [(number of the request, continuation's tokens)]
    for number, (ids, count) in enumerate(_encoded(tokenizer, requests)):
        if not 0 < count <= min(len(ids) - 1, context_length(model)):
            raise SparselabError(
                f"the continuation {requests[number][1]!r} has {count} tokens: it must have at"
                f" least one, come after a context, and fit the {context_length(model)} positions"
                f" of {model_name(model)}."
            )
        kept = ids[-context_length(model) - 1 :]
        wanted[tuple(kept[:-1])].append((number, kept[-count:]))
    inputs = sorted(wanted, key=len, reverse=True)
    if not inputs:
        return []
    with tqdm(
        total=len(requests), desc="zero-shot", unit="choice", disable=not progress, leave=False
    ) as bar:
        found = with_batch_halving(
            lambda size: _pass(model, inputs, wanted, size * len(inputs[0]), bar),
            batch_size(model, len(inputs[0])),
        )
    check_finite(model, torch.tensor([value for value, _ in found.values()]), "log-likelihoods")
    return [found[number] for number in range(len(requests))]


def _encoded(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[tuple[str, str]]
) -> Iterator[tuple[list[int], int]]:
    """Token ids of context and continuation as one text, and how many of the ids are the
    continuation's: those that are more than the context alone has, spaces at its end not counted.
    """
    if not requests:
        return
    whole = tokenizer([context + continuation for context, continuation in requests])["input_ids"]
    alone = tokenizer([context.rstrip() for context, _ in requests])["input_ids"]
    for ids, context in zip(whole, alone, strict=True):
        yield ids, len(ids) - len(context)


def _pass(
    model: nn.Module, inputs: list[tuple[int, ...]], wanted: dict, tokens: int, bar
) -> dict[int, tuple[float, bool]]:
    """Results by the request's number, at most so many padded tokens at once."""
    bar.reset()
    found, start = {}, 0
    while start < len(inputs):
        part = inputs[start : start + max(1, tokens // len(inputs[start]))]
        found.update(_score(model, part, wanted))
        bar.update(len(found) - bar.n)
        start += len(part)
    return found


def _score(
    model: nn.Module, part: list[tuple[int, ...]], wanted: dict
) -> dict[int, tuple[float, bool]]:
    """One forward pass. Inputs are padded on the right, where causal attention never looks."""
    ids = pad_sequence([torch.tensor(sequence) for sequence in part], batch_first=True).to(
        model.device
    )
    first = min(len(sequence) - len(target) for sequence in part for _, target in wanted[sequence])
    logits = model(
        ids, use_cache=False, logits_to_keep=ids.shape[1] - first
    ).logits  # [b, longest - first, vocabulary]
    found = {}
    for row, sequence in zip(logits, part, strict=True):
        for number, target in wanted[sequence]:
            target = torch.tensor(target, device=row.device)
            scores = (
                row[len(sequence) - len(target) - first : len(sequence) - first]
                .float()
                .log_softmax(-1)
            )
            found[number] = (
                scores.gather(1, target[:, None]).sum().item(),
                bool((scores.argmax(-1) == target).all()),
            )
    return found


def answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    *,
    limit: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """One row an item: `loglikelihoods` of its choices in nats, `gold`, and whether the answer is
    right by their sum (`correct`) and by their sum per character (`correct_norm`). Two models' rows
    belong together: compare them paired.
    """
    asked = items(task, limit, folder)
    found = iter(
        loglikelihoods(
            model, tokenizer, [one for item in asked for one in item.requests], progress=progress
        )
    )
    return pd.DataFrame([_answer(item, [next(found) for _ in item.requests]) for item in asked])


def _answer(item: Item, found: list[tuple[float, bool]]) -> dict:
    values = [value for value, _ in found]
    if len(values) == 1:
        return {
            "loglikelihoods": values,
            "gold": 0,
            "correct": found[0][1],
            "correct_norm": found[0][1],
        }
    per_character = [
        value / (len(choice) - 1) for value, (_, choice) in zip(values, item.requests, strict=True)
    ]
    return {
        "loglikelihoods": values,
        "gold": item.gold,
        "correct": _highest(values) == item.gold,
        "correct_norm": _highest(per_character) == item.gold,
    }


def _highest(values: list[float]) -> int:
    return values.index(max(values))


def zeroshot(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[str] = tuple(TASKS),
    *,
    limit: int | None = None,
    folder: str | Path | None = None,
    harness: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Zero-shot accuracy with its standard error, by lm-eval's definition.

    Parameters
    ----------
    model, tokenizer
        What `sl.load` gave.
    tasks : iterable of str
        Names as in lm-eval, see `TASKS`.
    limit : int, optional
        The first so many items of each task. Default: all.
    folder : str or Path, optional
        Where the files are. Default: zeroshot/ in the folder that SPARSELAB_DATA names.
    harness : bool
        Let an installed lm-eval do it, with its own data from the Hub, on the live model (it comes
        with the extra `eval`, see the README); then any of its tasks will do.
    progress : bool
        Show a progress bar.

    Returns
    -------
    DataFrame
        One row a task: acc, acc_norm where lm-eval reports that, for LAMBADA the perplexity of the
        last word too, each with its standard error; `chance` is the share that guessing gets.

    Raises
    ------
    SparselabError
        Names the file that is missing and where it was sought.
    """
    if isinstance(tasks, str):
        raise SparselabError(f"tasks={tasks!r}: pass a list of names, such as [{tasks!r}].")
    if limit is not None and limit < 1:
        raise SparselabError(f"limit={limit}: at least one item, or None for all.")
    if harness:
        return _by_harness(model, tokenizer, list(tasks), limit, progress)
    files = {task: task_file(task, folder) for task in tasks}  # all are there before minutes pass
    return pd.DataFrame(
        [_row(model, tokenizer, task, file, limit, progress) for task, file in files.items()]
    )


def _row(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    file: Path,
    limit: int | None,
    progress: bool,
) -> dict:
    table = answers(model, tokenizer, task, limit=limit, folder=file.parent, progress=progress)
    count = table.loglikelihoods.map(len)
    row = {
        "model": model_name(model),
        "task": task,
        "items": len(table),
        "accuracy": table.correct.mean(),
        "stderr": table.correct.sem(),
        **dict.fromkeys([*HARNESS][2:], float("nan")),
        "chance": (1 / count).mean() if count.max() > 1 else 0.0,
        "source": f"{file.name} sha256:{sha256(file)[:12]}",
    }
    if TASKS[task].norm:
        row |= {"accuracy_norm": table.correct_norm.mean(), "stderr_norm": table.correct_norm.sem()}
    if count.max() == 1:
        ppl = Perplexity(-torch.tensor(table.loglikelihoods.sum()), 1)
        row |= {"perplexity": float(ppl), "perplexity_stderr": ppl.stderr}
    return row


def _by_harness(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list,
    limit: int | None,
    progress: bool,
) -> pd.DataFrame:
    """The same table from lm-eval itself; tasks by name, or as dicts of its configuration."""
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise SparselabError(
            "harness=True needs lm-eval: pip install 'lm-eval>=0.4.13,<0.5'. Without it, the tasks"
            " are read from local files, by the same definition."
        ) from None
    check_ready(model)
    try:
        found = lm_eval.simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer),
            tasks=tasks,
            limit=limit,
            bootstrap_iters=1000,
            log_samples=False,
        )
    except Exception as error:
        raise SparselabError(
            f"lm-eval could not do {', '.join(map(str, tasks))} ({type(error).__name__}: {error})."
            " It reads its data from the Hub; without network, use harness=False."
        ) from error
    version = f"lm-eval {lm_eval.__version__}"
    return pd.DataFrame(
        [
            {
                "model": model_name(model),
                "task": task,
                "items": found["n-samples"][task]["effective"],
                **{
                    ours: result.get(f"{theirs},none", float("nan"))
                    for ours, theirs in HARNESS.items()
                },
                "chance": float("nan"),
                "source": f"{version}, task version {found['versions'].get(task)}",
            }
            for task, result in found["results"].items()
        ]
    )
