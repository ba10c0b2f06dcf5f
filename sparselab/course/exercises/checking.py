"""Exercises: a check runs an answer on small cases, and where it is wrong says which mistake it
makes.

The bank of wrong answers is the check: an answer that gives what a wrong one gives makes the same
mistake. So every diagnosis can be tested, by handing the check each answer of the bank.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ALTERED = (
    "it changes its input in place: work on a copy (.clone()), the caller still needs the original."
)


@dataclass(frozen=True)
class Exercise:
    """One exercise. An answer is a function, or a plain value where `cases` is empty.

    `reference`: a right answer. `cases`: argument tuples to try it on. `wrong`: what the mistake is
    and how to think of it, with an answer that makes it. `right`: other right answers. `kind`:
    warm-up, core, find-the-bug or stretch. `minutes`: how long it takes. `rtol`: how far numbers
    may be apart.
    """

    reference: Any
    cases: tuple[tuple, ...] = ()
    wrong: dict[str, Any] = field(default_factory=dict)
    right: tuple = ()
    kind: str = "core"
    minutes: int = 5
    rtol: float = 1e-4

    def outputs(self, answer: Any) -> list:
        """What an answer gives on each case; a plain value gives itself. Raises Altered where it
        changes its inputs."""
        return [_call(answer, case) for case in self.cases] if self.cases else [answer]

    def verdict(self, answer: Any) -> tuple[str, str]:
        """('right' | 'wrong' | 'not attempted', a sentence)."""
        try:
            mine = [None] if answer is None or answer is ... else self.outputs(answer)
        except Altered:
            return "wrong", ALTERED
        except Exception as error:  # whatever a reader's code may raise
            return "wrong", f"it raises {type(error).__name__}: {error}"
        if all(value is None or value is ... for value in mine):
            return "not attempted", "the reference is used so that you can go on."
        expected = self.outputs(self.reference)
        if _same(mine, expected, self.rtol):
            return "right", ""
        for mistake, bad in self.wrong.items():
            if _same(mine, self.outputs(bad), self.rtol):
                return "wrong", mistake
        return "wrong", _difference(mine, expected, self.rtol)


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Normal numbers, the same in every run."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mistakes(*answers: Callable) -> dict[str, Callable]:
    """Wrong answers by their docstrings: what a reader is told who gives such an answer."""
    return {" ".join(answer.__doc__.split()): answer for answer in answers}


class Altered(Exception):
    """An answer changed its arguments."""


_verdicts: dict[str, str] = {}


def check(key: str, answer: Any) -> Any:
    """Print the verdict on an answer; return it if it is right, else the reference, so that the
    notebook can go on."""
    exercise = exercises_of(key[:2])[key]
    _verdicts[key], sentence = exercise.verdict(answer)
    print(f"Exercise {key} {_verdicts[key]}{': ' if sentence else '.'}{sentence}")
    return answer if _verdicts[key] == "right" else exercise.reference


def exercises_of(notebook: str) -> dict[str, Exercise]:
    """The exercises of a notebook, such as '03', by key."""
    (file,) = Path(__file__).parent.glob(f"nb{notebook}_*.py")
    return import_module(f"{__package__}.{file.stem}").EXERCISES


def progress(notebook: str) -> None:
    """One line: which exercises of a notebook are solved."""
    keys = exercises_of(notebook)
    print("  ".join(f"{key} {'✓' if _verdicts.get(key) == 'right' else '○'}" for key in keys))


def _call(answer: Callable, case: tuple) -> Any:
    arguments = copy.deepcopy(case)
    result = answer(*arguments)
    if not _same(list(arguments), list(case), 0):
        raise Altered
    return result


def _same(a: Any, b: Any, rtol: float) -> bool:
    """Equal in structure and, within rtol of the largest entry, in numbers."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or (a.dtype == torch.bool) != (b.dtype == torch.bool):
            return False
        scale = b.double().abs().nan_to_num(posinf=0).max().item() if b.numel() else 0.0
        return torch.allclose(a.double(), b.double(), rtol=0, atol=rtol * scale, equal_nan=True)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y, rtol) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        a, b = _number(a), _number(b)
        return not isinstance(a, Tensor) and not isinstance(b, Tensor) and _same(a, b, rtol)
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b)):
        return math.isclose(a, b, rel_tol=rtol, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and a == b


def _number(value: Any) -> Any:
    """What a tensor with one entry holds; all else as it is."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _difference(mine: list, expected: list, rtol: float) -> str:
    """For an answer with a mistake that the bank does not know: the first case in which it differs,
    and how."""
    place = 0
    while _same(mine[place], expected[place], rtol):
        place += 1
    got, want, case = mine[place], expected[place], f"case {place + 1}"
    if isinstance(got, Tensor) and isinstance(want, Tensor):
        if got.shape != want.shape:
            return f"{case} has shape {[*got.shape]} where {[*want.shape]} is expected."
        return f"{case} differs in {int((got != want).sum())} of {want.numel()} entries."
    if type(got) is not type(want):
        return f"{case} is of type {type(got).__name__}, expected {type(want).__name__}."
    return f"{case} is not what the reference gives."
