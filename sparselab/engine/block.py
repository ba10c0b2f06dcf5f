"""One block of a run: what its linears receive is collected, they are pruned, and a row of the
report is written."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import LongTensor, Tensor, nn

from ..errors import SparselabError
from ..methods.base import Fit, Method, Solution, keep_weights
from ..models.architecture import Family
from ..numerics.statistics import Statistics
from ..patterns import Allocation, Pattern
from ..runtime import distributed
from ..runtime.memory import naming_memory_errors, peak_bytes, trim_host_memory
from .activations import CalibrationActivations, InputCollector
from .fisher import Fisher
from .reconstruction import Tuner, held_out, units_of
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
    error_rows: int | None = None  # of a matrix, on which its error is measured; None: all
    fisher: Fisher | None = None  # how much errors count, where the method asks for it

    @property
    def windows(self) -> LongTensor:
        """This process's share of the calibration windows."""
        return distributed.shard_windows(self.calibration)

    def token_weights(self, prefix: str) -> dict[str, Tensor]:
        """How much the tokens' errors count in the statistics of a block, [windows, seqlen] by
        place; none: all alike."""
        return self.fisher.of_block(prefix) if self.fisher else {}

    @property
    def held_out(self) -> list[int]:
        """The windows that the statistics do not see."""
        tuned = self.method.reconstruct
        return held_out(len(self.windows), tuned.held_out) if tuned else []

    def share(self, shares: dict[str, Pattern]) -> None:
        """Let each linear have its own share of zeros, and the report say so."""
        self.shares = shares
        self.report.describe_shares(
            shares, {name: linear.weight.numel() for name, linear in self.linears.items()}
        )

    def row_weights(self, name: str) -> Tensor | None:
        """How much the squared errors of a linear's rows count, [r]."""
        return None if self.fisher is None else self.fisher.rows[name]

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
        in_order = method.in_order or method.aims_at_dense_model
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

    def reconstruct(
        self,
        stage: list[tuple[str, ...]],
        activations: CalibrationActivations,
        block: nn.Module,
        original: nn.Module,
    ) -> None:
        """Tune the units of the block whose last linear that is pruned is in the stage, where the
        method asks for it."""
        settings, done = self.run.method.reconstruct, {name for group in stage for name in group}
        pruned = {
            f"{name.removeprefix(self.prefix)}.weight"
            for name in self.run.linears
            if name.startswith(self.prefix) and self.run.shares[name].sparsity
        }
        chosen = [name for group in self._groups() for name in group]  # as they run
        for unit in units_of(block, self.run.family, settings.unit):
            own = [name for name in chosen if f"{name}.weight" in unit.parameters]
            if own and own[-1] in done:
                with self.run.clock("reconstruct"):
                    row = Tuner(
                        settings, activations, block, original, unit, pruned,
                    ).run()  # fmt: skip
                if row:
                    self.run.report.reconstructions.append({"layer": self.layer, **row})

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
            tokens = self.run.windows[0].numel() * (len(self.run.windows) - len(self.run.held_out))
            network = method.feed_forward(self._roles(group), tokens)
            network.error_rows = self.run.error_rows
            network.rows = {
                role: self.run.row_weights(self.prefix + name)
                for role, name in zip(self._roles(group), group, strict=True)
            }
            return group[0], (network, residual)
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
        readers = Counter(id(stats) for names, stats in matrices.items() for _ in names)
        for stats in matrices.values():
            stats.shared = readers[id(stats)] > 1
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
                Fit.of(target, solution, stats, linear.weight.dtype, self.run.error_rows)
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
                [*map(weights.get, chosen)],
                stats,
                [*map(shares.get, chosen)],
                [*map(self.run.row_weights, chosen)],
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
