"""Token ids of texts of any length, with what a tokenizer puts before a text and without what it
appends.

A long text is tokenised in windows that overlap. Two neighbours are joined at a place in their
overlap where both have the same tokens on either side, so that the ids are those of the whole text
tokenised at once, and only a few windows are in memory. Where there is no such place, as in a
word without an end, the windows grow, and in the end the whole is tokenised at once.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice

import torch
from tokenizers import Encoding
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from torch import LongTensor
from transformers import PreTrainedTokenizerBase

WINDOW, OVERLAP = 2**16, 2**10  # characters
AT_ONCE = 8  # windows: the tokenizer divides them among the processors
AGREEMENT = 4  # tokens on either side of a cut that two windows must have in common
PROBE = "The words of a text, and 2 numbers: 1, 35."


class NoCut(Exception):
    """A longer window has other tokens around an earlier cut, so that no cut is certain."""


def encode(tokenizer: PreTrainedTokenizerBase, text: str | Iterable[str]) -> LongTensor:
    """Token ids of a text, the same as if it were tokenised at once.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        What `sl.load` gave.
    text : str or iterable of str
        The text, or its parts in order. It is iterated more than once, so it must not be an
        iterator.

    Returns
    -------
    LongTensor of shape (n,)
        What the tokenizer puts before a text (`<s>`) is kept, as in the papers. What it appends
        (`</s>`, `[SEP]`) is left out, because a model would not go on after it, and the windows
        that are cut from a text do not end where the text does.
    """
    parts = [text] if isinstance(text, str) else text
    windows = _windows(parts)
    first = [*islice(windows, 2)]
    if len(first) == 2 and _can_be_cut(tokenizer):
        with suppress(NoCut):
            return _joined(tokenizer, first[0], chain(first, windows))
    return torch.tensor(encode_each(tokenizer, ["".join(parts)])[0], dtype=torch.long)


def encode_each(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, with what the tokenizer puts before it and without what it appends;
    each text at once."""
    appended = len(added(tokenizer, *texts)[1])
    return [row[: len(row) - appended] for row in tokenizer(texts, verbose=False)["input_ids"]]


def added(tokenizer: PreTrainedTokenizerBase, *texts: str) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before each text, and those that it appends; found with one of
    the texts where it has no token for English."""
    for probe in (PROBE, *texts):
        whole = tokenizer(probe, verbose=False).input_ids
        text = tokenizer(probe, add_special_tokens=False, verbose=False).input_ids
        for start in range(len(whole) - len(text) + 1 if text else 0):
            end = start + len(text)
            if whole[start:end] == text:
                return whole[:start], whole[end:]
    return [], []


class _Window:
    """A piece of text and its tokens: their ids, where each starts and ends, and its word."""

    def __init__(self, text: str, tokens: Encoding):
        self.text, self.ids, self.words = text, tokens.ids, tokens.word_ids
        self.spans = tokens.offsets

    def places(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Where the text can be cut between two of its characters: the place, low <= place < high,
        and the number of the token that starts there."""
        first = max(bisect_left(self.spans, (low,)), AGREEMENT + 1)
        for token in range(first, len(self.ids) - AGREEMENT + 1):
            (start_before, end_before), (start, _) = self.spans[token - 1 : token + 1]
            if start >= high:
                break
            inside = start < end_before or start == start_before
            last = self.spans[token + AGREEMENT - 1][1]
            # Spaces alone are not enough: how they are divided may depend on what follows them.
            if not inside and not self.text[start:last].isspace():
                yield start, token

    def begins_word(self, token: int) -> bool:
        """Whether a token belongs to another word than the one before it."""
        return self.words[token] != self.words[token - 1]

    def around(self, token: int) -> list[tuple]:
        """The tokens on either side of a cut, with their places counted from there."""
        origin = self.spans[token][0]
        found = []
        for near in range(token - AGREEMENT, token + AGREEMENT):
            start, end = self.spans[near]
            found.append((self.ids[near], start - origin, end - origin, self.begins_word(near)))
        return found


def _joined(tokenizer: PreTrainedTokenizerBase, beginning: str, texts: Iterator[str]) -> LongTensor:
    """Token ids of a long text, window by window."""
    before, _ = added(tokenizer, beginning)
    ids = array("q", before)  # it grows in place and becomes the tensor: no copies
    windows = _tokenised(tokenizer, texts)
    left, begin = next(windows), 0
    for right in windows:
        end, start = _cut(left, right, _cuts_words(tokenizer))
        if end:
            ids.extend(left.ids[begin:end])
            left, begin = right, start
        else:
            left = _longer(tokenizer, left, right, windows, begin)
    ids.extend(left.ids[begin:])
    return torch.frombuffer(ids, dtype=torch.long) if ids else torch.empty(0, dtype=torch.long)


def _windows(parts: Iterable[str]) -> Iterator[str]:
    """Windows of a text, each of which begins with the last characters of the one before."""
    window, overlap = "", 0
    for part in parts:
        for place in range(0, len(part), WINDOW):
            window += part[place : place + WINDOW]
            if len(window) >= WINDOW:
                yield window
                window, overlap = window[-OVERLAP:], OVERLAP
    if len(window) > overlap or not overlap:
        yield window


def _tokenised(tokenizer: PreTrainedTokenizerBase, texts: Iterator[str]) -> Iterator[_Window]:
    while batch := [*islice(texts, AT_ONCE)]:
        tokens = tokenizer(batch, add_special_tokens=False, verbose=False).encodings
        yield from map(_Window, batch, tokens)


def _can_be_cut(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer says where its tokens are, and divides a text into words from left to
    right: a regular expression that looks ahead may look at the whole text."""
    if not tokenizer.is_fast:
        return False
    words = repr(tokenizer.backend_tokenizer.pre_tokenizer).replace(r"(?!\S)", "")
    return "(?=" not in words and "(?!" not in words


def _cuts_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a cut may be inside a word. Where byte pairs are merged, two neighbouring tokens do
    not depend on the rest of their word, unless the words depend on how the text begins."""
    model, words = tokenizer.backend_tokenizer.model, tokenizer.backend_tokenizer.pre_tokenizer
    pairs = isinstance(model, BPE) and not model.ignore_merges and not model.dropout
    return pairs and isinstance(words, ByteLevel | Metaspace | None)


def _cut(left: _Window, right: _Window, inside_words: bool) -> tuple[int, int]:
    """The token of each window that comes first after a cut on which both agree; 0 and 0 where
    there is none. The first half of the overlap is left to `right` as context."""
    shift = len(left.text) - OVERLAP
    tokens = dict(right.places(OVERLAP // 2, OVERLAP))
    found = 0, 0
    for place, token in left.places(shift + OVERLAP // 2, len(left.text)):
        other = tokens.get(place - shift)
        if other and left.around(token) == right.around(other):
            if left.begins_word(token):
                return token, other
            found = token, other
    return found if inside_words else (0, 0)


def _longer(
    tokenizer: PreTrainedTokenizerBase,
    left: _Window,
    right: _Window,
    windows: Iterator[_Window],
    begin: int,
) -> _Window:
    """The left window with so many of those after it that it is twice as long. The tokens around
    `begin`, where it was joined to the one before, must stay as they were."""
    texts = [left.text, right.text[OVERLAP:]]
    while sum(map(len, texts)) < 2 * len(left.text) and (right := next(windows, None)):
        texts.append(right.text[OVERLAP:])
    (longer,) = _tokenised(tokenizer, iter(["".join(texts)]))
    near = slice(begin - AGREEMENT, begin + AGREEMENT)
    if begin and (left.ids[near], left.spans[near]) != (longer.ids[near], longer.spans[near]):
        raise NoCut
    return longer
