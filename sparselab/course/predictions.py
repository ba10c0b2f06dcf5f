"""Predict before you run: a guess is recorded, shown beside the result, reviewed at the end."""

from dataclasses import asdict, dataclass

from .scores import keep

FILE = "my_predictions.json"  # in the working folder, beside my_pruner.py
PARTS = {"question", "unit", "guess", "result"}  # of each prediction


@dataclass
class Prediction:
    """A question, the reader's guess and, once it is known, the result."""

    question: str
    unit: str = ""
    guess: float | str | None = None
    result: float | str | None = None

    def verdict(self) -> str:
        """The guess against the result, in words."""
        result = f"the result is {_number(self.result)}{self.unit}"
        if self.guess is None:
            return f"no guess; {result}"
        both = f"your guess {_number(self.guess)}{self.unit}; {result}"
        if isinstance(self.guess, str) or isinstance(self.result, str) or not self.result:
            return both + " - right" * (self.guess == self.result)
        return f"{both}; guess / result = {self.guess / self.result:.2f}"


_predictions: dict[str, Prediction] = {}


def predict(key: str, question: str, guess: float | str | None = None, unit: str = "") -> None:
    """Record a guess, None for no guess yet. key: notebook and letter, such as '01b' (exercises
    have numbers); unit follows numbers: ' %'."""
    _predictions[key] = Prediction(question, unit, guess)
    mine = "none yet: write one in place of None" if guess is None else f"{_number(guess)}{unit}"
    print(f"Prediction {key}: {question}\nYour guess: {mine}")


def reveal(key: str, result: float | str, because: str = "") -> None:
    """Show the result beside the guess. because: what makes it so, or the usual wrong intuition."""
    prediction = _predictions.setdefault(key, Prediction("asked before this kernel started"))
    prediction.result = result
    print(f"Prediction {key}: {prediction.verdict()}.{' ' * bool(because)}{because}")
    if prediction.guess is not None:
        _record(key, prediction)


def review() -> None:
    """All predictions of this notebook, one a line."""
    for key, prediction in _predictions.items():
        verdict = "not revealed" if prediction.result is None else prediction.verdict()
        print(f"{key} {prediction.question} {verdict}")


def _record(key: str, prediction: Prediction) -> None:
    """Into a file that stays when the kernel ends; a teacher can collect it."""
    keep(FILE, PARTS, asdict(prediction), key, "The guess")


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
