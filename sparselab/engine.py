"""The engine: one block at a time, statistics, solve, replay."""
import time
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import LongTensor, Tensor, nn
from tqdm.auto import tqdm
from transformers import Cache

from .checks import check_ids, check_ready, check_weights, check_windows
from .errors import SparselabError
from .evaluate import Perplexity, token_losses
from .memory import OUT_OF_MEMORY, batch_size, halving, is_out_of_memory, peak_bytes
from .methods import Method, Solution, find_method
from .models import Family, blocks_of, family_of, linears_of, model_name
from .patterns import Pattern
from .report import MatrixRow, Report
from .statistics import Statistics

ERROR_TOKENS = 1024         # tokens on which a method without a Gram matrix measures its output error
GATE_SHARE = 32             # one calibration window in 32 (at most 8) measures the dense perplexity before a run


@torch.no_grad()
def prune(model: nn.Module, calibration: LongTensor, *, method: str | Method, sparsity: float | str,
          layers: Iterable[int] | str | None = None, modules: Iterable[str] | None = None, batch: int | None = None,
          progress: bool = True) -> Report:
    """Prune a model of the OPT or LLaMA family in place, block by block (the protocol of SparseGPT and Wanda).

    calibration: token ids [samples, seqlen] (see `sl.calibration`). method: a name or an instance such as
    `sl.SparseGPT(damp=0.1)`. sparsity: a fraction such as 0.7, or 'n:m' = n zeros in every m consecutive inputs.
    layers: the blocks to prune, a range or list of numbers, or 'first half' as in SparseLLM's tables; None = all.
    modules: the linears to prune by the end of their names, such as ['fc1', 'fc2']; None = all of the family.
    batch: windows at once; None = from free memory.

    The statistics of all linears of a block come from one pass through the still dense block, whose inputs come from
    the pruned blocks before it. Embeddings, norms, biases and the output head stay dense. Before anything changes, the
    engine proves that block by block equals model(ids), and prints the dense perplexity of a few calibration windows.
    Returns a Report. Raises a SparselabError that names what was wrong, before the first weight changes where it can.
    """
    started = time.perf_counter()
    method, pattern = find_method(method), Pattern.parse(sparsity)
    check_ready(model)
    family, blocks = family_of(model), blocks_of(model)
    _check_calibration(model, calibration)
    chosen = _chosen_layers(layers, len(blocks))
    linears = _chosen_linears(model, chosen, modules)
    check_weights(linears)
    for name, linear in linears.items():
        pattern.check_width(linear.in_features, name)
    shares = method.shares({name: linear.weight for name, linear in linears.items()}, pattern)
    report = Report(_settings(model, calibration, method, pattern, chosen, len(blocks)))
    clock = _Clock(report.seconds, next(model.parameters()).device)
    with clock("check"):
        gate = prove(model, calibration)
    report.settings.update(dense_perplexity=float(gate), gate_windows=gate.windows)
    if progress:
        print(f"{model_name(model)}: dense perplexity {gate} on {gate.windows} calibration windows of {gate.seqlen} "
              "tokens; block by block equals the whole model.")
    with clock("capture"):
        stream = Stream(model, calibration, batch)
    run = _Run(family, method, shares, linears, stream, clock, report, max(1, calibration.numel() // ERROR_TOKENS))
    with tqdm(blocks[:max(chosen) + 1], desc=f"{method.name} {pattern}", unit="block", disable=not progress) as bar:
        for i, block in enumerate(bar):
            if i in chosen:
                run.prune_block(block, i)
            if i < max(chosen):
                with clock("replay"):
                    stream.replay(block)
    report.seconds["total"] = time.perf_counter() - started
    report.peak_bytes = peak_bytes(clock.device)
    return report


# --- the calibration activations between two blocks -------------------------------------------------------------------

class _Captured(Exception):
    """Ends a forward pass at the first block; private, so that no real error is taken for it."""


@dataclass
class Part:
    """Some calibration windows on their way through the blocks: `hidden` [b, seqlen, width] is what the next block
    receives, with every other argument that the model passes to its blocks."""

    ids: LongTensor
    hidden: Tensor
    args: tuple
    kwargs: dict

    def through(self, block: nn.Module) -> Tensor:
        """What a block makes of the windows, [b, seqlen, width]."""
        output = block(self.hidden, *self.args, **self.kwargs)
        return output if isinstance(output, Tensor) else output[0]           # older transformers return a tuple


class Stream:
    """All calibration activations before the current block; outputs replace inputs, so that one copy is held."""

    def __init__(self, model: nn.Module, ids: LongTensor, batch: int | None = None):
        """Run the model up to its first block, on windows ids [samples, seqlen]."""
        self.model = model
        self.parts = halving(lambda size: [self._capture(part) for part in ids.split(size)],
                             batch or batch_size(model, ids.shape[1]))

    def _capture(self, ids: LongTensor) -> Part:
        return Part(ids, *_first_block_call(self.model, ids))

    def _halves(self, part: Part) -> list[Part]:
        """The same activations in two parts; a single window cannot be cut."""
        if len(part.ids) == 1:
            raise SparselabError(OUT_OF_MEMORY)
        size = -(-len(part.ids) // 2)
        cut = zip(part.ids.split(size), part.hidden.split(size), strict=True)
        return [Part(ids, hidden.clone(), *_first_block_call(self.model, ids)[1:]) for ids, hidden in cut]

    def replay(self, block: nn.Module) -> None:
        """Move on: the block's outputs take the place of its inputs. A part that memory does not hold is halved."""
        k = 0
        while k < len(self.parts):
            try:
                self.parts[k].hidden = self.parts[k].through(block)
                k += 1
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.parts[k:k + 1] = self._halves(self.parts[k])

    def collect(self, block: nn.Module, groups: dict[str, nn.Linear], needs: tuple[str, ...], every: int
                ) -> dict[str, Statistics]:
        """Statistics of the inputs of some linears, by name, from one pass through the block (its outputs are dropped).
        Begun anew with halved parts when memory runs out."""
        while True:
            try:
                return _gather(block, groups, self.parts, needs, every)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if all(len(part.ids) == 1 for part in self.parts):
                raise SparselabError(OUT_OF_MEMORY)
            self.parts = [half for part in self.parts for half in (self._halves(part) if len(part.ids) > 1 else [part])]


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

def _gather(block: nn.Module, leaders: dict[str, nn.Linear], parts: list[Part], needs: tuple[str, ...], every: int
            ) -> dict[str, Statistics]:
    """Hook the first linear of every group, run the block, add up what the linears receive."""
    stats = {name: Statistics(linear.in_features, linear.weight.device, needs=needs, every=every)
             for name, linear in leaders.items()}
    handles = [linear.register_forward_pre_hook(lambda _, args, name=name: stats[name].add(args[0]))
               for name, linear in leaders.items()]
    try:
        for part in parts:
            part.through(block)
    finally:
        for handle in handles:
            handle.remove()
    return {name: one.finish(name) for name, one in stats.items()}


@dataclass
class _Run:
    """What stays the same from block to block."""

    family: Family
    method: Method
    shares: dict[str, Pattern]
    linears: dict[str, nn.Linear]
    stream: Stream
    clock: "_Clock"
    report: Report
    every: int

    def prune_block(self, block: nn.Module, layer: int) -> None:
        """Collect, then prune the block's linears in the order in which they run."""
        prefix = f"{self.family.blocks}.{layer}."
        groups = [[prefix + name for name in group if prefix + name in self.linears] for group in self.family.groups]
        leaders = {group[0]: self.linears[group[0]] for group in groups if group}
        with self.clock("collect"):
            stats = self.stream.collect(block, leaders, self.method.needs, self.every)
        for group in filter(None, groups):
            for name in group:
                self.report.rows.append(self._prune_matrix(name, layer, name.removeprefix(prefix), stats[group[0]]))
            del stats[group[0]]

    def _prune_matrix(self, name: str, layer: int, kind: str, stats: Statistics) -> MatrixRow:
        linear, started = self.linears[name], time.perf_counter()
        dense = linear.weight.detach().float()                               # [r, c]
        try:
            with self.clock("solve"):
                solution = self.method.solve(dense, stats, self.shares[name])
        except SparselabError as error:
            raise SparselabError(f"{name}: {error}") from error
        seconds = time.perf_counter() - started
        with self.clock("error"):
            new = solution.weight.to(linear.weight.dtype)
            before, after = _errors(stats, dense, solution, new.float())
        linear.weight.copy_(new)
        tokens = stats.tokens if stats.gram is not None else sum(map(len, stats.samples))
        return MatrixRow(name, layer, kind, tuple(dense.shape), (new == 0).float().mean(dtype=torch.float64).item(),
                         before, after, tokens, solution.damp, solution.tries, seconds, peak_bytes(self.clock.device))


def _errors(stats: Statistics, dense: Tensor, solution: Solution, new: Tensor) -> tuple[float, float]:
    """Relative output error with the mask alone on the dense weights, and with the weights that the method left."""
    masked = dense * solution.mask
    before = stats.relative_error(dense, masked)
    return before, before if torch.equal(masked, new) else stats.relative_error(dense, new)


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
    blocks, last, losses = blocks_of(model), [], []
    handle = blocks[-1].register_forward_hook(lambda _, args, output: last.append(output))
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
    whole = last[0] if isinstance(last[0], Tensor) else last[0][0]           # [1, seqlen, width]
    stream = Stream(model, calibration[:1], 1)
    for block in blocks:
        stream.replay(block)
    gap = ((stream.parts[0].hidden - whole).abs().max() / whole.abs().max()).item()
    if not gap < 1e-3:
        raise SparselabError(f"{model_name(model)}: block by block differs from the whole model by {gap:.2g} of the "
                             "largest activation. Its blocks are not called as this version of sparselab expects; "
                             "please report it with the versions that `python -m sparselab doctor` prints.")
    vocabulary = model.get_input_embeddings().num_embeddings
    if gate > 2 * vocabulary:
        warnings.warn(f"{model_name(model)} has a dense perplexity of {gate} on the calibration text, worse than chance "
                      f"({vocabulary}): do checkpoint, tokenizer and text belong together?", stacklevel=3)
    return gate


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


def _check_calibration(model: nn.Module, calibration: LongTensor) -> None:
    check_ids(model, calibration, "the calibration")
    if calibration.ndim != 2 or not len(calibration):
        raise SparselabError(f"the calibration has shape {tuple(calibration.shape)}: it must be [samples, seqlen] with "
                             "at least one sample, as sl.calibration gives.")
    check_windows(model, calibration.shape[1])


def _chosen_layers(layers: Iterable[int] | str | None, count: int) -> list[int]:
    if layers is None:
        return list(range(count))
    if isinstance(layers, str):
        if layers != "first half":
            raise SparselabError(f"layers={layers!r}: a range or list of block numbers, or 'first half'.")
        return list(range(count // 2))
    chosen = sorted(set(layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise SparselabError(f"layers={chosen}: choose some of the blocks 0 to {count - 1}.")
    return chosen


def _chosen_linears(model: nn.Module, layers: list[int], modules: Iterable[str] | None) -> dict[str, nn.Linear]:
    linears = linears_of(model, layers)
    if modules is None:
        return linears
    modules = tuple(modules)
    known = sorted({name.split(".")[-1] for name in linears})
    for module in modules:
        if not any(name.endswith(f".{module}") for name in linears):
            raise SparselabError(f"modules={list(modules)}: no linear is called {module!r}. Known: {', '.join(known)}.")
    return {name: linear for name, linear in linears.items() if any(name.endswith(f".{m}") for m in modules)}


def _settings(model, calibration, method: Method, pattern: Pattern, layers: list[int], blocks: int) -> dict:
    weight = next(model.parameters())
    return {"model": model_name(model), "method": str(method), "pattern": str(pattern), "samples": len(calibration),
            "seqlen": calibration.shape[1], "layers": layers, "blocks": blocks,
            "dtype": str(weight.dtype).removeprefix("torch."), "device": weight.device.type,
            "dense_perplexity": None, "gate_windows": 0,
            "versions": {name: version(name) for name in ("sparselab", "torch", "transformers")}}
