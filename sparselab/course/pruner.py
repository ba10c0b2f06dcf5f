"""The reader's own file: functions that a check found right are kept there, and later lessons call
them."""

import inspect
import re
import textwrap
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ..runtime.files import write_whole

FILE = "my_pruner.py"
HEADER = '''"""My pruner: the functions that I wrote in the course.

A right answer to an exercise replaces its section; all else in this file is yours. A function that
needs more imports than these needs them here.
"""

import itertools
import math

import torch
from torch import nn

import sparselab as sl
'''


def keep(key: str, answer: Any, exercises: Collection[str]) -> str:
    """Write a right answer into its section of the working folder's file, with the functions of
    the notebook that it calls, but for those that are exercises themselves. A sentence about it; ''
    where there is nothing to keep: a plain value, or the package's own function."""
    function = inspect.unwrap(answer) if callable(answer) else answer
    if not inspect.isfunction(function) or function.__name__ == "<lambda>":
        return ""
    if str(function.__module__).startswith("sparselab."):
        return ""
    functions = [*_helpers(function, exercises, {function.__name__}), function]
    try:
        sources = [textwrap.dedent(inspect.getsource(each)).strip() for each in functions]
    except OSError:  # typed where no source is left
        return ""
    first, last = f"# --- {key} {function.__name__} ---", f"# --- end of {key} ---"
    section = "\n\n\n".join([first + "\n" + sources[0], *sources[1:]]) + f"\n{last}\n"
    file = Path(FILE)
    try:
        text = file.read_text(encoding="utf8") if file.exists() else HEADER
        old = re.compile(rf"^# --- {re.escape(key)} .*?^{re.escape(last)}\n?", re.M | re.S)
        if old.search(text):
            text = old.sub(lambda _: section, text, count=1)
        else:
            text = f"{text.rstrip()}\n\n\n{section}"
        write_whole(file, text.encode("utf8"))
    except (OSError, UnicodeError) as error:
        return f"it could not be kept in {FILE} ({error})."
    return f"kept in {FILE}."


def find(name: str, known: dict[str, Callable]) -> tuple[Callable | None, str]:
    """A function of the working folder's file, and what is wrong with the file. `known`: functions
    that those of the file may call and that it does not have."""
    file, names = Path(FILE), {**known, "__name__": Path(FILE).stem}
    if not file.exists():
        return None, ""
    try:
        exec(compile(file.read_text(encoding="utf8"), str(file.resolve()), "exec"), names)
    except Exception as error:  # whatever a reader's file may raise
        return None, (
            f"{FILE} cannot be read ({type(error).__name__}: {error}). The package's {name} is used"
            " until you repair the file."
        )
    found = names[name]
    return (None if found is known[name] else found), ""


def _helpers(function: Callable, exercises: Collection[str], seen: set[str]) -> list[Callable]:
    """The functions of the same notebook that a function calls, each after those it calls."""
    found = []
    for name in _names(function.__code__):
        other = function.__globals__.get(name)
        other = inspect.unwrap(other) if callable(other) else other
        own = inspect.isfunction(other) and other.__module__ == function.__module__
        if own and name not in seen and name not in exercises:
            seen.add(name)
            found += [*_helpers(other, exercises, seen), other]
    return found


def _names(code: Any) -> list[str]:
    """The global names, and attributes, that some code reads, with the functions inside it."""
    inner = [name for each in code.co_consts if inspect.iscode(each) for name in _names(each)]
    return [*code.co_names, *inner]
