"""One block of a run: what its linears receive is collected, they are pruned, and a row of the
report is written."""

import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import LongTensor, Tensor, nn

from ..errors import SparselabError
from ..methods.base import DENSE_BLOCK, Fit, Method, Solution, keep_weights
from ..models.architecture import Family
from ..numerics.statistics import Statistics
from ..patterns import Allocation, Pattern
from ..runtime import distributed
from ..runtime.memory import naming_memory_errors, peak_bytes, trim_host_memory
from .activations import InputCollector
from .report import MatrixRow, Report
from .sources import InMemoryBlocks, StreamedBlocks

SMALLER = (
    "It stays dense. sl.plan says what each method needs; magnitude and Wanda need least. Free some"
    " memory, or use a larger machine."
)
ERROR_TOKENS = 1024  # tokens on which a method without a Gram matrix measures its output error


@dataclass
class PruningRun:
    """What stays the same from block to block."""

    source: InMemoryBlocks | StreamedBlocks
    calibration: LongTensor
    family: Family
    method: Method
    pattern: Pattern | Allocation
    chosen: list[int]
    shares: dict[str, Pattern]
    linears: dict[str, nn.Linear]
    clock: "PhaseClock"
    report: Report

    @property
    def windows(self) -> LongTensor:
        """This process's share of the calibration windows."""
        return distributed.shard_windows(self.calibration)

    @property
    def aims_at_dense_model(self) -> bool:
        """The method aims at the dense model, whose activations go along."""
        return self.method.targets != DENSE_BLOCK

    def file_clock(self, phase: str):
        """The clock for "read" and "write", where there are files."""
        return self.clock(phase) if self.source.streamed else nullcontext()


@dataclass
class BlockPruner:
    """The chosen linears of one block. A group are those that receive the same input, in the order
    in which they run; a stage are the groups that are pruned from one pass."""

    run: PruningRun
    layer: int

    def __post_init__(self):
        self.prefix = f"{self.run.family.blocks}.{self.layer}."

    def stages(self) -> list[list[tuple[str, ...]]]:
        """Groups of linears by stage: all in one stage, from one pass through the dense block; or
        one group in each, in the order in which they run, where the method wants each to see the
        pruned ones before it.
        """
        method, groups = self.run.method, self._groups()
        in_order = method.in_order or method.targets != DENSE_BLOCK
        return [[group] for group in groups] if in_order else [groups]

    def collectors(
        self, stage: list[tuple[str, ...]]
    ) -> dict[str, tuple[InputCollector, str | None]]:
        """New collectors for a stage: by the first linear of a group, with the place of its
        residual stream."""
        return dict(map(self._collector, stage))

    def prune(self, stage: list[tuple[str, ...]], collected: dict[str, InputCollector]) -> None:
        """Solve for the linears of a stage and write their weights. `collected` is used up."""
        joint, matrices = [], {}
        for group in stage:
            statistics = collected.pop(group[0])
            if self._is_joint(group):
                joint.append((group, statistics))
            else:
                matrices |= dict.fromkeys(self._stacks(group), statistics)
        del statistics  # so that they go with their last matrix
        self._prune_matrices(matrices)
        for group, feed_forward in joint:
            self._prune_joint(group, feed_forward)

    def _groups(self) -> list[tuple[str, ...]]:
        """The block's chosen linears that are pruned from the same inputs; with a joint method the
        whole FFN is one, unless no zero is asked for in it."""
        family, linears, shares = self.run.family, self.run.linears, self.run.shares
        groups = []
        for group in family.groups:
            groups.append(tuple(name for name in group if self.prefix + name in linears))
        ffn = [self.prefix + name for name in family.ffn]
        if self.run.method.prunes_ffn_jointly and any(
            name in linears and shares[name].sparsity for name in ffn
        ):
            groups = [group for group in groups if not {*group} & {*family.ffn}] + [family.ffn]
        return [group for group in groups if group]

    def _collector(self, group: tuple[str, ...]) -> tuple[str, tuple[InputCollector, str | None]]:
        """A new collector for a group, by its first linear, and where its residual is read."""
        method = self.run.method
        residual = (
            self.run.family.residual.get(group[-1]) if method.targets == "dense-stream" else None
        )
        if self._is_joint(group):
            return group[0], (
                method.feed_forward(self._roles(group), self.run.windows.numel()),
                residual,
            )
        first = self.run.linears[self.prefix + group[0]]
        every = max(1, self.run.windows.numel() // ERROR_TOKENS)
        return group[0], (
            Statistics(first.in_features, first.weight.device, needs=method.all_needs, every=every),
            residual,
        )

    def _is_joint(self, group: tuple[str, ...]) -> bool:
        return self.run.method.prunes_ffn_jointly and group == self.run.family.ffn

    def _roles(self, group: tuple[str, ...]) -> dict[str, nn.Linear]:
        roles = ("gate", "up", "down")[-len(group) :]
        linears = [self.run.linears[self.prefix + name] for name in group]
        return dict(zip(roles, linears, strict=True))

    def _prune_joint(self, group: tuple[str, ...], feed_forward: InputCollector) -> None:
        """The feed-forward network as a whole, in every process alike."""
        names, started = [self.prefix + name for name in group], time.perf_counter()
        with self.run.clock("solve"):
            shares = dict(zip(self._roles(group), map(self.run.shares.get, names), strict=True))
            fits, history = naming_errors(
                names[0], lambda: self.run.method.prune_ffn(feed_forward, shares)
            )
        self.run.report.epochs += [{"layer": self.layer, **row} for row in history]
        for name, fit in zip(names, map(fits.get, self._roles(group)), strict=True):
            self._write(name, fit, (time.perf_counter() - started) / len(names))

    def _stacks(self, group: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The names of a group's matrices: together, where the method takes them at once, else one
        by one."""
        names = tuple(self.prefix + name for name in group)
        return [names] if self.run.method.shares_column_loop else [(name,) for name in names]

    def _prune_matrices(self, matrices: dict[tuple[str, ...], Statistics]) -> None:
        """The matrices of a tuple together; several processes divide the tuples. `matrices` is used
        up."""
        work = {names: partial(self._solve, names, matrices.pop(names)) for names in [*matrices]}
        distributed.run_divided(work, self._write_all)

    def _solve(self, names: tuple[str, ...], stats: Statistics) -> tuple[list[Fit], float]:
        """How well each matrix fits, and the seconds that one of them took."""
        linears, started = [self.run.linears[name] for name in names], time.perf_counter()
        if self.run.source.streamed:
            trim_host_memory()
        with self.run.clock("solve"):
            pruned = naming_errors(names[0], lambda: self._pruned(names, stats))
        seconds = (time.perf_counter() - started) / len(names)
        with self.run.clock("error"):
            return [
                Fit.of(target, solution, stats, linear.weight.dtype)
                for linear, (target, solution) in zip(linears, pruned, strict=True)
            ], seconds

    def _pruned(self, names: tuple[str, ...], stats: Statistics) -> list[tuple[Tensor, Solution]]:
        """What each matrix aims at and the solution for it. Where no zero is asked for, a matrix
        stays as it is."""
        method, shares = (
            self.run.method.on(names[0].removeprefix(self.prefix) in self.run.family.ffn),
            self.run.shares,
        )
        weights = {name: self.run.linears[name].weight.detach().float() for name in names}
        found = {}
        for name, weight in weights.items():
            if not shares[name].sparsity:
                nothing = torch.zeros_like(weight, dtype=torch.bool)
                found[name] = (weight, keep_weights(weight, nothing))
        if chosen := [name for name in names if name not in found]:
            solved = method.prune_matrices(
                [*map(weights.get, chosen)], stats, [*map(shares.get, chosen)]
            )
            found |= dict(zip(chosen, solved, strict=True))
        return [*map(found.get, names)]

    def _write_all(self, names: tuple[str, ...], result: tuple[list[Fit], float]) -> None:
        fits, seconds = result
        for name, fit in zip(names, fits, strict=True):
            self._write(name, fit, seconds)

    def _write(self, name: str, fit: Fit, seconds: float) -> None:
        """Put the new weight into the model and a row into the report."""
        weight, solution = self.run.linears[name].weight, fit.solution
        if not torch.isfinite(solution.weight).all():
            raise SparselabError(
                f"{name}: {self.run.method} gives weights that are not finite (NaN or infinite), so"
                " this matrix stays dense. Choose other hyper-parameters, or another method."
            )
        weight.copy_(solution.weight.to(weight.device, weight.dtype))
        zeros = weight.numel() - weight.count_nonzero().item()
        self.run.report.rows.append(
            MatrixRow(
                name,
                self.layer,
                name.removeprefix(self.prefix),
                tuple(weight.shape),
                zeros / weight.numel(),
                fit.error_mask_only,
                fit.error,
                fit.tokens,
                solution.damp,
                solution.tries,
                seconds,
                peak_bytes(self.run.clock.device),
            )
        )


def naming_errors(name: str, work: Callable[[], Any]) -> Any:
    """The result of work; its errors say which matrix they belong to."""
    try:
        with naming_memory_errors("solve for this matrix", SMALLER):
            return work()
    except SparselabError as error:
        raise SparselabError(f"{name}: {error}") from error


class PhaseClock:
    """Seconds by phase; waits for the GPU at a phase's end, so that the seconds belong to it."""

    def __init__(self, seconds: dict[str, float], device: torch.device):
        self.seconds, self.device = seconds, device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @contextmanager
    def __call__(self, phase: str):
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started
