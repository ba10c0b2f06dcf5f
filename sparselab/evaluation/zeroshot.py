"""Zero-shot tasks by the definition of lm-evaluation-harness: log-likelihoods and accuracies.

The answer to an item is the continuation with the highest summed log-likelihood (acc), or the
highest after division by its length in characters (acc_norm).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..data.tokenising import encode_each
from ..errors import SparselabError
from ..models.architecture import context_length, model_name
from ..models.validation import check_finite, check_ids, check_ready
from ..runtime.files import sha256
from ..runtime.memory import batch_size, with_batch_halving
from .harness import METRICS, by_harness
from .perplexity import Perplexity
from .placement import input_device
from .tasks import TASKS, Item, items, task_file

AT_ONCE = 1000  # requests that are tokenised at once
Found = dict[int, tuple[float, bool]]  # by the request's number, what `loglikelihoods` gives


@torch.no_grad()
def loglikelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[tuple[str, str]],
    *,
    progress: bool = True,
) -> list[tuple[float, bool]]:
    """How likely a model finds continuations of texts.

    What is longer than the model's context loses tokens on the left, as in lm-eval. Long inputs go
    first, so that memory runs out at once or not at all, and requests that differ in their last
    token only ('yes' and 'no') share a forward pass.

    Parameters
    ----------
    model, tokenizer
        What `sl.load` gave.
    requests : sequence of (str, str)
        Contexts, which must not be empty, and their continuations.
    progress : bool
        Show a progress bar.

    Returns
    -------
    list of (float, bool)
        For each request the log-likelihood of the continuation, summed over its tokens, in nats;
        and whether each of them is the likeliest in its place. An end of sequence that the
        tokenizer appends is no part of the continuation.

    Raises
    ------
    SparselabError
        For a continuation that does not fit the model, and for log-likelihoods that are not finite.
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
        check_ids(model, torch.tensor(ids), "a request")
        kept = ids[-context_length(model) - 1 :]
        wanted[tuple(kept[:-1])].append((number, kept[-count:]))
    inputs = sorted(wanted, key=len, reverse=True)
    if not inputs:
        return []
    longest = len(inputs[0])
    with tqdm(
        total=len(requests), desc="zero-shot", unit="choice", disable=not progress, leave=False
    ) as bar:
        found = with_batch_halving(
            lambda size: _pass(model, inputs, wanted, size * longest, bar),
            batch_size(model, longest),
        )
    check_finite(model, torch.tensor([value for value, _ in found.values()]), "log-likelihoods")
    return [found[number] for number in range(len(requests))]


def _encoded(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[tuple[str, str]]
) -> Iterator[tuple[list[int], int]]:
    """Token ids of context and continuation as one text, and how many of the ids are the
    continuation's: those that are more than the context alone has, spaces at its end not counted.
    """
    for start in range(0, len(requests), AT_ONCE):
        part = requests[start : start + AT_ONCE]
        whole = encode_each(tokenizer, [context + continuation for context, continuation in part])
        alone = encode_each(tokenizer, [context.rstrip() for context, _ in part])
        for ids, context in zip(whole, alone, strict=True):
            yield ids, len(ids) - len(context)


def _pass(model: nn.Module, inputs: list[tuple[int, ...]], wanted: dict, tokens: int, bar) -> Found:
    """Results of all inputs, at most so many padded tokens at once."""
    bar.reset()
    found, start = {}, 0
    while start < len(inputs):
        part = inputs[start : start + max(1, tokens // len(inputs[start]))]
        found.update(_score(model, part, wanted))
        bar.update(len(found) - bar.n)
        start += len(part)
    return found


def _score(model: nn.Module, part: list[tuple[int, ...]], wanted: dict) -> Found:
    """One forward pass. Inputs are padded on the right, where causal attention never looks."""
    ids = pad_sequence([torch.tensor(sequence) for sequence in part], batch_first=True)
    first = min(len(sequence) - len(target) for sequence in part for _, target in wanted[sequence])
    outputs = model(
        ids.to(input_device(model)), use_cache=False, logits_to_keep=ids.shape[1] - first
    )
    found = {}
    for row, sequence in zip(outputs.logits, part, strict=True):  # [longest - first, vocabulary]
        end = len(sequence) - first
        for number, target in wanted[sequence]:
            target = torch.tensor(target, device=row.device)
            scores = row[end - len(target) : end].float().log_softmax(-1)
            value = scores.gather(1, target[:, None]).sum().item()
            found[number] = value, bool((scores.argmax(-1) == target).all())
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
    """A model's answers to a task, item by item. The rows of two models belong together, so compare
    them paired.

    Parameters
    ----------
    model, tokenizer, limit, folder, progress
        As for `zeroshot`.
    task : str
        One of `TASKS`.

    Returns
    -------
    DataFrame
        One row an item: `loglikelihoods` of its choices in nats, `gold` (the number of the right
        one), and whether the answer is right by their sum (`correct`) and by their sum per
        character (`correct_norm`).

    Raises
    ------
    SparselabError
        As `zeroshot`.
    """
    asked = items(task, limit, folder)
    requests = [request for item in asked for request in item.requests]
    found = iter(loglikelihoods(model, tokenizer, requests, progress=progress))
    return pd.DataFrame([_answer(item, [*islice(found, len(item.requests))]) for item in asked])


def _answer(item: Item, found: list[tuple[float, bool]]) -> dict:
    values = [value for value, _ in found]
    if len(values) == 1:
        right = right_norm = found[0][1]
    else:
        lengths = [len(choice) - 1 for _, choice in item.requests]  # the space in front not counted
        by_length = [value / length for value, length in zip(values, lengths, strict=True)]
        right, right_norm = _highest(values) == item.gold, _highest(by_length) == item.gold
    return {
        "loglikelihoods": values,
        "gold": item.gold,
        "correct": right,
        "correct_norm": right_norm,
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
        return by_harness(model, tokenizer, list(tasks), limit)
    files = {task: task_file(task, folder) for task in tasks}  # all are there before minutes pass
    rows = []
    for task, file in files.items():
        found = answers(model, tokenizer, task, limit=limit, folder=file.parent, progress=progress)
        source = f"{file.name} sha256:{sha256(file)[:12]}"
        rows.append(
            {"model": model_name(model), "task": task, **_row(task, found), "source": source}
        )
    return pd.DataFrame(rows)


def _row(task: str, found: pd.DataFrame) -> dict:
    """Metrics of a task from its answers."""
    choices = found.loglikelihoods.map(len)
    row = {"items": len(found), **dict.fromkeys(METRICS, float("nan"))}
    row |= {"accuracy": found.correct.mean(), "stderr": found.correct.sem()}
    row["chance"] = (1 / choices).mean() if choices.max() > 1 else 0.0
    if TASKS[task].norm:
        row |= {"accuracy_norm": found.correct_norm.mean(), "stderr_norm": found.correct_norm.sem()}
    if choices.max() == 1:
        losses = [-values[0] for values in found.loglikelihoods]  # of the last words, in nats
        ppl = Perplexity(torch.tensor(losses), 1)
        row |= {"perplexity": float(ppl), "perplexity_stderr": ppl.stderr}
    return row
