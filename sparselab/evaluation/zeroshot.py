"""Zero-shot tasks by the definition of lm-evaluation-harness: log-likelihoods and accuracies.

The answer to an item is the continuation with the highest summed log-likelihood (acc), or the
highest after division by its length in characters (acc_norm).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from torch import LongTensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ..data.tokenising import encode_each
from ..errors import SparselabError
from ..models.architecture import context_length, model_name
from ..models.validation import check_finite, check_ids
from ..runtime.files import sha256
from .forward import ModelInFiles, ModelInMemory, Texts, opened, tokenizer_for
from .harness import METRICS, by_harness
from .perplexity import Perplexity
from .placement import input_device
from .tasks import TASKS, Item, items, task_file

AT_ONCE = 1000  # requests that are tokenised at once
Found = dict[int, tuple[float, bool]]  # by the request's number, what `loglikelihoods` gives


def loglikelihoods(
    model: nn.Module | str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    requests: Sequence[tuple[str, str]],
    *,
    progress: bool = True,
    offload: str = "auto",
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
) -> list[tuple[float, bool]]:
    """How likely a model finds continuations of texts.

    What is longer than the model's context loses tokens on the left, as in lm-eval. Long inputs go
    first, so that memory runs out at once or not at all, and requests that differ in their last
    token only ('yes' and 'no') share a forward pass.

    Parameters
    ----------
    model, tokenizer, progress, offload, dtype, device
        As for `zeroshot`.
    requests : sequence of (str, str)
        Contexts, which must not be empty, and their continuations.

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
    with opened(model, offload, dtype, device) as forward:
        return _loglikelihoods(forward, tokenizer, requests, progress)


@torch.no_grad()
def _loglikelihoods(
    forward: ModelInMemory | ModelInFiles,
    tokenizer: PreTrainedTokenizerBase | None,
    requests: Sequence[tuple[str, str]],
    progress: bool,
) -> list[tuple[float, bool]]:
    model = forward.model
    tokenizer = tokenizer_for(model, tokenizer)
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
    texts = Texts(
        "zero-shot", "text", len(inputs), longest, lambda size: _batches(inputs, size * longest)
    )
    found: Found = {}
    for part in forward.scores(texts, partial(_score, inputs=inputs, wanted=wanted), progress):
        found |= part
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


def _batches(inputs: list[tuple[int, ...]], tokens: int) -> Iterator[LongTensor]:
    """All inputs, at most so many padded tokens at once; padded on the right, where causal
    attention never looks."""
    start = 0
    while start < len(inputs):
        part = inputs[start : start + max(1, tokens // len(inputs[start]))]
        yield pad_sequence([torch.tensor(sequence) for sequence in part], batch_first=True)
        start += len(part)


def _score(
    model: nn.Module, ids: LongTensor, first: int, *, inputs: list[tuple[int, ...]], wanted: dict
) -> Found:
    """One forward pass on padded inputs [b, seqlen], the first of which has the number `first`;
    logits only from where a continuation begins."""
    part = inputs[first : first + len(ids)]
    begin = min(len(sequence) - len(target) for sequence in part for _, target in wanted[sequence])
    outputs = model(
        ids.to(input_device(model)), use_cache=False, logits_to_keep=ids.shape[1] - begin
    )
    found = {}
    for row, sequence in zip(outputs.logits, part, strict=True):  # [seqlen - begin, vocabulary]
        end = len(sequence) - begin
        for number, target in wanted[sequence]:
            target = torch.tensor(target, device=row.device)
            scores = row[end - len(target) : end].float().log_softmax(-1)
            value = scores.gather(1, target[:, None]).sum().item()
            found[number] = value, bool((scores.argmax(-1) == target).all())
    return found


def answers(
    model: nn.Module | str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    task: str,
    *,
    limit: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    offload: str = "auto",
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """A model's answers to a task, item by item. The rows of two models belong together, so compare
    them paired.

    Parameters
    ----------
    model, tokenizer, limit, folder, progress, offload, dtype, device
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
    with opened(model, offload, dtype, device) as forward:
        return _answers(forward, tokenizer, asked, progress)


def _answers(
    forward: ModelInMemory | ModelInFiles,
    tokenizer: PreTrainedTokenizerBase | None,
    asked: list[Item],
    progress: bool,
) -> pd.DataFrame:
    requests = [request for item in asked for request in item.requests]
    found = iter(_loglikelihoods(forward, tokenizer, requests, progress))
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
    model: nn.Module | str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tasks: Iterable[str] = tuple(TASKS),
    *,
    limit: int | None = None,
    folder: str | Path | None = None,
    harness: bool = False,
    progress: bool = True,
    offload: str = "auto",
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Zero-shot accuracy with its standard error, by lm-eval's definition.

    Parameters
    ----------
    model : nn.Module, str or Path
        What `sl.load` gave; or the name of a model (a folder, a Hub id), which is then read from
        its files block by block, once for each task, and never whole in memory.
    tokenizer : PreTrainedTokenizerBase, optional
        Default: the one that belongs to the model.
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
    offload : {'auto', 'device', 'cpu', 'disk'}
        Where the activations wait between two blocks of a model in files, as for `sl.prune`.
    dtype, device : torch.dtype, torch.device or str, optional
        For a model that is given by name; they mean what they mean to `sl.load`.

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
        if not isinstance(model, nn.Module):
            raise SparselabError(
                f"harness=True takes a model in memory, and {str(model)!r} is a name. Pass what"
                " sl.load gives, or leave harness=True out."
            )
        return by_harness(model, tokenizer_for(model, tokenizer), list(tasks), limit)
    # All files are there, and well written, before minutes pass.
    files = {task: task_file(task, folder) for task in tasks}
    asked = {task: items(task, limit, file.parent) for task, file in files.items()}
    rows = []
    with opened(model, offload, dtype, device) as forward:
        for task, file in files.items():
            found = _answers(forward, tokenizer, asked[task], progress)
            source = f"{file.name} sha256:{sha256(file)[:12]}"
            row = {"model": model_name(forward.model), "task": task, **_row(task, found)}
            rows.append({**row, "source": source})
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
