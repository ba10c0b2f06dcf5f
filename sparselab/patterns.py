"""Sparsity patterns: how many zeros, and where they may stand; masks with exact counts."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import SparselabError, did_you_mean


def plain(value: Any) -> Any:
    """A number or an array of numpy or torch in plain Python; everything else as it is."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray, Tensor)) else value


def number(value: Any) -> int | float:
    """A number of Python, numpy or torch in plain Python; NaN where it is none, as a bool."""
    value = plain(value)
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if known else math.nan


@dataclass(frozen=True)
class Pattern:
    """Unstructured (a fraction of zeros) or n:m (`n` zeros in every `m` consecutive inputs of an
    output row).

    n counts zeros, as in SparseGPT, Wanda and SparseLLM; NVIDIA's N:M counts what is kept: its 1:4
    is our 3:4.

    >>> str(Pattern.parse("3:4")), Pattern.parse(0.7).zeros(10)
    ('3:4 = 75 % zeros', 7)

    Parameters
    ----------
    sparsity : float
        The fraction of zeros, 0 to 1; 1 is what a method's own allocation may leave of a matrix.
    n, m : int
        Zeros in every m inputs, 0 <= n < m; m = 0: unstructured.

    Raises
    ------
    SparselabError
        Where a number is none, or does not fit.
    """

    sparsity: float
    n: int = 0
    m: int = 0

    def __post_init__(self):
        sparsity, n, m = number(self.sparsity), number(self.n), number(self.m)
        whole = n % 1 == 0 and m % 1 == 0  # no NaN either
        if not (whole and 0 <= sparsity <= 1 and m >= 0 and 0 <= n < max(m, 1)):
            raise SparselabError(
                f"{self!r}: the sparsity is a fraction of zeros between 0 and 1, and n of every m"
                " inputs are zero, so n must be below m."
            )
        vars(self).update(sparsity=sparsity, n=int(n), m=int(m))  # past the lock of frozen

    @property
    def words(self) -> str:
        """As a text says it: '70 %', '2:4'."""
        return f"{self.n}:{self.m}" if self.m else f"{100 * self.sparsity:g} %"

    @classmethod
    def parse(cls, spec: "float | str | Pattern") -> "Pattern":
        """A fraction in [0, 1) or a text such as '2:4'; a SparselabError says what else it was."""
        if isinstance(spec, Pattern):
            return spec
        spec = plain(spec)
        groups = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", spec) if isinstance(spec, str) else None
        if groups:
            n, m = map(int, groups.groups())
            if not n < m:
                raise SparselabError(
                    f"sparsity {spec!r}: n:m means n zeros in every m inputs, so n must be below m."
                )
            return cls(n / m, n, m)
        try:
            fraction = math.nan if isinstance(spec, bool) else float(spec)
        except (TypeError, ValueError, OverflowError):
            raise SparselabError(
                f"sparsity {spec!r} is neither a fraction such as 0.7 nor a pattern such as '2:4'."
            ) from None
        if not 0 <= fraction < 1:
            percent = f" Did you mean {fraction / 100:g} ({fraction:g} %)?"
            raise SparselabError(
                f"sparsity {spec} is outside [0, 1): it is the fraction of zeros, such as 0.7."
                + percent * (1 < fraction < 100)
            )
        return cls(fraction)

    def zeros(self, count: int) -> int:
        """How many of `count` weights become 0: the floor, safe against 0.29 * 100 = 28.999..."""
        return math.floor(self.sparsity * count + 1e-6)

    def check_width(self, width: int, name: str) -> None:
        """n:m needs input widths that m divides."""
        if self.m and width % self.m:
            raise SparselabError(
                f"pattern {self.n}:{self.m} does not fit {name}: m = {self.m} does not divide its "
                f"{width} inputs. Choose an m that divides {width}, or a fraction such as "
                f"{self.sparsity:g}."
            )

    def __str__(self) -> str:
        return (
            f"{self.n}:{self.m} = {self.sparsity:.0%} zeros".replace("%", " %")
            if self.m
            else f"{self.sparsity:.4g}"
        )


def lowest(scores: Tensor, count: int) -> Tensor:
    """True at the `count` lowest scores of every row; ties go to the left, so that the count is
    exact.

    scores [rows, n] -> bool [rows, n]. A selection, not a sort.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = _kth_lowest(scores, count)  # [rows, 1]
    if scores.device.type != "cpu":  # to look for ties would stop a GPU
        return _leftmost(scores, threshold, count)
    chosen = scores <= threshold
    surplus = chosen.sum(1) > count  # rows where several tie at the threshold
    if surplus.any():
        chosen[surplus] = _leftmost(scores[surplus], threshold[surplus], count)
    return chosen


def _leftmost(scores: Tensor, threshold: Tensor, count: int) -> Tensor:
    """True below the threshold [rows, 1], and at it from the left until there are `count` in the
    row."""
    below, tied = scores < threshold, scores == threshold
    room = count - below.sum(1, keepdim=True)
    return below | (tied & (tied.cumsum(1, dtype=torch.int32) <= room))


def _kth_lowest(scores: Tensor, k: int) -> Tensor:
    """The k-th lowest score of every row, [rows, 1]. On a CPU numpy's partition is 5 to 10 times
    faster than kthvalue; on a GPU kthvalue gives a row to one block of threads, and topk a long row
    to many."""
    if scores.device.type == "cpu":
        found = np.partition(scores.detach().numpy(), k - 1, axis=1)[:, k - 1 : k]
        return torch.from_numpy(found.copy())  # a view would hold all
    if len(scores) == 1:
        return scores.topk(k, dim=1, largest=False, sorted=False).values.amax(1, keepdim=True)
    return scores.kthvalue(k, dim=1, keepdim=True).values


def lowest_in_groups(groups: Tensor, n: int) -> Tensor:
    """The same for many short rows [groups, m]; topk resolves ties as the published code does."""
    pruned = torch.zeros_like(groups, dtype=torch.bool)
    return pruned.scatter_(1, groups.topk(n, dim=1, largest=False, sorted=False).indices, True)


def prune_rows(scores: Tensor, pattern: Pattern, *, per_row: bool) -> Tensor:
    """Where the lowest scores of a matrix are pruned: per group (n:m), per output row, or over the
    whole matrix.

    scores [r, c] -> bool [r, c], True = becomes zero.
    """
    r, c = scores.shape
    if pattern.m:
        return lowest_in_groups(scores.reshape(-1, pattern.m), pattern.n).view(r, c)
    if per_row:
        return lowest(scores, pattern.zeros(c))
    return lowest(scores.reshape(1, -1), pattern.zeros(r * c)).view(r, c)


def valid_groups(weight: Tensor, pattern: Pattern) -> bool:
    """Whether every group of m inputs holds at least n zeros."""
    return bool(((weight == 0).view(weight.shape[0], -1, pattern.m).sum(-1) >= pattern.n).all())


@dataclass(frozen=True)
class Allocation:
    """A pattern for each block (by number) or linear (by its full name, which goes before its
    block)."""

    parts: dict[int | str, Pattern]

    @classmethod
    def parse(cls, spec: "Mapping | Allocation") -> "Allocation":
        """From the mapping that a user gave; a SparselabError says which entry is wrong."""
        if isinstance(spec, Allocation):
            return spec
        if not spec:
            raise SparselabError(
                "sparsity={}: give each block (by number) or linear (by its full name) its"
                " sparsity."
            )
        return cls({plain(key): _part(plain(key), value) for key, value in spec.items()})

    def shares(self, names: Iterable[str], blocks: str) -> dict[str, Pattern]:
        """The pattern of each linear by its name, such as 'model.layers.3.mlp.up_proj'; blocks:
        'model.layers'."""
        place = {name: int(name.removeprefix(blocks + ".").split(".")[0]) for name in names}
        numbers = sorted({*place.values()})
        for key in self.parts:
            if key not in place and key not in numbers:
                known = f" The blocks are {numbers}."
                raise SparselabError(
                    f"sparsity={{{key!r}: ...}}: no block or linear that is to be pruned is called"
                    " that." + (did_you_mean(key, place) if isinstance(key, str) else known)
                )
        for name, block in place.items():
            if name not in self.parts and block not in self.parts:
                raise SparselabError(
                    f"sparsity={{...}} says nothing of block {block} ({name}): name all blocks that"
                    " are to be pruned, or choose them with layers= and modules=."
                )
        return {name: self.parts.get(name, self.parts.get(block)) for name, block in place.items()}

    def __str__(self) -> str:
        return "allocated"


def _part(key: int | str, value: float | str) -> Pattern:
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        raise SparselabError(
            f"sparsity={{{key!r}: ...}}: a key is a block's number or a linear's full name."
        )
    try:
        return Pattern.parse(value)
    except SparselabError as error:
        raise SparselabError(f"sparsity of {key!r}: {error}") from error


def describe_allocation(shares: dict[str, Pattern], sizes: dict[str, int]) -> str:
    """What an allocation asks for, in words: the share of zeros in all matrices together, and the
    extremes."""
    asked = [share.sparsity for share in shares.values()]
    total = sum(shares[name].sparsity * size for name, size in sizes.items()) / sum(sizes.values())
    return f"{total:.4g} allocated, {min(asked):.4g} to {max(asked):.4g}"
