"""What a hyper-parameter may be: its annotation says so, and is checked before any weight changes.

`int` is a whole number, `float` a finite one, `Annotated[int, ">= 1"]` has a bound, other notes in
`Annotated` are words for the reader; `Literal["row", "matrix"]` is one of these words,
`tuple[float, ...]` one or more numbers, `| None` allows None. Other annotations are not looked at,
and a default is always allowed. Numbers of numpy and torch are taken, and become Python's.
"""

import difflib
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache, wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import SparselabError
from ..patterns import number, plain

LARGEST = 1e18  # of a number: whole ones fit torch's 64 bits, squares fit float32
RELATIONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
KINDS = {
    bool: "True or False",
    int: f"a whole number (up to {LARGEST:g})",
    float: f"a finite number (up to {LARGEST:g})",
    str: "a text",
    NoneType: "None",
}
WRONG = object()


def check_fields(instance: Any) -> None:
    """Check a dataclass: a SparselabError for a field whose value its annotation does not allow."""
    hints = _hints(type(instance))
    for each in fields(instance):
        value = getattr(instance, each.name, None)
        if each.init and value is not each.default:
            value = allowed(type(instance).__name__, each.name, value, hints.get(each.name, Any))
            object.__setattr__(instance, each.name, value)  # it may be frozen


def checked(function: Callable) -> Callable:
    """A function whose options, the parameters with a default, are checked before it begins."""
    parameters, hints = inspect.signature(function), _hints(function)

    @wraps(function)
    def _call(*args, **kwargs):
        given = parameters.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            default = parameters.parameters[name].default
            if default is not inspect.Parameter.empty and value is not default:
                found = allowed(function.__name__, name, value, hints.get(name, Any))
                given.arguments[name] = found
        return function(*given.args, **given.kwargs)

    return _call


def allowed(owner: str, name: str, value: Any, hint: Any) -> Any:
    """The value in plain Python, if the annotation `hint` allows it.

    Raises
    ------
    SparselabError
        Names the owner, the parameter, the value given, and what is allowed.
    """
    found = _admit(plain(value), hint)
    if found is WRONG:
        raise SparselabError(f"{owner}({name}={value!r}): choose {_words(hint, name, value)}.")
    return found


@cache
def _hints(owner: Callable) -> dict[str, Any]:
    try:
        return get_type_hints(owner, include_extras=True)
    except NameError:  # one in quotes, of a name that is known elsewhere: texts are not looked at
        return {each.name: each.type for each in fields(owner)}


def _admit(value: Any, hint: Any) -> Any:
    """The value as it is to be used, or WRONG."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = _admit(value, parts[0])
        fits = found is not WRONG and all(_holds(found, note) for note in parts[1:])
        return found if fits else WRONG
    if origin in (Union, UnionType):
        for part in parts:
            if (found := _admit(value, part)) is not WRONG:
                return found
        return WRONG
    if origin is Literal:
        return value if value in [part for part in parts if type(part) is type(value)] else WRONG
    if origin is Sequence or (origin is tuple and parts[1:] == (...,)):
        return _admit_each(value, parts[0])
    if hint in (int, float):
        return _admit_number(value, hint)
    known = type(hint) is type  # a plain class
    return value if not known or isinstance(value, hint) else WRONG


def _admit_number(value: Any, kind: type) -> Any:
    value = number(value)
    if not abs(value) <= LARGEST:  # NaN too, and what is no number
        return WRONG
    if kind is float:
        return value
    return int(value) if value % 1 == 0 else WRONG


def _admit_each(values: Any, part: Any) -> Any:
    if not isinstance(values, Iterable) or isinstance(values, (str, Mapping)):
        return WRONG
    found = tuple(_admit(plain(value), part) for value in values)
    return found if found and WRONG not in found else WRONG


def _holds(value: Any, note: Any) -> bool:
    """Whether a number keeps a bound such as '>= 1'; other notes are for the reader."""
    relation, _, limit = str(note).partition(" ")
    free = value is None or relation not in RELATIONS
    return free or RELATIONS[relation](value, float(limit))


def _words(hint: Any, name: str, value: Any) -> str:
    """What an annotation allows, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        words = _words(parts[0], name, value)
        for note in parts[1:]:
            bound = str(note).split(" ")[0] in RELATIONS
            words += f", {name} {note}" if bound else f" ({note})"
        return words
    if origin in (Union, UnionType):
        return " or ".join(_words(part, name, value) for part in parts)
    if origin is Literal:
        close = difflib.get_close_matches(str(value), map(str, parts), n=1, cutoff=0.5)
        guess = f" (Did you mean {close[0]!r}?)" if close else ""
        return f"one of {' or '.join(map(repr, parts))}{guess}"
    if parts:
        return f"a tuple of one or more, each {_words(parts[0], name, value)}"
    return KINDS.get(hint) or f"a {hint.__name__}"
