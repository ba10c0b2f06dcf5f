"""Token ids from a text: the calibration windows, and what a model is evaluated on."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path

import torch
from torch import LongTensor
from transformers import PreTrainedTokenizerBase

from ..errors import SparselabError
from .corpora import CORPORA, parts_of, rows_of
from .tokenising import encode

C4_EVALUATION_TOKENS = 256 * 2048  # the papers cut C4 validation to 256 windows of 2,048 tokens


def tokens(
    tokenizer: PreTrainedTokenizerBase,
    corpus: str | Path,
    *,
    windows: int | None = None,
    seqlen: int = 2048,
) -> LongTensor:
    """Token ids of a text to evaluate on, tokenised as one string, as the papers do it.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        What `sl.load` gave.
    corpus : str or Path
        'wikitext2' (test rows joined by blank lines), 'ptb' (test sentences joined by spaces), 'c4'
        (the first 1,100 validation documents joined by spaces, cut to 256 x 2,048 tokens), 'demo'
        (Wikipedia articles joined by blank lines), or a text file. A file is read in parts, so it
        may be larger than memory; its tokens may not.
    windows : int, optional
        Only so many windows of `seqlen` tokens, evenly spaced over the whole text, one after the
        other. Neighbouring windows are of one article and tell less; the papers take all.
    seqlen : int
        Tokens in a window; used with `windows` only.

    Returns
    -------
    LongTensor of shape (n,)
        With what the tokenizer puts before a text (`<s>`), and without what it appends (`</s>`).
        With `windows`: of shape (windows * seqlen,).

    Raises
    ------
    SparselabError
        Where the text is not on this machine: where it was sought, and what brings it. If it has
        fewer windows than were asked for.
    """
    ids = encode(tokenizer, parts_of(corpus, "evaluation"))
    ids = ids[:C4_EVALUATION_TOKENS] if corpus == "c4" else ids
    return ids if windows is None else spread(ids, windows, seqlen, corpus)


def spread(ids: LongTensor, windows: int, seqlen: int, text: str | Path) -> LongTensor:
    """So many windows of a text, each from the middle of its share: ids [n] -> [windows * seqlen].
    text: what an error calls it."""
    there = len(ids) // seqlen if seqlen > 0 else 0
    if not there:
        raise SparselabError(
            f"the text {text} has {len(ids)} tokens, which is less than a window of"
            f" seqlen={seqlen}. Use a longer text or a seqlen from 1 to {len(ids)}."
        )
    if not 1 <= windows <= there:
        raise SparselabError(
            f"windows={windows} of {seqlen} tokens: the text {text} has {len(ids)} tokens, which"
            f" are {there} whole windows. Ask for 1 to {there}, or choose a smaller seqlen."
        )
    places = (2 * torch.arange(windows) + 1) * there // (2 * windows)
    return ids[: there * seqlen].view(there, seqlen)[places].flatten()


def calibration(
    tokenizer: PreTrainedTokenizerBase,
    corpus: str | Path,
    *,
    samples: int = 128,
    seqlen: int = 2048,
    seed: int = 0,
) -> LongTensor:
    """Random windows for calibration, drawn as SparseGPT and Wanda draw them.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        What `sl.load` gave.
    corpus : str or Path
        'c4' and 'demo': a document is drawn with replacement, rejected unless it is longer than
        `seqlen`, and a window inside it. 'wikitext2', 'ptb' and text files: windows of the joined
        training text (locally the validation text stands in for it).
    samples, seqlen : int
        Windows, and tokens in each.
    seed : int
        Only Python's ``random.Random(seed)`` decides.

    Returns
    -------
    LongTensor of shape (samples, seqlen)
        A window has what the tokenizer puts before a text (`<s>`) only where it begins with it.

    Raises
    ------
    SparselabError
        Where the text is missing, or too short for one window.
    """
    if samples < 1 or seqlen < 2:
        raise SparselabError(
            f"calibration needs samples >= 1 and seqlen >= 2, not samples={samples},"
            f" seqlen={seqlen}."
        )
    draw = random.Random(seed)
    if corpus in CORPORA and CORPORA[corpus].documents:
        rows = rows_of(corpus, "calibration")
        documents = _documents(tokenizer, rows, seqlen, draw, corpus)
    else:
        ids = encode(tokenizer, parts_of(corpus, "calibration"))
        _long_enough(len(ids), seqlen, corpus)
        documents = repeat(ids)
    windows = []
    for ids in islice(documents, samples):
        start = draw.randint(0, len(ids) - seqlen - 1)
        windows.append(ids[start : start + seqlen])
    return torch.stack(windows)


def _documents(
    tokenizer, rows: Sequence[str], seqlen: int, draw: random.Random, corpus: str
) -> Iterator[LongTensor]:
    """Documents drawn with replacement, those that are longer than seqlen; each is tokenised
    once."""
    seen: dict[int, LongTensor] = {}
    if not rows:
        _long_enough(0, seqlen, corpus)
    while True:
        i = draw.randint(0, len(rows) - 1)
        if i not in seen:
            seen[i] = encode(tokenizer, rows[i])
        if len(seen[i]) > seqlen:
            yield seen[i]
        elif len(seen) == len(rows):
            _long_enough(max(map(len, seen.values())), seqlen, corpus)


def _long_enough(length: int, seqlen: int, corpus) -> None:
    if length <= seqlen:
        raise SparselabError(
            f"{corpus}: its longest piece of text has {length} tokens, too short for a window of "
            f"seqlen={seqlen} (one more is needed). Use a shorter seqlen or a longer text."
        )
