"""The engine: one block at a time, statistics, solve, replay."""
import copy
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import LongTensor, nn
from tqdm.auto import tqdm

from ..errors import SparselabError
from ..methods.base import DENSE_BLOCK, Fit, Method
from ..models.architecture import Family, blocks_of, model_name
from ..models.validation import check_weights
from ..numerics.statistics import Statistics
from ..patterns import Allocation, Pattern
from ..runtime import distributed as ranks
from ..runtime.memory import give_back, peak_bytes
from .activations import Sink, Stream
from .report import MatrixRow, Report
from .sources import Resident, Streamed, fingerprint
from .verification import _check_stream, _prove_calls, prove

ERROR_TOKENS = 1024         # tokens on which a method without a Gram matrix measures its output error


@dataclass
class _Run:
    """What stays the same from block to block."""

    source: Resident | Streamed
    calibration: LongTensor
    family: Family
    method: Method
    pattern: Pattern | Allocation
    chosen: list[int]
    shares: dict[str, Pattern]
    linears: dict[str, nn.Linear]
    clock: "_Clock"
    report: Report

    @property
    def aimed(self) -> bool:
        """At the dense model: its activations go along."""
        return self.method.targets != DENSE_BLOCK

    def begin(self) -> None:
        """Open the place where the result goes, with what an earlier run left there."""
        kinds = sorted({name.rsplit(".", 1)[-1] for name in self.linears})
        exact = getattr(self.pattern, "sparsity", None)                      # the report rounds it
        mine = fingerprint({**self.report.settings, "modules": kinds, "sparsity": exact}, self.calibration)
        if ranks.rank() == 0:
            self.source.begin(mine, self.report)
        ranks.wait()
        if ranks.rank():
            self.source.follow(mine, self.report)

    def _capture(self, batch: int | None, offload: str) -> None:
        with self.clock("capture"):
            self.stream = Stream(self.source.model, ranks.share(self.calibration), batch, dense=self.aimed,
                                 offload=offload)
        self.every = max(1, self.calibration.numel() // ERROR_TOKENS)

    def run(self, batch: int | None, offload: str, progress: bool) -> Report:
        """Prove, capture, and walk through the blocks."""
        self._prove(progress)
        self._capture(batch, offload)
        last = max(self.chosen)
        count = len(blocks_of(self.source.model)) if self.source.streamed else last + 1
        silent = not progress or ranks.rank() > 0
        with tqdm(range(count), desc=f"{self.method.name} {self.pattern}", unit="block", disable=silent) as bar:
            for i in bar:
                self._walk(i, self.aimed and i in self.chosen, i < last)
        self.report.peak_bytes = peak_bytes(self.clock.device)
        return self.report

    def trial(self, batch: int | None, offload: str) -> Report:
        """The first chosen block, pruned on the first block's inputs, timed, and left as it was."""
        self._capture(batch, offload)
        layer, files = self.chosen[0], self.clock if self.source.streamed else nullcontext
        with files("read"):
            block = self.source.load(layer)
        original = copy.deepcopy(block)
        try:
            self.prune_block(block, original if self.aimed else None, layer)
            with self.clock("replay"):
                self.stream.replay(block, original if self.aimed else None)
        finally:
            block.load_state_dict(original.state_dict())
        seconds, last = self.report.seconds, max(self.chosen)
        for phase in seconds:
            seconds[phase] *= {"capture": 1, "read": last + 1, "replay": last}.get(phase, len(self.chosen))
        seconds["total"] = sum(seconds.values())
        self.report.settings["dry_run"] = layer
        self.report.peak_bytes = peak_bytes(self.clock.device)
        return self.report

    def _walk(self, layer: int, aimed: bool, replay: bool) -> None:
        """One block: dense from its source, pruned (or as an earlier run left it), passed on, and finished."""
        files = self.clock if self.source.streamed else nullcontext
        with files("read"):
            block = self.source.load(layer)
        original = copy.deepcopy(block) if aimed else None
        if layer < self.source.done:
            self.source.restore(layer)
        elif layer in self.chosen:
            if self.source.streamed:
                mark = f"{self.family.blocks}.{layer}."
                check_weights({name: linear for name, linear in self.linears.items() if name.startswith(mark)})
            self.prune_block(block, original, layer)
        if replay:
            with self.clock("replay"):
                self.stream.replay(block, original)
        with files("write"):
            self.source.finish(layer, self.report)

    def _prove(self, progress: bool) -> None:
        name = model_name(self.source.model)
        if self.source.streamed:
            with self.clock("check"):
                _prove_calls(self.source, self.calibration[:1], self.method.targets)
            return
        with self.clock("check"):
            gate = prove(self.source.model, self.calibration)
            _check_stream(self.source.model, self.calibration[:1], self.method.targets)
        self.report.settings.update(dense_perplexity=float(gate), gate_windows=gate.windows)
        if progress:
            print(f"{name}: dense perplexity {gate} on {gate.windows} calibration windows of {gate.seqlen} tokens; "
                  "block by block equals the whole model.")

    def prune_block(self, block: nn.Module, original: nn.Module | None, layer: int) -> None:
        """Collect and prune: all linears from one pass, or group by group in the order in which they run."""
        self.prefix, self.layer = f"{self.family.blocks}.{layer}.", layer
        groups = self._groups()
        in_order = self.method.in_order or self.method.targets != DENSE_BLOCK
        for stage in ([group] for group in groups) if in_order else [groups]:
            with self.clock("collect"):
                sinks = self.stream.collect(block, lambda stage=stage: dict(map(self._sink, stage)), original,
                                            self.prefix)
            joint = [(group, sinks.pop(group[0])) for group in stage if self._is_joint(group)]
            matrices = {names: sinks[group[0]] for group in stage if group[0] in sinks for names in self._stacks(group)}
            sinks.clear()                                                    # so that statistics go with their last matrix
            self._prune_matrices(matrices)
            for group, sink in joint:
                self._prune_joint(group, sink)

    def _groups(self) -> list[tuple[str, ...]]:
        """The block's chosen linears that are pruned from the same inputs; with a joint method the whole FFN is one."""
        groups = [tuple(name for name in group if self.prefix + name in self.linears) for group in self.family.groups]
        if self.method.joint and self.prefix + self.family.ffn[0] in self.linears:
            groups = [group for group in groups if not {*group} & {*self.family.ffn}] + [self.family.ffn]
        return [group for group in groups if group]

    def _sink(self, group: tuple[str, ...]) -> tuple[str, tuple[Sink, str | None]]:
        """An empty sink for a group, by its first linear; and where its residual stream is read."""
        residual = self.family.residual.get(group[-1]) if self.method.targets == "dense-stream" else None
        if self._is_joint(group):
            tokens = sum(part.ids.numel() for part in self.stream.parts)
            return group[0], (self.method.feed_forward(self._roles(group), tokens), residual)
        first = self.linears[self.prefix + group[0]]
        needs = self.method.all_needs
        return group[0], (Statistics(first.in_features, first.weight.device, needs=needs, every=self.every), residual)

    def _is_joint(self, group: tuple[str, ...]) -> bool:
        return self.method.joint and group == self.family.ffn

    def _roles(self, group: tuple[str, ...]) -> dict[str, nn.Linear]:
        roles = ("gate", "up", "down")[-len(group):]
        return {role: self.linears[self.prefix + name] for role, name in zip(roles, group, strict=True)}

    def _prune_joint(self, group: tuple[str, ...], sink: Sink) -> None:
        """The feed-forward network as a whole, in every process alike."""
        names, started = [self.prefix + name for name in group], time.perf_counter()
        with self.clock("solve"):
            shares = dict(zip(self._roles(group), map(self.shares.get, names), strict=True))
            fits, history = named(names[0], lambda: self.method.prune_ffn(sink, shares))
        self.report.epochs += [{"layer": self.layer, **row} for row in history]
        for name, fit in zip(names, map(fits.get, self._roles(group)), strict=True):
            self._write(name, fit, (time.perf_counter() - started) / len(names))

    def _stacks(self, group: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The names of a group's matrices: together, where the method takes them at once, else one by one."""
        names = tuple(self.prefix + name for name in group)
        return [names] if self.method.stacks else [(name,) for name in names]

    def _prune_matrices(self, matrices: dict[tuple[str, ...], Statistics]) -> None:
        """The matrices of a tuple together; several processes divide the tuples. `matrices` is used up."""
        work = {names: partial(self._solve, names, matrices.pop(names)) for names in [*matrices]}
        ranks.divide(work, self._write_all)

    def _solve(self, names: tuple[str, ...], stats: Statistics) -> tuple[list[Fit], float]:
        """How well each matrix fits, and the seconds that one of them took."""
        linears, started = [self.linears[name] for name in names], time.perf_counter()
        if self.source.streamed:
            give_back()
        with self.clock("solve"):
            weights, shares = [linear.weight.detach().float() for linear in linears], [*map(self.shares.get, names)]
            method = self.method.on(names[0].removeprefix(self.prefix) in self.family.ffn)
            pruned = named(names[0], lambda: method.prune_matrices(weights, stats, shares))
        seconds = (time.perf_counter() - started) / len(names)
        with self.clock("error"):
            return [Fit.of(target, solution, stats, linear.weight.dtype)
                    for linear, (target, solution) in zip(linears, pruned, strict=True)], seconds

    def _write_all(self, names: tuple[str, ...], result: tuple[list[Fit], float]) -> None:
        fits, seconds = result
        for name, fit in zip(names, fits, strict=True):
            self._write(name, fit, seconds)

    def _write(self, name: str, fit: Fit, seconds: float) -> None:
        """Put the new weight into the model and a row into the report."""
        weight, solution = self.linears[name].weight, fit.solution
        weight.copy_(solution.weight.to(weight.device, weight.dtype))
        zeros = weight.numel() - weight.count_nonzero().item()
        self.report.rows.append(MatrixRow(
            name, self.layer, name.removeprefix(self.prefix), tuple(weight.shape), zeros / weight.numel(), fit.before,
            fit.after, fit.tokens, solution.damp, solution.tries, seconds, peak_bytes(self.clock.device)))


def named(name: str, work: Callable[[], Any]) -> Any:
    """The result of work; its errors say which matrix they belong to."""
    try:
        return work()
    except SparselabError as error:
        raise SparselabError(f"{name}: {error}") from error


class _Clock:
    """Seconds by phase; waits for the GPU at the end of a phase, so that the seconds belong to it."""

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
