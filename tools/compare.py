"""What a notebook prints, compared with what it printed elsewhere: each number within its own
uncertainty.

Another processor adds float32 numbers in another order. A dense model hardly notices; while one is
pruned, weights that lie near the threshold change sides, and perplexities move by up to a few per
cent. So:

- A number printed as `a ± b` may move by b; b itself by a third.
- Any other decimal may move by 2 % (`DECIMALS`), and always by one unit of its last printed place.
- Integers and all other text are exact, but for where the lines of a figure's sentence end
  (`folded`): a number of another length moves that.

A cell, or a whole notebook, says otherwise in its metadata: `"tolerance": 0.001` for its decimals,
or `{"decimals": 0.05, "integers": 0.1}` where counts depend on which weights were pruned,
`{"errors": 3}` where flipped masks move a number by more than the b that is printed, which may know
only about windows.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

DECIMALS = float(os.environ.get("SPARSELAB_NBVAL_RTOL", "0.02"))
UNCERTAINTY = 1 / 3  # 32 windows know their standard error to an eighth
# A decimal with the blanks that align it in a column: 0.5, -1.25e-05, 1e-05; not 7, opt-1.3b or
# 2.13.0. Beside a ±, an integer is one too, and where a prediction's result is told, which has four
# digits and may lose a .0.
NOT_IN_A_WORD, NO_MORE = r"(?<![\w.])(?<!\w-)[-+]?", r"(?!\d|\.\d)"
DECIMAL = rf"(?:\d+\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+){NO_MORE}"
BESIDE = r"(?:\d+(?= ?± ?\d)|(?<=± )\d+(?![\w.])|(?<=result is )\d+(?!\w|\.\d))"
NUMBER = re.compile(rf" *{NOT_IN_A_WORD}(?:{DECIMAL}|{BESIDE})")
# With integers: 7 and 1024, not the 2 of 2:4, of layers.2 or of v2.
INTEGER = rf"\d+(?![\w:.-]|\s?:\d){NO_MORE}"
NUMBER_OR_INTEGER = re.compile(rf" *(?<!:){NOT_IN_A_WORD}(?:{DECIMAL}|{BESIDE}|{INTEGER})")

FIGURE = re.compile(r"^Figure: .+(?:\n.+)*", re.MULTILINE)  # where its lines end says nothing


@dataclass(frozen=True)
class Tolerance:
    """Relative tolerances of the decimals and of the integers in a cell's output; that of `a ± b`
    in units of b."""

    decimals: float = DECIMALS
    integers: float = 0.0
    errors: float = 1.0

    def updated(self, metadata: Mapping) -> "Tolerance":
        """With what the metadata of a cell or notebook say under 'tolerance'."""
        given = metadata.get("tolerance", {})
        return replace(self, **(given if isinstance(given, Mapping) else {"decimals": given}))


@dataclass(frozen=True)
class Number:
    """A printed number, the unit of its last place, and the uncertainty printed behind it."""

    value: float
    place: float
    decimal: bool
    uncertainty: float | None = None
    is_uncertainty: bool = False


@dataclass(frozen=True)
class Deviation:
    """How far a number moved: relative to its size, and in units of its printed uncertainty where
    there is one."""

    relative: float
    sigmas: float | None
    allowed: bool


def folded(text: str) -> str:
    """A text with each figure's sentence on one line."""
    return FIGURE.sub(lambda found: " ".join(found[0].split()), text)


def deviations(stored: str, new: str, tolerance: Tolerance | None = None) -> list[Deviation] | None:
    """Of each number from one text to the other; None where anything but the numbers differs."""
    tolerance = tolerance or Tolerance()
    pattern = NUMBER_OR_INTEGER if tolerance.integers else NUMBER
    if pattern.sub("#", stored) != pattern.sub("#", new):
        return None
    pairs = zip(numbers(stored, pattern), numbers(new, pattern), strict=True)
    return [_deviation(a, b, tolerance) for a, b in pairs]


def numbers(text: str, pattern: re.Pattern = NUMBER) -> list[Number]:
    """The numbers of a text in order, those around a ± told apart."""
    found = [*pattern.finditer(text)]
    joined = [
        text[a.end() : b.start()].strip() == "±" for a, b in zip(found, found[1:], strict=False)
    ]
    values = [_number(match[0].strip()) for match in found]
    for k, is_joined in enumerate(joined):
        if is_joined:
            values[k] = replace(values[k], uncertainty=values[k + 1].value)
            values[k + 1] = replace(values[k + 1], is_uncertainty=True)
    return values


def _number(text: str) -> Number:
    mantissa, _, exponent = text.lower().partition("e")
    digits = len(mantissa.partition(".")[2])
    return Number(
        float(text), 10.0 ** (int(exponent or 0) - digits), not text.lstrip("+-").isdigit()
    )


def _deviation(a: Number, b: Number, tolerance: Tolerance) -> Deviation:
    if math.isnan(a.value) or math.isnan(b.value):
        return Deviation(0.0, None, math.isnan(a.value) and math.isnan(b.value))
    place = min(a.place, b.place) * 1.001  # 1.2 - 1.1 is a little more than 0.1
    gap, size = abs(a.value - b.value), max(abs(a.value), abs(b.value))
    relative = max(gap - place, 0.0) / size if size else 0.0
    if a.is_uncertainty:
        return Deviation(0.0, None, relative <= UNCERTAINTY)
    sigmas = None
    if a.uncertainty is not None and b.uncertainty is not None:
        sigmas = max(gap - place, 0.0) / max(a.uncertainty, b.uncertainty, 1e-300)
    exact = not (a.decimal or b.decimal or a.uncertainty is not None)
    limit = tolerance.integers if exact else tolerance.decimals
    allowed = a.value == b.value if exact and not limit else relative <= limit
    return Deviation(
        relative, sigmas, allowed or (sigmas is not None and sigmas <= tolerance.errors)
    )


def same(stored: str, new: str, tolerance: Tolerance | None = None) -> bool:
    """Whether two texts differ only in numbers, and those within the tolerance."""
    found = deviations(stored, new, tolerance)
    return found is not None and all(deviation.allowed for deviation in found)


class Approximate(str):
    """A text that equals another which is the `same`; what nbval compares."""

    tolerance: Tolerance = Tolerance()

    @classmethod
    def of(cls, text: str, tolerance: Tolerance) -> "Approximate":
        """A text with its cell's tolerance."""
        made = cls(text)
        made.tolerance = tolerance
        return made

    def __eq__(self, other: object) -> bool:
        return same(self, other, self.tolerance) if isinstance(other, str) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__
