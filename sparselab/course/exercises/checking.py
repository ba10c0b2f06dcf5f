"""Exercises: a check runs an answer on small cases, and where it is wrong says which mistake it
makes.

The bank of wrong answers is the check: an answer that gives what a wrong one gives makes the same
mistake. So every diagnosis can be tested, by handing the check each answer of the bank.
"""

import copy
import dis
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ... import viz
from ...errors import SparselabError
from .. import pruner

ALTERED = (
    "it changes its input in place: work on a copy (.clone()), the caller still needs the original."
)
NOTHING = "it returns None: is a `return` missing?"


@dataclass(frozen=True)
class Exercise:
    """One exercise. An answer is a function, or a plain value where `cases` is empty.

    `reference`: a right answer. `cases`: argument tuples to try it on. `wrong`: what the mistake is
    and how to think of it, with an answer that makes it. `right`: other right answers. `kind`:
    warm-up, core, find-the-bug or stretch. `minutes`: how long it takes. `rtol`: how far numbers
    may be apart. `trial`: trial(answer, *case) gives what is compared, for an answer that needs a
    model, or whose work is what it changes; None: what the answer returns. `draw`: the title
    under which the tensor of a wrong answer is drawn beside the right one, or draw(mine, expected),
    which gives a figure; of the first case in which they differ. `quiet`: nothing is
    said of an answer that nobody wrote yet.
    """

    reference: Any
    cases: tuple[tuple, ...] = ()
    wrong: dict[str, Any] = field(default_factory=dict)
    right: tuple = ()
    kind: str = "core"
    minutes: int = 5
    rtol: float = 1e-4
    trial: Callable | None = None
    draw: str | Callable[[Any, Any], Figure] | None = None
    quiet: bool = False

    def outputs(self, answer: Any) -> list:
        """What an answer gives on each case; a plain value gives itself. Raises Altered where it
        changes its inputs."""
        if not self.cases:
            return [answer]
        return [
            _call(partial(self.trial, answer) if self.trial else answer, case)
            for case in self.cases
        ]

    def verdict(self, answer: Any) -> tuple[str, str]:
        """('right' | 'wrong' | 'not attempted', a sentence)."""
        if nobody_wrote(answer):
            return "not attempted", "the reference is used so that you can go on."
        try:
            mine = self.outputs(answer)
        except Altered:
            return "wrong", ALTERED
        except Exception as error:  # whatever a reader's code may raise
            return "wrong", self._known(error) or f"it raises {type(error).__name__}: {error}"
        if all(value is None or value is ... for value in mine):
            return "wrong", NOTHING
        expected = self.outputs(self.reference)
        if _same(mine, expected, self.rtol):
            return "right", ""
        for mistake, bad in self.wrong.items():
            if _same(mine, self._outcome(bad), self.rtol):
                return "wrong", mistake
        return "wrong", _difference(mine, expected, self.rtol)

    def with_other_numbers(self) -> "Exercise | None":
        """The same exercise on its cases' real numbers times 1.5: what an answer that only knows
        the cases by heart gets wrong. None where that makes no other question: it needs a model,
        the result stays (as that of a mask does), or right answers part there (as for
        probabilities)."""
        cases = tuple(_scaled(case) for case in self.cases)
        if self.trial or all(new is old for new, old in zip(cases, self.cases, strict=True)):
            return None
        other = replace(self, cases=cases)
        try:
            agree = all(other.verdict(answer)[0] == "right" for answer in self.right)
            new, old = other.outputs(self.reference), self.outputs(self.reference)
        except Exception:  # such numbers are none that it takes
            return None
        same = (_same(*pair, self.rtol) for pair in zip(new, old, strict=True))
        return other if agree and not any(same) else None

    def picture(self, answer: Any) -> Figure | None:
        """The answer's result beside the expected one; None where there is nothing to draw."""
        if self.draw is None:
            return None
        try:
            pairs = zip(self.outputs(answer), self.outputs(self.reference), strict=True)
            pair = next((pair for pair in pairs if not _same(*pair, self.rtol)), None)
            draw = partial(viz.beside, title=self.draw) if isinstance(self.draw, str) else self.draw
            return pair and draw(*pair)
        except Exception:  # it raises, or what it gives has another form: words say that
            return None

    def _outcome(self, bad: Callable) -> Any:
        """What a wrong answer gives, or the error that it ends in."""
        try:
            return self.outputs(bad)
        except Exception as error:
            return error

    def _known(self, error: Exception) -> str:
        """The mistake of the bank that ends in the same error; '' for none."""
        outcomes = ((mistake, self._outcome(bad)) for mistake, bad in self.wrong.items())
        same = (
            m for m, other in outcomes if (type(other), str(other)) == (type(error), str(error))
        )
        return next(same, "")


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Normal numbers, the same in every run."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mistakes(*answers: Callable) -> dict[str, Callable]:
    """Wrong answers by their docstrings: what a reader is told who gives such an answer."""
    return {" ".join(answer.__doc__.split()): answer for answer in answers}


class Altered(Exception):
    """An answer changed its arguments."""


LINE = 88  # letters
_verdicts: dict[str, str] = {}


def check(key: str, answer: Any) -> Any:
    """Print the verdict on an answer; return it if it is right, else the reference, so that the
    notebook can go on. A right function is kept in the reader's own file, see `mine`; a wrong one
    is drawn beside the right one, where a picture helps."""
    exercise = exercises_of(key[:2])[key]
    verdict, sentence = exercise.verdict(answer)
    _verdicts[key] = verdict
    if verdict == "right":
        sentence = pruner.keep(key, answer, {*references()})
    if verdict != "not attempted" or not exercise.quiet:
        said = f"Exercise {key} {verdict}{': ' if sentence else '.'}{sentence}"
        print(fill(said, LINE))  # JupyterLab would break it in the middle of a word
    if verdict == "wrong" and (figure := exercise.picture(answer)):
        viz.show(figure, f"exercise {key}, your result beside the expected one")
    return answer if verdict == "right" else exercise.reference


def must_be_right(key: str, answer: Any, other_numbers: bool = False) -> None:
    """For graders: an AssertionError with the sentence that names the mistake, unless an answer is
    right."""
    exercise = exercises_of(key[:2])[key]
    if other_numbers:
        exercise = exercise.with_other_numbers() or exercise
    verdict, sentence = exercise.verdict(answer)
    assert verdict == "right", sentence if verdict == "wrong" else "nothing was written."


def mine(name: str) -> Callable:
    """The reader's own function of this name, which an earlier check found right and kept in the
    working folder; the package's, where there is none or it no longer works. Stored runs
    (SPARSELAB_STATIC=1) take the package's, whatever lies in their folder."""
    known = references()
    if name not in known:
        raise SparselabError(f"no exercise of the course writes a function {name!r}.")
    exercise = known[name]
    if os.environ.get("SPARSELAB_STATIC") == "1":
        return exercise.reference
    everything = {each: other.reference for each, other in known.items()}
    function, fault = pruner.find(name, everything)
    if function is None:
        print(fault, end="\n" if fault else "")
        return exercise.reference
    verdict, sentence = exercise.verdict(function)
    if verdict == "right":
        print(f"{name}: yours, from {pruner.FILE}.")
        return function
    print(f"{name} in {pruner.FILE} is {verdict}: {sentence} The package's is used.")
    return exercise.reference


def references() -> dict[str, Exercise]:
    """The exercises that ask for a function, by its name."""
    numbers = sorted(file.stem[2:4] for file in Path(__file__).parent.glob("nb*_*.py"))
    exercises = [exercise for number in numbers for exercise in exercises_of(number).values()]
    return {each.reference.__name__.lstrip("_"): each for each in exercises if each.cases}


def exercises_of(notebook: str) -> dict[str, Exercise]:
    """The exercises of a notebook, such as '03', by key."""
    (file,) = Path(__file__).parent.glob(f"nb{notebook}_*.py")
    return import_module(f"{__package__}.{file.stem}").EXERCISES


def progress(notebook: str) -> None:
    """One line: which exercises of a notebook are solved."""
    keys = exercises_of(notebook)
    print("  ".join(f"{key} {'✓' if _verdicts.get(key) == 'right' else '○'}" for key in keys))


def nobody_wrote(answer: Any) -> bool:
    """Whether an answer is None, or a function whose body is `...`."""
    if answer is None or answer is ...:
        return True
    code = getattr(answer, "__code__", None)
    if code is None:
        return False
    steps = [(step.opname, step.argval) for step in dis.get_instructions(code)]
    steps = [step for step in steps if step[0] not in ("RESUME", "NOP", "RETURN_VALUE")]
    return all(name in ("RETURN_CONST", "LOAD_CONST") and value is None for name, value in steps)


def _scaled(value: Any) -> Any:
    """Tensors of real numbers times 1.5, at any depth; all else, the same object."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return 1.5 * value
    if isinstance(value, (list, tuple)):
        scaled = [_scaled(each) for each in value]
        same = all(new is old for new, old in zip(scaled, value, strict=True))
        return value if same else type(value)(scaled)
    return value


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
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key], rtol) for key in a)
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
    return _compared(mine[place], expected[place], f"case {place + 1}", rtol)


def _compared(got: Any, want: Any, case: str, rtol: float) -> str:
    """How two results differ; of those with names, the first one that does."""
    if isinstance(got, Tensor) and isinstance(want, Tensor):
        if got.shape != want.shape:
            return f"{case} has shape {[*got.shape]} where {[*want.shape]} is expected."
        return f"{case} differs in {int((got != want).sum())} of {want.numel()} entries."
    if type(got) is not type(want):
        return f"{case} is of type {type(got).__name__}, expected {type(want).__name__}."
    if isinstance(want, dict):
        if got.keys() != want.keys():
            return f"{case} has {[*got]} where {[*want]} is expected."
        key = next(key for key in want if not _same(got[key], want[key], rtol))
        return _compared(got[key], want[key], f"{case}, {key}", rtol)
    return f"{case} is not what the reference gives."
