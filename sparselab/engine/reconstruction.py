"""After the matrices of a block are pruned: tune what is left of them together, by gradient."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import SparselabError
from ..methods.reconstruction import Reconstruction
from ..models.architecture import Family
from ..models.blockwise import ActivationBatch
from ..runtime import distributed
from ..runtime.memory import OUT_OF_MEMORY, retry_smaller
from .activations import CalibrationActivations
from .finetuning import diverged, learning

WORSE = 3.0  # the rate is divided by this after a pass that did not lower the held-out error
SEED = 0  # of the order in which windows are taken
BACK = "what was pruned has been put back:"


@dataclass(frozen=True)
class Unit:
    """A part of a block that is tuned as a whole: where its output is read ('' the block's own;
    `before`: what a module receives, else what it gives), and its parameters by name."""

    name: str
    place: str
    before: bool
    parameters: tuple[str, ...]

    def output(self, part: ActivationBatch, block: nn.Module, hidden: Tensor) -> Tensor:
        """What the block has at the place, [b, seqlen, c]."""
        if not self.place:
            return part.through(block, hidden)
        if self.before:
            found = part.inputs(block, hidden, [self.place])[self.place]
        else:
            found = part.output(block, hidden, self.place)
        return found.reshape(*hidden.shape[:2], -1)


def units_of(block: nn.Module, family: Family, kind: str) -> list[Unit]:
    """The units of a block in the order in which they run."""
    names = [name for name, _ in block.named_parameters()]
    if kind == "block":
        return [Unit("block", "", False, tuple(names))]
    if kind == "matrix":
        linears = [name for group in family.groups for name in group]
        own = {
            each: tuple(name for name in names if name.startswith(each + ".")) for each in linears
        }
        return [Unit(each, each, False, own[each]) for each in linears]
    second = family.residual[family.ffn[-1]]  # the norm before the feed-forward network
    if second not in dict(block.named_modules()):
        raise SparselabError(
            f"unit='sublayer' needs blocks in which the feed-forward network follows the attention,"
            f" with {second} between them. Choose unit='block'."
        )
    mine = tuple(f"{name}." for name in (*family.ffn, second))
    ffn = tuple(name for name in names if name.startswith(mine))
    attention = tuple(name for name in names if name not in ffn)
    return [Unit("attention", second, True, attention), Unit("feed-forward", "", False, ffn)]


def held_out(count: int, share: float) -> list[int]:
    """Which of so many windows are held out: evenly spread, at least one, never all."""
    if not share or count < 2:
        return []
    number = min(max(1, round(share * count)), count - 1)
    return sorted({(2 * k + 1) * count // (2 * number) for k in range(number)})


@dataclass
class Tuner:
    """One unit of one block: its parameters, targets and the state of the descent."""

    settings: Reconstruction
    activations: CalibrationActivations
    block: nn.Module
    original: nn.Module
    unit: Unit
    pruned: set[str]  # names of the block's parameters with zeros that stay
    trained: dict[str, nn.Parameter] = field(init=False)
    at_once: int = field(init=False, default=1)  # windows in a forward and a backward pass

    def __post_init__(self):
        known = dict(self.block.named_parameters())
        self.trained = {
            name: known[name]
            for name in self.unit.parameters
            if name in self.pruned or (known[name].ndim == 1 and self.settings.train == "all")
        }
        count = sum(self.activations.batches)
        self.held = held_out(count, self.settings.held_out)
        self.others = [k for k in range(count) if k not in self.held]
        # Of several processes some may have a window more, and one window alone is not held out.
        self.holds = distributed.all_reduce_scalar(len(self.held)) > 0
        most = -(-distributed.all_reduce_scalar(count) // distributed.size())
        self.batch = max(1, self.settings.batch // distributed.size())
        self.steps = -(-(most - len(held_out(most, self.settings.held_out))) // self.batch)

    def run(self) -> dict:
        """Tune, and say what came of it: a row of the report."""
        started = time.perf_counter()
        if not any(name in self.pruned for name in self.trained):
            return {}
        start = {name: weight.detach().clone() for name, weight in self.trained.items()}
        try:
            with learning(self.block, self.trained.values()):
                row = self._descend()
        except BaseException:
            with torch.no_grad():  # nothing half-tuned is left
                for name, weight in self.trained.items():
                    weight.copy_(start[name])
            raise
        while max(self.activations.batches) > self.at_once:  # a resumed run begins with as many
            self.activations.halve_all()
        return {"unit": self.unit.name, **row, "seconds": time.perf_counter() - started}

    def _shrink(self) -> None:
        """Fewer windows at once, in this process alone: others may have room."""
        if self.at_once == 1:
            raise SparselabError(OUT_OF_MEMORY)
        self.at_once = -(-self.at_once // 2)

    # the descent

    def _descend(self) -> dict:
        settings = self.settings
        targets = retry_smaller(self._targets, self.activations.halve_all)
        self.at_once = max(self.activations.batches)
        self.scale = self._mean_square(targets)
        masters = {name: weight.detach().float().clone() for name, weight in self.trained.items()}
        masks = {name: masters[name] != 0 for name in self.trained if name in self.pruned}
        best = {name: master.clone() for name, master in masters.items()}
        lowest = start = self._held_error(targets)
        failures, kept, slower = 0, 0, 1.0
        optimizer = self._optimizer(masters)
        generator = torch.Generator().manual_seed(SEED)
        for epoch in range(settings.epochs):
            mixed = torch.randperm(len(self.others), generator=generator).tolist()
            order = [self.others[k] for k in mixed]
            for step in range(self.steps):
                rows = order[step * self.batch : (step + 1) * self.batch]
                share = (epoch + step / self.steps) / settings.epochs
                for group in optimizer.param_groups:
                    group["lr"] = settings.rate * slower * self._rate(share)
                self._step(optimizer, masters, masks, targets, rows)
            if not self.holds:
                kept = epoch + 1
                continue
            if (error := self._held_error(targets)) < lowest:
                lowest, failures, kept = error, 0, epoch + 1
                best = {name: master.clone() for name, master in masters.items()}
                continue
            failures, slower = failures + 1, slower / WORSE
            if failures == settings.patience:
                break
            self._put(masters, best)
            optimizer = self._optimizer(masters)
        if self.holds:
            self._put(masters, best)
        self._write(masters)
        if not self.holds:
            lowest = self._held_error(targets)
            if lowest == math.inf:
                what, steps = f"{self.unit.name}: the error is not finite", kept * self.steps
                raise diverged(what, steps, settings.rate, BACK)
        return {"start": start, "error": lowest, "epochs": epoch + 1, "kept": kept}

    def _rate(self, share: float) -> float:
        """Up over the first twentieth, then along the cosine, or level."""
        warm = min(1.0, (share + 1e-3) / 0.05)
        return warm * (0.55 + 0.45 * math.cos(math.pi * share)) if self.settings.cosine else warm

    def _optimizer(self, masters: dict[str, Tensor]) -> torch.optim.Optimizer:
        decay = self.settings.decay
        return torch.optim.AdamW(
            [*masters.values()], self.settings.rate, (0.9, 0.95), weight_decay=decay
        )

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        masters: dict[str, Tensor],
        masks: dict[str, Tensor],
        targets: list[Tensor],
        rows: list[int],
    ) -> None:
        trained = [*self.trained.values()]
        number = distributed.all_reduce_scalar(len(rows))

        def gradients() -> list[Tensor]:
            sums = [torch.zeros_like(master) for master in masters.values()]
            for some in _slices(rows, self.at_once):
                loss = self._error(some, targets) / number
                slopes = torch.autograd.grad(loss, trained, allow_unused=True)
                for total, slope in zip(sums, slopes, strict=True):
                    if slope is not None:
                        total.add_(slope)
            return sums

        sums = retry_smaller(gradients, self._shrink)
        distributed.all_reduce(*sums)
        for (name, master), slope in zip(masters.items(), sums, strict=True):
            master.grad = slope.mul_(masks[name]) if name in masks else slope
        if self.settings.clip:
            nn.utils.clip_grad_norm_([*masters.values()], self.settings.clip)
        optimizer.step()
        for name, mask in masks.items():
            masters[name].mul_(mask)
        self._write(masters)

    @staticmethod
    def _put(masters: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        for name, master in masters.items():
            master.copy_(values[name])

    @torch.no_grad()
    def _write(self, masters: dict[str, Tensor]) -> None:
        """The weights that the block runs with, rounded to its dtype."""
        for name, weight in self.trained.items():
            weight.copy_(masters[name])

    # errors

    @torch.no_grad()
    def _targets(self) -> list[Tensor]:
        """What the unit aims at, by part, where activations wait."""
        dense = self.settings.targets != "dense-block"
        found = []
        for place, part in enumerate(self.activations.parts):
            hidden = self.activations.fetch(place, dense)[dense]
            found.append(self.activations.store.keep(self.unit.output(part, self.original, hidden)))
        return found

    def _error(self, rows: list[int], targets: list[Tensor]) -> Tensor:
        """Summed over some windows: the mean squared error of a window, as a share of `scale`."""
        part = self.activations.gather(rows)
        dense = self.settings.targets == "dense-model"
        made = self.unit.output(part, self.block, part.dense if dense else part.hidden)
        target = self.activations.rows_of(targets, rows)
        return (made.float() - target.float()).square().mean((1, 2)).sum() / self.scale

    @torch.no_grad()
    def _mean_square(self, targets: list[Tensor]) -> float:
        """Of the targets."""
        fetch = self.activations.store.fetch
        squares = [fetch([target])[0].float().square().mean((1, 2)).sum() for target in targets]
        total = sum(torch.stack(squares).tolist())  # asked once: each time stops a GPU
        count = distributed.all_reduce_scalar(sum(map(len, targets)))
        total = distributed.all_reduce_scalar(total) / count
        if not (math.isfinite(total) and total > 0):
            raise SparselabError(
                f"the dense model's activations at {self.unit.name} are not finite, or all zero:"
                " there is nothing to reconstruct. Load the model with dtype=torch.float32."
            )
        return total

    @torch.no_grad()
    def _held_error(self, targets: list[Tensor]) -> float:
        """The error of the held-out windows, or of all where none is held out."""
        rows = self.held if self.holds else self.others

        def errors() -> float:
            parts = _slices(rows, self.at_once)
            found = [self._error(some, targets) for some in parts]
            return sum(torch.stack(found).tolist()) if found else 0.0

        total = distributed.all_reduce_scalar(float(retry_smaller(errors, self._shrink)))
        found = total / distributed.all_reduce_scalar(len(rows))
        return found if math.isfinite(found) else math.inf


def _slices(values: list[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(values), size):
        yield values[first : first + size]
