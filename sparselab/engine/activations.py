"""The calibration activations between two blocks: captured, collected into statistics, replayed."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from types import MappingProxyType
from typing import Protocol

import torch
from torch import LongTensor, Tensor, nn
from transformers import Cache

from ..errors import SparselabError
from ..models.architecture import blocks_of, model_name
from ..models.hooks import watching
from ..numerics.statistics import Statistics
from ..runtime.memory import OUT_OF_MEMORY, batch_size, retry_smaller, with_batch_halving
from .offload import ActivationStore

# Of what the residual stream lacks: half way from targets="dense-model", which adds none, to all.
STREAM_SHARE = 0.5


class _Captured(Exception):
    """Ends a forward pass at the first block; private, so that no real error is taken for it."""


@dataclass
class ActivationBatch:
    """Some calibration windows on their way through the blocks: `hidden` [b, seqlen, width] is what
    the next block receives, with every other argument that the model passes to its blocks; `dense`,
    where a method aims at the dense model, is what it would receive there (the same tensor until a
    block is pruned)."""

    ids: LongTensor
    hidden: Tensor
    args: tuple
    kwargs: dict
    dense: Tensor | None = None

    def through(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """What a block makes of hidden states, [b, seqlen, width], which may wait on another
        device."""
        output = block(hidden.to(next(block.parameters()).device), *self.args, **self.kwargs)
        return (
            output if isinstance(output, Tensor) else output[0]
        )  # older transformers return a tuple

    def inputs(self, block: nn.Module, hidden: Tensor, places: list[str]) -> dict[str, Tensor]:
        """What the modules at some places of the block receive, by name, in the order in which they
        run; '' is the block itself. The block runs no further than the last of them."""
        hidden = hidden.to(next(block.parameters()).device)
        seen = {"": hidden}

        def keep(name, args, kwargs):
            seen[name] = args[0]
            if name == places[-1]:
                raise _Captured

        with (
            suppress(_Captured),
            watching({name: block.get_submodule(name) for name in places if name}, before=keep),
        ):
            self.through(block, hidden)
        return seen

    def output(self, block: nn.Module, hidden: Tensor, place: str) -> Tensor:
        """What a module of the block gives; the block runs no further."""
        seen = []

        def keep(name, args, output):
            seen.append(output)
            raise _Captured

        with suppress(_Captured), watching({place: block.get_submodule(place)}, after=keep):
            self.through(block, hidden)
        return seen[0]


class InputCollector(Protocol):
    """What takes in the calibration tokens of a place: `Statistics`, or a whole feed-forward
    network."""

    def add(
        self,
        x: Tensor,
        dense: Tensor | None = None,
        drift: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Inputs x [b, seqlen, c]; there in the dense model; dense less pruned residual stream,
        where it matters; how much each token's error counts [b, seqlen], None: all alike."""

    def finish(self, name: str) -> "InputCollector":
        """After the last tokens."""


class CalibrationActivations:
    """All calibration activations before the current block; outputs replace inputs, so that one
    copy is held (two with the dense model's)."""

    def __init__(
        self,
        model: nn.Module,
        ids: LongTensor,
        batch: int | None = None,
        *,
        dense: bool = False,
        offload: str = "device",
    ):
        """Run the model up to its first block, on windows ids [samples, seqlen]."""
        self.model, self.dense = model, dense
        self._calls: dict[int, tuple] = {}  # what blocks are called with, by the number of windows
        self.store = ActivationStore.choose(offload, model, ids.numel() * (1 + dense))
        self.parts = with_batch_halving(
            lambda size: [self._capture(part) for part in ids.split(size)],
            batch or batch_size(model, ids.shape[1]),
        )

    def _capture(self, ids: LongTensor) -> ActivationBatch:
        part = ActivationBatch(ids, *_first_block_call(self.model, ids))
        part.hidden = self.store.keep(part.hidden)
        part.dense = part.hidden if self.dense else None
        return part

    @property
    def batches(self) -> list[int]:
        """Windows at once, part by part."""
        return [len(part.ids) for part in self.parts]

    def cut(self, batches: list[int]) -> None:
        """Regroup the windows as an interrupted run had them at this place."""
        if batches != self.batches and sum(batches) == sum(self.batches):
            self.parts = self._regrouped(self.parts, batches)
        # else several processes: the sizes of the first one

    def _halve(self, place: int) -> None:
        """Cut a part in two; a single window cannot be cut."""
        count = len(self.parts[place].ids)
        if count == 1:
            raise SparselabError(OUT_OF_MEMORY)
        half = -(-count // 2)
        parts = [self.parts[place]]
        self.parts[place : place + 1] = self._regrouped(parts, [half, count - half])

    def halve_all(self) -> None:
        """Cut every part that can be cut."""
        if all(size == 1 for size in self.batches):
            raise SparselabError(OUT_OF_MEMORY)
        for place in reversed(range(len(self.parts))):
            if len(self.parts[place].ids) > 1:
                self._halve(place)

    def gather(self, rows: list[int]) -> ActivationBatch:
        """Some windows, by their numbers, as one part."""
        ids = self.rows_of([part.ids for part in self.parts], rows)
        if len(rows) not in self._calls:  # windows differ in nothing but their tokens
            self._calls[len(rows)] = _first_block_call(self.model, ids)[1:]
        hidden = self.rows_of([part.hidden for part in self.parts], rows)
        dense = self.rows_of([part.dense for part in self.parts], rows) if self.dense else None
        return ActivationBatch(ids, hidden, *self._calls[len(rows)], dense)

    def rows_of(self, tensors: list[Tensor], rows: list[int]) -> Tensor:
        """Some windows of what is held by part."""
        firsts = [*accumulate(self.batches, initial=0)]
        found = []
        for row in rows:
            place = bisect_right(firsts, row) - 1
            found.append(tensors[place][row - firsts[place]])
        return torch.stack(found)

    def _regrouped(self, parts: list[ActivationBatch], sizes: list[int]) -> list[ActivationBatch]:
        """The same activations in parts of other sizes."""
        shared = all(part.dense is part.hidden for part in parts)
        new, first = [], 0
        for size in sizes:
            rows = slice(first, first + size)
            ids = _rows([part.ids for part in parts], rows)
            _, args, kwargs = _first_block_call(self.model, ids)
            hidden = self.store.keep(_rows([part.hidden for part in parts], rows))
            dense = hidden if shared else None
            if self.dense and not shared:
                dense = self.store.keep(_rows([part.dense for part in parts], rows))
            new.append(ActivationBatch(ids, hidden, args, kwargs, dense))
            first += size
        return new

    def replay(self, block: nn.Module, original: nn.Module | None = None) -> None:
        """Move on: the block's outputs take the place of its inputs; the dense stream goes through
        `original`, the block before it was pruned. A part that memory does not hold is halved."""
        place = 0
        while place < len(self.parts):
            retry_smaller(
                partial(self._advance_part, place, block, original), partial(self._halve, place)
            )
            place += 1

    def _advance_part(self, place: int, block: nn.Module, original: nn.Module | None) -> None:
        part = self.parts[place]
        hidden, shared = part.through(block, part.hidden), part.dense is part.hidden
        if self.dense and not (shared and original is None):
            dense = part.through(original or block, part.dense)
            part.dense = self.store.keep(dense, None if shared else part.dense)
            shared = False
        part.hidden = self.store.keep(hidden, part.hidden)
        if shared:
            part.dense = part.hidden

    def collect(
        self,
        block: nn.Module,
        make: Callable[[], dict[str, tuple[InputCollector, str | None]]],
        original: nn.Module | None = None,
        prefix: str = "",
        weights: Mapping[str, Tensor] = MappingProxyType({}),
        unseen: Collection[int] = (),
    ) -> dict[str, InputCollector]:
        """Fill sinks with what some places of the block receive, from one pass over the parts (its
        outputs are dropped). `make` gives new sinks by place, each with the place where its
        residual stream is read, if that matters; it is called anew, with halved parts, when memory
        runs out. `weights` [samples, seqlen]: how much each token's error counts, by place;
        `unseen`: numbers of the windows that are left out."""

        def gather() -> dict[str, InputCollector]:
            sinks, first = make(), 0
            for part in self.parts:
                last = first + len(part.ids)
                these = {place: values[first:last] for place, values in weights.items()}
                seen = [row - first for row in range(first, last) if row not in unseen]
                if seen:
                    _gather(block, original, sinks, part, these, seen)
                first = last
            return {name: sink.finish(prefix + name) for name, (sink, _) in sinks.items()}

        return retry_smaller(gather, self.halve_all)


def statistics_of(
    linears: dict[str, nn.Linear], needs: Collection[str], every: int = 1
) -> dict[str, tuple[InputCollector, str | None]]:
    """New statistics of what linears receive, by place, as `collect` takes them; `needs`, `every`:
    see `Statistics`."""
    found = {}
    for name, linear in linears.items():
        device = linear.weight.device
        found[name] = Statistics(linear.in_features, device, needs=needs, every=every), None
    return found


def _rows(tensors: list[Tensor], rows: slice) -> Tensor:
    """A copy of some rows of tensors that stand one below the other."""
    found, first = [], 0
    for tensor in tensors:
        found.append(tensor[max(0, rows.start - first) : max(0, rows.stop - first)])
        first += len(tensor)
    return torch.cat(found)


def _gather(
    block: nn.Module,
    original: nn.Module | None,
    sinks: dict[str, tuple[InputCollector, str | None]],
    part: ActivationBatch,
    weights: dict[str, Tensor],
    seen: list[int],
) -> None:
    """Hand a part's tokens to the sinks, with the dense model's where `original` is given."""
    residuals = [place for _, place in sinks.values() if place]
    places = [*residuals, *sinks]  # the last to run is a sink
    now = part.inputs(block, part.hidden, places)
    dense = part.inputs(original, part.dense, places) if original else {}
    for name, (sink, residual) in sinks.items():
        if residual is not None and residual not in now:
            raise SparselabError(
                "targets='dense-stream' needs a model that normalises before its linears"
                " (pre-norm). Choose targets='dense-model'."
            )
        drift = None
        if residual is not None:
            drift = STREAM_SHARE * (dense[residual].float() - now[residual].float())
        found = [now[name], dense.get(name), drift]  # OPT flattens sequences before its fc1
        found = [x if x is None else x.reshape(*part.ids.shape, -1) for x in found]
        found.append(weights.get(name))
        if len(seen) < len(part.ids):
            found = [x if x is None else x[seen] for x in found]
        sink.add(*found)


def _first_block_call(model: nn.Module, ids: LongTensor) -> tuple[Tensor, tuple, dict]:
    """What the model passes to its first block: hidden states [b, seqlen, width], other arguments,
    keyword arguments."""
    seen: list[tuple[tuple, dict]] = []

    def keep(name, args, kwargs):
        seen.append((args, dict(kwargs)))
        raise _Captured

    with suppress(_Captured), watching({"": blocks_of(model)[0]}, before=keep):
        model(ids.to(model.device), use_cache=False)
    args, kwargs = seen[0]
    if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
        raise SparselabError(
            f"{model_name(model)} passes a key-value cache to its blocks although use_cache=False"
            " was asked for: the windows would see each other. Load it anew with sl.load."
        )
    hidden = kwargs.pop("hidden_states") if "hidden_states" in kwargs else args[0]
    return hidden, args[1:], kwargs
