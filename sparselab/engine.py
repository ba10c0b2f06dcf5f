"""The engine: one block at a time, statistics, solve, replay."""
import copy
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import LongTensor, Tensor, nn
from tqdm.auto import tqdm
from transformers import Cache

from . import ranks
from .allocation import Allocation, asked
from .checks import check_feed_forward, check_ready, check_rows, check_weights
from .errors import SparselabError
from .evaluate import Perplexity, token_losses
from .files import DISTRIBUTION
from .memory import OUT_OF_MEMORY, Shelf, batch_size, give_back, halving, is_out_of_memory, peak_bytes
from .methods import DENSE_BLOCK, Fit, Method, find_method
from .models import Family, blocks_of, family_of, find_device, find_dtype, linears_of, model_name
from .patterns import Pattern
from .report import MatrixRow, Report
from .statistics import Statistics
from .streaming import Resident, Streamed, fingerprint

ERROR_TOKENS = 1024         # tokens on which a method without a Gram matrix measures its output error
STREAM_SHARE = 0.5          # of what the residual stream lacks: half way from targets="dense-model", which adds none, to all
GATE_SHARE = 32             # one calibration window in 32 (at most 8) measures the dense perplexity before a run


@torch.no_grad()
def prune(model: nn.Module | str | Path, calibration: LongTensor, *, method: str | Method,
          sparsity: float | str | Mapping, layers: Iterable[int] | str | None = None, modules: Iterable[str] | None = None,
          refit: bool | None = None, targets: str | None = None, in_order: bool | None = None, batch: int | None = None,
          progress: bool = True, out: str | Path | None = None, offload: str = "auto", dtype: torch.dtype | None = None,
          device: str | torch.device | None = None, dry_run: bool = False) -> Report:
    """Prune a model of the OPT or LLaMA family in place, block by block (the protocol of SparseGPT and Wanda).

    model: what `sl.load` gave; or the name of a model (a folder, a Hub id), which is then read from its files block by
    block and written to the folder `out`: never whole in memory, and a broken run goes on where the same call is made
    again. dtype and device belong to that form, and mean what they mean to `sl.load`.
    calibration: token ids [samples, seqlen] (see `sl.calibration`). method: a name or an instance such as
    `sl.SparseGPT(damp=0.1)`. sparsity: a fraction such as 0.7, or 'n:m' = n zeros in every m consecutive inputs; or one
    of them for each block (by number) or linear (by its full name), such as `sl.owl` and `sl.by_sensitivity` give.
    layers: the blocks to prune, a range or list of numbers, or 'first half' as in SparseLLM's tables; None = all.
    modules: the linears to prune by the end of their names, such as ['fc1', 'fc2']; None = all of the family.
    refit, targets, in_order: the switches of every method (see `sl.Method`), set here or on the instance; None = the
    method's own. batch: windows at once; None = from free memory. offload: where the activations wait between two
    blocks, 'device', 'cpu' or 'disk' (a file without a name); 'auto' = on the device while they fill at most
    40 % of what is free there, else in the host's memory while they fill at most half of what is free, else on disk.
    dry_run: prune the first of the blocks only, leave it as it was, write nothing; the report's seconds are those of the
    whole run, extrapolated (see also `sl.plan`, which needs no model).

    Unless a switch says otherwise, the statistics of all linears of a block come from one pass through the still dense
    block, whose inputs come from the pruned blocks before it. Embeddings, norms, biases and the output head stay dense.
    Before anything changes, the engine proves that block by block equals model(ids), and prints the dense perplexity of
    a few calibration windows (a model in files: on its first two blocks, without the perplexity). Returns a Report.
    Raises a SparselabError that names what was wrong, before the first weight changes where it can.
    """
    started = time.perf_counter()
    given = {"refit": refit, "targets": targets, "in_order": in_order}
    method = replace(find_method(method), **{name: value for name, value in given.items() if value is not None})
    if batch is not None and batch < 1:
        raise SparselabError(f"batch={batch}: windows at once, 1 or more; None takes what free memory holds.")
    pattern = (Allocation if isinstance(sparsity, (Mapping, Allocation)) else Pattern).parse(sparsity)
    source = _source(model, out, dtype, device, dry_run)
    try:
        run = _prepare(source, calibration, method, pattern, layers, modules)
        if dry_run:
            return run.trial(batch, offload)
        run.begin()
        report = run.run(batch, offload, progress)
        source.close(report)
    finally:
        source.abandon()
    report.seconds["total"] = time.perf_counter() - started
    return report


def _source(model: nn.Module | str | Path, out, dtype, device, dry_run: bool) -> Resident | Streamed:
    if not isinstance(model, nn.Module):
        if out is None and not dry_run:
            raise SparselabError(f"prune({str(model)!r}) reads a model block by block and writes the result: say where, "
                                 "out='folder'. To prune in memory, pass the model that sl.load gives.")
        device, dtype = find_device(device), find_dtype(dtype)
        return Streamed(model, out, dtype or (torch.float32 if device.type == "cpu" else None), device)
    if out or dtype or device:
        raise SparselabError("out=, dtype= and device= belong to a model given by name. A model in memory is pruned in "
                             "place, as it is; write it with sl.save.")
    return Resident(model)


def _prepare(source: Resident | Streamed, calibration: LongTensor, method: Method, pattern: Pattern | Allocation, layers,
             modules) -> "_Run":
    """Everything that can be wrong is found here, before minutes pass."""
    model = source.model
    check_ready(model)
    family, count = family_of(model), len(blocks_of(model))
    check_rows(model, calibration, "the calibration")
    chosen = _chosen_layers(layers, count)
    linears = _chosen_linears(model, chosen, modules)
    if not source.streamed:
        check_weights(linears)
    shares = _shares(method, pattern, linears, family)
    for name, linear in linears.items():
        shares[name].check_width(linear.in_features, name)
    if method.joint:
        check_feed_forward(model, family, linears)
    report = Report(_settings(model, calibration, method, pattern, chosen, count))
    if isinstance(pattern, Allocation):
        report.settings["pattern"] = asked(shares, {name: linear.weight.numel() for name, linear in linears.items()})
        report.settings["shares"] = {name: f"{share.n}:{share.m}" if share.m else share.sparsity
                                     for name, share in shares.items()}
    clock = _Clock(report.seconds, next(model.parameters()).device)
    return _Run(source, calibration, family, method, pattern, chosen, shares, linears, clock, report)


def _shares(method: Method, pattern: Pattern | Allocation, linears: dict[str, nn.Linear], family: Family
            ) -> dict[str, Pattern]:
    """The pattern of each matrix: as the user divided it, else as the method does."""
    if not isinstance(pattern, Allocation):
        return method.shares({name: linear.weight for name, linear in linears.items()}, pattern)
    if getattr(method, "scope", "") == "global":
        raise SparselabError(f"{method} divides the zeros among the matrices itself: give it one number as sparsity=, or "
                             "take scope='matrix'.")
    return pattern.shares(linears, family.blocks)


# --- the calibration activations between two blocks -------------------------------------------------------------------

class _Captured(Exception):
    """Ends a forward pass at the first block; private, so that no real error is taken for it."""


@dataclass
class Part:
    """Some calibration windows on their way through the blocks: `hidden` [b, seqlen, width] is what the next block
    receives, with every other argument that the model passes to its blocks; `dense`, where a method aims at the dense
    model, is what it would receive there (the same tensor until a block is pruned)."""

    ids: LongTensor
    hidden: Tensor
    args: tuple
    kwargs: dict
    dense: Tensor | None = None

    def through(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """What a block makes of hidden states, [b, seqlen, width], which may wait on another device."""
        output = block(hidden.to(next(block.parameters()).device), *self.args, **self.kwargs)
        return output if isinstance(output, Tensor) else output[0]           # older transformers return a tuple

    def inputs(self, block: nn.Module, hidden: Tensor, places: list[str]) -> dict[str, Tensor]:
        """What the modules at some places of the block receive, by name, in the order in which they run; '' is the
        block itself. The block runs no further than the last of them."""
        hidden = hidden.to(next(block.parameters()).device)
        seen = {"": hidden}

        def keep(_, args, name):
            seen[name] = args[0]
            if name == places[-1]:
                raise _Captured

        handles = [block.get_submodule(name).register_forward_pre_hook(partial(keep, name=name))
                   for name in places if name]
        try:
            self.through(block, hidden)
        except _Captured:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return seen


class Sink(Protocol):
    """What takes in the calibration tokens of a place: `Statistics`, or a whole feed-forward network."""

    def add(self, x: Tensor, dense: Tensor | None = None, drift: Tensor | None = None) -> None:
        """Inputs x [b, seqlen, c]; there in the dense model; dense less pruned residual stream, where it matters."""

    def finish(self, name: str) -> "Sink":
        """After the last tokens."""


class Stream:
    """All calibration activations before the current block; outputs replace inputs, so that one copy is held (two with
    the dense model's)."""

    def __init__(self, model: nn.Module, ids: LongTensor, batch: int | None = None, *, dense: bool = False,
                 offload: str = "device"):
        """Run the model up to its first block, on windows ids [samples, seqlen]."""
        self.model, self.dense = model, dense
        self.shelf = Shelf.choose(offload, model, ids.numel() * (1 + dense))
        self.parts = halving(lambda size: [self._capture(part) for part in ids.split(size)],
                             batch or batch_size(model, ids.shape[1]))

    def _capture(self, ids: LongTensor) -> Part:
        part = Part(ids, *_first_block_call(self.model, ids))
        part.hidden = self.shelf.put(part.hidden)
        part.dense = part.hidden if self.dense else None
        return part

    def _halves(self, part: Part) -> list[Part]:
        """The same activations in two parts; a single window cannot be cut."""
        if len(part.ids) == 1:
            raise SparselabError(OUT_OF_MEMORY)
        size = -(-len(part.ids) // 2)
        halves = [Part(ids, self.shelf.put(hidden.clone()), *_first_block_call(self.model, ids)[1:])
                  for ids, hidden in zip(part.ids.split(size), part.hidden.split(size), strict=True)]
        for half, dense in zip(halves, part.dense.split(size) if self.dense else (), strict=self.dense):
            half.dense = half.hidden if part.dense is part.hidden else self.shelf.put(dense.clone())
        return halves

    def replay(self, block: nn.Module, original: nn.Module | None = None) -> None:
        """Move on: the block's outputs take the place of its inputs; the dense stream goes through `original`, the block
        before it was pruned. A part that memory does not hold is halved."""
        k = 0
        while k < len(self.parts):
            part = self.parts[k]
            try:
                self._advance(part, block, original)
                k += 1
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.parts[k:k + 1] = self._halves(part)

    def _advance(self, part: Part, block: nn.Module, original: nn.Module | None) -> None:
        hidden, shared = part.through(block, part.hidden), part.dense is part.hidden
        if self.dense and not (shared and original is None):
            dense = part.through(original or block, part.dense)
            part.dense = self.shelf.put(dense, None if shared else part.dense)
            shared = False
        part.hidden = self.shelf.put(hidden, part.hidden)
        if shared:
            part.dense = part.hidden

    def collect(self, block: nn.Module, make: Callable[[], dict[str, tuple[Sink, str | None]]],
                original: nn.Module | None = None, prefix: str = "") -> dict[str, Sink]:
        """Fill sinks with what some places of the block receive, from one pass over the parts (its outputs are dropped).
        `make` gives new sinks by place, each with the place where its residual stream is read, if that matters; it is
        called anew, with halved parts, when memory runs out."""
        while True:
            sinks = make()
            try:
                for part in self.parts:
                    _gather(block, original, sinks, part)
                return {name: sink.finish(prefix + name) for name, (sink, _) in sinks.items()}
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if all(len(part.ids) == 1 for part in self.parts):
                raise SparselabError(OUT_OF_MEMORY)
            self.parts = [half for part in self.parts for half in (self._halves(part) if len(part.ids) > 1 else [part])]


def _gather(block: nn.Module, original: nn.Module | None, sinks: dict[str, tuple[Sink, str | None]], part: Part) -> None:
    """Hand a part's tokens to the sinks, with those of the dense model where `original` is given."""
    residuals = [place for _, place in sinks.values() if place]
    places = [*residuals, *sinks]                                            # the last to run is a sink
    now = part.inputs(block, part.hidden, places)
    dense = part.inputs(original, part.dense, places) if original else {}
    for name, (sink, residual) in sinks.items():
        if residual is not None and residual not in now:
            raise SparselabError("targets='dense-stream' needs a model that normalises before its linears (pre-norm). "
                                 "Choose targets='dense-model'.")
        drift = None if residual is None else STREAM_SHARE * (dense[residual].float() - now[residual].float())
        x = now[name].reshape(*part.ids.shape, -1)                           # OPT flattens sequences before its fc1
        sink.add(x, dense.get(name), drift)


def _first_block_call(model: nn.Module, ids: LongTensor) -> tuple[Tensor, tuple, dict]:
    """What the model passes to its first block: hidden states [b, seqlen, width], other arguments, keyword arguments."""
    seen: list[tuple[tuple, dict]] = []

    def hook(_, args, kwargs):
        seen.append((args, dict(kwargs)))
        raise _Captured

    handle = blocks_of(model)[0].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        model(ids.to(model.device), use_cache=False)
    except _Captured:
        pass
    finally:
        handle.remove()
    args, kwargs = seen[0]
    if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
        raise SparselabError(f"{model_name(model)} passes a key-value cache to its blocks although use_cache=False was "
                             "asked for: the windows would see each other. Load it anew with sl.load.")
    hidden = kwargs.pop("hidden_states") if "hidden_states" in kwargs else args[0]
    return hidden, args[1:], kwargs


# --- one block --------------------------------------------------------------------------------------------------------

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


# --- before a run -----------------------------------------------------------------------------------------------------

def prove(model: nn.Module, calibration: LongTensor) -> Perplexity:
    """Prove on the first window that block by block equals model(ids), and measure the dense perplexity of a few.

    The proof guards against every change in how a library calls its blocks; the perplexity against a checkpoint,
    tokenizer and text that do not belong together. Raises a SparselabError where they differ or are not finite.
    """
    losses, last = [], []
    handle = blocks_of(model)[-1].register_forward_hook(lambda _, args, output: last.append(output))
    try:
        for ids in calibration[:min(8, -(-len(calibration) // GATE_SHARE))].split(1):
            logits = model(ids.to(model.device), use_cache=False).logits
            losses.append(token_losses(logits, ids).mean(1))
            del last[1:]
    finally:
        handle.remove()
    gate = Perplexity(torch.cat(losses), calibration.shape[1])
    if not torch.isfinite(gate.losses).all():
        raise SparselabError(_first_broken(model, calibration[:1]))
    _compare_walk(model, calibration[:1], last[0])
    vocabulary = model.get_input_embeddings().num_embeddings
    if gate > 2 * vocabulary:
        warnings.warn(f"{model_name(model)} has a dense perplexity of {gate} on the calibration text, worse than chance "
                      f"({vocabulary}): do checkpoint, tokenizer and text belong together?", stacklevel=3)
    return gate


def _compare_walk(model: nn.Module, window: LongTensor, output: Tensor | tuple) -> None:
    """Block by block on one window [1, seqlen] against what the last block gave inside the model."""
    whole = output if isinstance(output, Tensor) else output[0]              # [1, seqlen, width]
    stream = Stream(model, window, 1)
    for block in blocks_of(model):
        stream.replay(block)
    gap = ((stream.parts[0].hidden - whole).abs().max() / whole.abs().max()).item()
    if not gap < 1e-3:
        raise SparselabError(f"{model_name(model)}: block by block differs from the whole model by {gap:.2g} of the "
                             "largest activation. Its blocks are not called as this version of sparselab expects; "
                             "please report it with the versions that `python -m sparselab doctor` prints.")


def _check_stream(model: nn.Module, window: LongTensor, targets: str) -> None:
    """What targets="dense-stream" takes for granted: these linears' outputs are added to the residual stream as they are."""
    if targets != "dense-stream":
        return
    residual, block = family_of(model).residual, blocks_of(model)[0]
    part, seen = Stream(model, window, 1).parts[0], {}
    places = {name: module for name, module in block.named_modules() if name in {*residual, *residual.values()} - {""}}
    hooks = [module.register_forward_hook(lambda _, args, output, name=name: seen.update({name: (args[0], output)}))
             for name, module in places.items()]
    try:
        after = part.through(block, part.hidden)
    finally:
        for hook in hooks:
            hook.remove()
    stream = [part.hidden, *(seen[place][0] for place in residual.values() if place in seen), after]
    gaps = [(before.flatten() + seen[name][1].flatten() - then.flatten()).abs().max() / then.abs().max()
            for name, before, then in zip(residual, stream, stream[1:], strict=False)]
    if len(stream) <= len(residual) or not max(gaps) < 1e-2:
        raise SparselabError(f"{model_name(model)}: targets='dense-stream' needs blocks that add the outputs of "
                             f"{' and '.join(residual)} to the residual stream as they are. Choose targets='dense-model'.")


def _prove_calls(source: Streamed, window: LongTensor, targets: str) -> None:
    """The same proof for a model in files, cut to its first two blocks."""
    kinds = sorted({*(getattr(source.model.config, "layer_types", None) or ())})
    if len(kinds) > 1:                                                       # two blocks do not speak for all
        raise SparselabError(f"{model_name(source.model)} has blocks of several kinds ({', '.join(kinds)}), which cannot be "
                             "checked one by one. Load the model with sl.load and prune it in memory.")
    path, _, name = source.prefix.rpartition(".")
    parent, last = source.model.get_submodule(path), []
    setattr(parent, name, nn.ModuleList(source.load(layer) for layer in range(min(2, len(source.blocks)))))
    try:
        handle = getattr(parent, name)[-1].register_forward_hook(lambda _, args, output: last.append(output))
        source.model.base_model(window.to(source.device), use_cache=False)    # all but the head, which has no memory
        handle.remove()
        _compare_walk(source.model, window, last[0])
        _check_stream(source.model, window, targets)
    finally:
        setattr(parent, name, source.blocks)
        source.forget()


def _first_broken(model: nn.Module, ids: LongTensor) -> str:
    """Which linear is the first to receive something that is not finite."""
    broken: list[str] = []
    handles = [linear.register_forward_pre_hook(
        lambda _, args, name=name: broken.append(name) if not torch.isfinite(args[0]).all() else None)
        for name, linear in linears_of(model).items()]
    try:
        model(ids.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    where = f"the calibration inputs of {broken[0]} are" if broken else "the model's output is"
    return (f"{where} not finite (NaN or infinite). Look for broken weights before it, or load the model with "
            "dtype=torch.float32: float16 overflows.")


def _chosen_layers(layers: Iterable[int] | str | None, count: int) -> list[int]:
    if layers is None:
        return list(range(count))
    if isinstance(layers, str) and layers == "first half":
        layers = range(count // 2)
    chosen = [*layers] if isinstance(layers, Iterable) else [layers]         # a single number will do
    if not all(hasattr(number, "__index__") for number in chosen):
        raise SparselabError(f"layers={layers!r}: a range or list of block numbers, or 'first half'.")
    chosen = sorted({*map(int, chosen)})
    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise SparselabError(f"layers={chosen}: choose some of the blocks 0 to {count - 1}.")
    return chosen


def _chosen_linears(model: nn.Module, layers: list[int], modules: Iterable[str] | None) -> dict[str, nn.Linear]:
    linears = linears_of(model, layers)
    if modules is None:
        return linears
    modules = (modules,) if isinstance(modules, str) else tuple(modules)
    known = sorted({name.split(".")[-1] for name in linears})
    for module in modules or ("",):
        if not any(name.endswith(f".{module}") for name in linears):
            raise SparselabError(f"modules={list(modules)}: no linear is called {module!r}. Known: {', '.join(known)}.")
    return {name: linear for name, linear in linears.items() if any(name.endswith(f".{m}") for m in modules)}


def _settings(model, calibration, method: Method, pattern: Pattern, layers: list[int], blocks: int) -> dict:
    weight = next(model.parameters())
    return {"model": model_name(model), "method": str(method), "pattern": str(pattern), "samples": len(calibration),
            "seqlen": calibration.shape[1], "layers": layers, "blocks": blocks,
            "dtype": str(weight.dtype).removeprefix("torch."), "device": weight.device.type,
            "dense_perplexity": None, "gate_windows": 0,
            "versions": {"sparselab": version(DISTRIBUTION), **{name: version(name) for name in ("torch", "transformers")}}}
