"""The calibration activations between two blocks, collected into statistics."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from itertools import accumulate
from types import MappingProxyType
from typing import Protocol

import torch
from torch import LongTensor, Tensor, nn

from ..errors import SparselabError
from ..models.blockwise import ActivationBatch, Activations, first_block_call
from ..numerics.statistics import Statistics
from ..runtime.memory import OUT_OF_MEMORY, batch_size, retry_smaller, with_batch_halving
from ..runtime.offload import ActivationStore

# Of what the residual stream lacks: half way from targets="dense-model", which adds none, to all.
STREAM_SHARE = 0.5


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


class CalibrationActivations(Activations):
    """All calibration activations before the current block, which are collected into statistics."""

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
        store = ActivationStore.choose(offload, model, ids.numel() * (1 + dense))
        super().__init__(model, store, dense=dense)
        self._calls: dict[int, tuple] = {}  # what blocks are called with, by the number of windows
        with_batch_halving(
            lambda size: self.enter(ids.split(size)), batch or batch_size(model, ids.shape[1])
        )

    def cut(self, batches: list[int]) -> None:
        """Regroup the windows as an interrupted run had them at this place."""
        if batches != self.batches:
            self.parts = self.regrouped(self.parts, batches)

    def halve_all(self) -> None:
        """Cut every part that can be cut."""
        if all(size == 1 for size in self.batches):
            raise SparselabError(OUT_OF_MEMORY)
        for place in reversed(range(len(self.parts))):
            if len(self.parts[place].ids) > 1:
                self.halve(place)

    def gather(self, rows: list[int]) -> ActivationBatch:
        """Some windows, by their numbers, as one part."""
        ids = torch.stack(self._rows([part.ids for part in self.parts], rows))
        if len(rows) not in self._calls:  # windows differ in nothing but their tokens
            self._calls[len(rows)] = first_block_call(self.model, ids)[1:]
        hidden = self.rows_of([part.hidden for part in self.parts], rows)
        dense = self.rows_of([part.dense for part in self.parts], rows) if self.dense else None
        return ActivationBatch(ids, hidden, *self._calls[len(rows)], dense)

    def rows_of(self, kept: list[Tensor], rows: list[int]) -> Tensor:
        """Some windows of what is kept by part, on the device."""
        return torch.stack(self.store.fetch(self._rows(kept, rows)))

    def _rows(self, tensors: list[Tensor], rows: list[int]) -> list[Tensor]:
        """Some windows of what is held by part, one by one."""
        firsts = [*accumulate(self.batches, initial=0)]
        found = []
        for row in rows:
            place = bisect_right(firsts, row) - 1
            found.append(tensors[place][row - firsts[place]])
        return found

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
            for place, part in enumerate(self.parts):
                last = first + len(part.ids)
                these = {place: values[first:last] for place, values in weights.items()}
                seen = [row - first for row in range(first, last) if row not in unseen]
                if seen:
                    _gather(
                        block, original, sinks, part, self.fetch(place, bool(original)), these, seen
                    )
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


def _gather(
    block: nn.Module,
    original: nn.Module | None,
    sinks: dict[str, tuple[InputCollector, str | None]],
    part: ActivationBatch,
    given: tuple[Tensor, Tensor],
    weights: dict[str, Tensor],
    seen: list[int],
) -> None:
    """Hand a part's tokens to the sinks, with the dense model's where `original` is given; `given`:
    what the block receives, and what it would in the dense model."""
    residuals = [place for _, place in sinks.values() if place]
    places = [*residuals, *sinks]  # the last to run is a sink
    hidden, dense_hidden = given
    now = part.inputs(block, hidden, places)
    dense = part.inputs(original, dense_hidden, places) if original else {}
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
