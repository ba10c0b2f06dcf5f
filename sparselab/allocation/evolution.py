"""By evolution: every matrix is pruned at several sparsities once, and a search combines them."""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal

import torch
from torch import LongTensor, Tensor, nn
from tqdm.auto import tqdm

from ..engine.activations import CalibrationActivations, statistics_of
from ..engine.block import naming_errors
from ..engine.verification import verify_blockwise
from ..errors import SparselabError
from ..methods.base import DENSE_BLOCK, Method
from ..methods.parameters import checked
from ..methods.registry import find_method
from ..models.architecture import blocks_of, dense_weights, family_of, linears_of, restore
from ..models.validation import check_not_shared, check_weights
from ..numerics.statistics import Statistics
from ..patterns import Pattern
from ..runtime.memory import naming_memory_errors
from .scores import HIGHEST, DenseReference, HeldOut, as_fraction, split_windows

FEWER = "Take fewer levels= or windows, a smaller dtype, or a larger machine."
STAGES = (16, 4)  # before the last: a stage measures on one window of so many, and keeps a quarter
SWAPS = 3  # between parent and offspring, at most
TRIES = 20  # draws for each offspring; those that are known already do not count
Levels = tuple[int, ...]  # of each unit, in steps from the uniform one


@checked
@torch.no_grad()
def evolve(
    model: nn.Module,
    windows: LongTensor,
    sparsity: float,
    *,
    method: str | Method = "sparsegpt",
    unit: Literal["block", "linear"] = "block",
    levels: Annotated[int, ">= 1"] = 3,
    step: Annotated[float, "> 0", "< 1"] = 0.05,
    generations: Annotated[int, ">= 0"] = 50,
    offspring: Annotated[int, ">= 1"] = 16,
    held_out: HeldOut = 0.25,
    seed: int = 0,
    progress: bool = True,
) -> dict[int, float] | dict[str, float]:
    """Sparsity of each block or linear by an evolutionary search over the pruned model itself: that
    the losses of several blocks add up is not assumed.

    The first of the windows prune every matrix at every level, each on the dense model's inputs.
    Then generation by generation some units of the best combination go a level up and others down,
    and an offspring with a lower mean KL(dense || pruned) of the predictions on the other windows
    takes its place. It starts from uniform sparsity, so that the result is no worse there; that is
    said of the matrices of the search, which `sl.prune` makes anew on the inputs that pruned
    blocks leave.

    Parameters
    ----------
    model : nn.Module
        The dense model; it is changed and restored meanwhile.
    windows : LongTensor of shape (n, seqlen)
        Token ids, as `sl.calibration` gives; two or more.
    sparsity : float
        Of all units together. The total is exact where the sizes of the units are multiples of the
        smallest one, else above by less than `step` of the smallest unit.
    method : str or Method
        What prunes the matrices, one by one: its `targets` and `in_order` are those of the dense
        block, `fisher`, `divide` and `reconstruct` are off, and SparseLLM leaves out what it does
        to a feed-forward network as a whole.
    unit : {'block', 'linear'}
        What gets a sparsity of its own.
    levels : int
        How many levels there are above `sparsity`, and below; those outside 0 to 0.99 are left out.
        The weights of all levels are held in the host's memory, each as large as the linears.
    step : float
        From a level to the next.
    generations, offspring : int
        Rounds of the search, and combinations that are drawn in each. They are measured on a
        sixteenth of the held-out windows, drawn anew, the better quarter on a fourth, and the
        better quarter of these on all: a round of 16 costs about as much as 3 of them on all.
    held_out : float
        The share of the windows, the last ones, that judges.
    seed : int
        Of the draws; the same one gives the same result.
    progress : bool
        Show progress bars.

    Returns
    -------
    dict of int or str to float
        By the block's number or the linear's full name: what `sl.prune` takes as ``sparsity``, with
        this method or another.

    Raises
    ------
    SparselabError
        Where an argument is of another kind or out of its bounds, no level is left above or below,
        there is one window only, or model or method do not fit; before anything changes.

    Notes
    -----
    Source: Sieberling et al., EvoPress, arXiv 2410.14649. There the levels of all matrices differ
    by the same number of weights, 64 offspring are measured on 2 048, 16 384 and 65 536 tokens, and
    there are hundreds of generations.
    """
    target, method = as_fraction(sparsity), _matrix_method(method, family_of(model).name)
    patterns = _patterns(target, levels, step)
    calibration, judged = split_windows(model, windows, held_out)
    linears, units = linears_of(model), _units(model, unit)
    check_weights(linears)
    check_not_shared(linears)
    verify_blockwise(model, calibration)
    sizes = [sum(linears[name].weight.numel() for name in names) for names in units.values()]
    reference, dense = DenseReference(model, judged), dense_weights(model)
    with naming_memory_errors("hold every matrix at every level", FEWER):
        weights = _prune_at_levels(model, calibration, method, patterns, progress)
    candidates = _Candidates(reference, linears, [*units.values()], weights)
    draw = _Draw(sizes, min(patterns), max(patterns), random.Random(seed))
    bar = tqdm(range(generations), desc="evolve", unit="generation", disable=not progress)
    try:
        found = _search(candidates.cost, draw, offspring, len(judged), bar)
    finally:
        bar.close()
        restore(model, dense)
    return {key: patterns[level].sparsity for key, level in zip(units, found, strict=True)}


def _matrix_method(method: str | Method, family: str) -> Method:
    """The method, as it prunes a matrix on its own."""
    method = find_method(method, family)
    if method.allocates:
        raise SparselabError(
            f"{method} divides the zeros among the matrices itself, so there is nothing to search"
            " for: take scope='matrix', or another method."
        )
    switches = {"fisher": False, "divide": False, "reconstruct": None}
    return replace(method, targets=DENSE_BLOCK, in_order=False, **switches)


def _patterns(target: float, levels: int, step: float) -> dict[int, Pattern]:
    """The pattern of each level, by its steps from the uniform one."""
    shares = {k: round(target + k * step, 12) for k in range(-levels, levels + 1)}
    kept = {k: Pattern(max(0.0, share)) for k, share in shares.items() if 0 <= share <= HIGHEST}
    if not min(kept, default=0) < 0 < max(kept, default=0):
        raise SparselabError(
            f"evolve(sparsity={target:g}, step={step:g}): the levels next to sparsity, a step below"
            f" and a step above, must lie in 0 to {HIGHEST:g}. Choose a smaller step."
        )
    return kept


def _units(model: nn.Module, unit: str) -> dict[int | str, list[str]]:
    """The names of the linears that share a level, by the key that `sl.prune` knows them by."""
    if unit == "linear":
        return {name: [name] for name in linears_of(model)}
    return {layer: [*linears_of(model, [layer])] for layer in range(len(blocks_of(model)))}


def _prune_at_levels(
    model: nn.Module,
    windows: LongTensor,
    method: Method,
    patterns: dict[int, Pattern],
    progress: bool,
) -> dict[str, dict[int, Tensor]]:
    """The weights of every linear at every level, by its name; the model stays dense. A group with
    the same inputs is solved together, and its levels share what the statistics keep, such as the
    factor of the Hessian."""
    family, linears, found = family_of(model), linears_of(model), {}
    activations = CalibrationActivations(model, windows, offload="auto")
    bar = tqdm(blocks_of(model), desc=f"{method.name}, levels", unit="block", disable=not progress)
    for layer, block in enumerate(bar):
        prefix = f"{family.blocks}.{layer}."
        firsts = {group[0]: linears[prefix + group[0]] for group in family.groups}
        # a single token is kept for the output error, which nobody asks for here
        make = partial(statistics_of, firsts, method.all_needs, windows.numel())
        collected = activations.collect(block, make, prefix=prefix)
        for group in family.groups:
            members = {prefix + name: linears[prefix + name] for name in group}
            on, stats = method.on(group[0] in family.ffn), collected.pop(group[0])
            work = partial(_solve_levels, on, members, stats, patterns)
            found |= naming_errors(next(iter(members)), work)
        activations.replay(block)
    return found


def _solve_levels(
    method: Method, linears: dict[str, nn.Linear], stats: Statistics, patterns: dict[int, Pattern]
) -> dict[str, dict[int, Tensor]]:
    """The weights of linears with the same inputs at every level, in the host's memory."""
    weights = [linear.weight.detach().float() for linear in linears.values()]
    found = {name: {} for name in linears}
    for level, pattern in patterns.items():
        pruned = weights  # where no zero is asked for, a matrix stays as it is
        if pattern.sparsity:
            solved = method.prune_matrices(weights, stats, [pattern] * len(weights))
            pruned = [solution.weight for _, solution in solved]
        for (name, linear), weight in zip(linears.items(), pruned, strict=True):
            if not torch.isfinite(weight).all():
                raise SparselabError(
                    f"{method} gives weights that are not finite (NaN or infinite). Choose other"
                    " hyper-parameters, or another method."
                )
            found[name][level] = weight.to("cpu", linear.weight.dtype, copy=True)
    return found


@dataclass
class _Candidates:
    """The model with its units at the levels that are asked for; of a candidate only those are
    copied that differ from what the model holds."""

    reference: DenseReference
    linears: dict[str, nn.Linear]
    units: list[list[str]]
    weights: dict[str, dict[int, Tensor]]
    held: dict[str, int] = field(default_factory=dict)  # the level of each linear; none: dense

    def cost(self, levels: Levels, rows: Sequence[int] | None = None) -> float:
        """The mean divergence from the dense model on some of the held-out windows, or all."""
        for names, level in zip(self.units, levels, strict=True):
            for name in names:
                if self.held.get(name) != level:
                    self.linears[name].weight.copy_(self.weights[name][level])
                    self.held[name] = level
        return self.reference.divergence(rows)


def _search(
    cost: Callable[..., float], draw: "_Draw", offspring: int, windows: int, bar: tqdm
) -> Levels:
    """The best combination of levels that is found, from the uniform one on. One that was measured
    on all windows, and is no better, is not drawn again; where nothing new is left, it ends."""
    best = (0,) * len(draw.sizes)
    least, known = cost(best), {best}
    uniform = least
    for _ in bar:
        children = draw.offspring(best, offspring, known)
        if not children:
            break
        order = draw.random.sample(range(windows), windows)
        for share in STAGES:
            rows = order[: max(1, windows // share)]
            children = sorted(children, key=partial(cost, rows=rows))
            children = children[: max(1, len(children) // 4)]
        known |= {*children}
        for child in children:
            if (divergence := cost(child)) < least:
                best, least = child, divergence
        bar.set_postfix(uniform=f"{uniform:.4f}", kl=f"{least:.4f}")
    return best


@dataclass
class _Draw:
    """Draws offspring: sizes of the units in weights, the lowest and highest level, the random
    numbers."""

    sizes: list[int]
    low: int
    high: int
    random: random.Random

    def offspring(self, parent: Levels, count: int, known: Collection[Levels]) -> list[Levels]:
        """So many different ones that are not known, or as many as are found. Each is one to three
        swaps away, fewer more often: the lesser of two draws."""
        found: dict[Levels, None] = {}  # a set that keeps its order
        for _ in range(TRIES * count):
            child = parent
            for _ in range(min(self.random.randint(1, SWAPS), self.random.randint(1, SWAPS))):
                child = self.swap(child)
            if child not in known:
                found[child] = None
            if len(found) == count:
                break
        return [*found]

    def swap(self, levels: Levels) -> Levels:
        """A unit goes a level up or down, and others the other way until the zeros are at least as
        many as at uniform sparsity, and by less than a level of the smallest unit more. The same
        levels where that does not come out."""
        new, smallest = [*levels], min(self.sizes)
        way = self.random.choice((1, -1))
        first = last = self._choice(new, way, range(len(new)))
        while last is not None:
            new[last] += way
            excess = sum(size * level for size, level in zip(self.sizes, new, strict=True))
            if 0 <= excess < smallest:
                return tuple(new)
            way = -1 if excess > 0 else 1
            others = [unit for unit in range(len(new)) if unit != first]
            if way < 0:  # no further than to what is asked for
                others = [unit for unit in others if self.sizes[unit] <= excess]
            last = self._choice(new, way, others)
        return levels

    def _choice(self, levels: list[int], way: int, units: Sequence[int]) -> int | None:
        """One of the units that can go a level up (1) or down (-1); None where there is none."""
        free = [unit for unit in units if self.low <= levels[unit] + way <= self.high]
        return self.random.choice(free) if free else None
