"""One exception class: its text is a sentence that says what was wrong and what to do about it."""

import difflib
from collections.abc import Iterable


class SparselabError(ValueError):
    """Bad input, a missing model or text, or numerics that cannot go on. The message is meant for
    the user."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for a mistyped name, then what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"{hint} Known: {', '.join(known)}."
