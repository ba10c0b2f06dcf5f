"""A model that is run block by block: what its blocks receive and give, what comes after them, and
the proof that it is the whole model's."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import LongTensor, Tensor, nn
from transformers import Cache

from ..errors import SparselabError
from ..runtime.memory import OUT_OF_MEMORY, retry_smaller
from ..runtime.offload import ActivationStore
from .architecture import blocks_of, model_name, replaced_blocks
from .hooks import watching

Result = TypeVar("Result")


class _Captured(Exception):
    """Ends a forward pass at the first block; private, so that no real error is taken for it."""


@dataclass
class ActivationBatch:
    """Some windows on their way through the blocks: `hidden` [b, seqlen, width] is what the next
    block receives, with every other argument that the model passes to its blocks; `dense`, where a
    method aims at the dense model, is what it would receive there (the same tensor until a block is
    pruned). Both may wait in an `ActivationStore`: `Activations.fetch` gives them on the device."""

    ids: LongTensor
    hidden: Tensor
    args: tuple
    kwargs: dict
    dense: Tensor | None = None

    def through(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """What a block makes of hidden states, [b, seqlen, width]."""
        return _hidden_of(block(hidden, *self.args, **self.kwargs))

    def inputs(self, block: nn.Module, hidden: Tensor, places: list[str]) -> dict[str, Tensor]:
        """What the modules at some places of the block receive, by name, in the order in which they
        run; '' is the block itself. The block runs no further than the last of them."""
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


class Activations:
    """What the next block receives, part by part; outputs replace inputs, so that one copy is held
    (two with the dense model's). Parts may differ in their length."""

    def __init__(self, model: nn.Module, store: ActivationStore, *, dense: bool = False):
        self.model, self.store, self.dense = model, store, dense
        self.parts: list[ActivationBatch] = []

    def enter(self, batches: Iterable[LongTensor]) -> None:
        """Run the model up to its first block, on batches of token ids [b, seqlen]."""
        self.parts = [self._capture(ids) for ids in batches]

    def _capture(self, ids: LongTensor) -> ActivationBatch:
        part = ActivationBatch(ids, *first_block_call(self.model, ids))
        part.hidden = self.store.keep(part.hidden)
        part.dense = part.hidden if self.dense else None
        return part

    @property
    def batches(self) -> list[int]:
        """Windows at once, part by part."""
        return [len(part.ids) for part in self.parts]

    def halve(self, place: int) -> None:
        """Cut a part in two; a SparselabError where it is a single window, which cannot be cut."""
        count = len(self.parts[place].ids)
        if count == 1:
            raise SparselabError(OUT_OF_MEMORY)
        half = -(-count // 2)
        parts = [self.parts[place]]
        self.parts[place : place + 1] = self.regrouped(parts, [half, count - half])

    def fetch(self, place: int, dense: bool = False) -> tuple[Tensor, Tensor]:
        """A part's hidden states on the device, and with `dense` the dense model's (else once more
        the same); those of the next part are sent meanwhile."""
        mine, *then = (self._waiting(part, dense) for part in self.parts[place : place + 2])
        hidden, *others = self.store.fetch(mine, *then)
        return hidden, others[0] if others else hidden

    @staticmethod
    def _waiting(part: ActivationBatch, dense: bool) -> list[Tensor]:
        apart = dense and part.dense is not part.hidden
        return [part.hidden, part.dense] if apart else [part.hidden]

    def regrouped(self, parts: list[ActivationBatch], sizes: list[int]) -> list[ActivationBatch]:
        """The same activations in parts of other sizes."""
        self.store.settle()
        shared = all(part.dense is part.hidden for part in parts)
        new, first = [], 0
        for size in sizes:
            rows = slice(first, first + size)
            ids = _rows([part.ids for part in parts], rows)
            _, args, kwargs = first_block_call(self.model, ids)
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
        self.each(lambda place: self._advance_part(place, block, original))

    def each(self, work: Callable[[int], Result]) -> list[Result]:
        """What `work` makes of every part, by its place. One that memory does not hold is halved
        where it is, and nothing else is done anew."""
        found: list[Result] = []
        while len(found) < len(self.parts):
            place = len(found)
            found.append(retry_smaller(partial(work, place), partial(self.halve, place)))
        return found

    def _advance_part(self, place: int, block: nn.Module, original: nn.Module | None) -> None:
        part = self.parts[place]
        shared = part.dense is part.hidden
        apart = self.dense and not (shared and original is None)
        given, given_dense = self.fetch(place, apart)
        hidden = part.through(block, given)
        if apart:
            dense = part.through(original or block, given_dense)
            part.dense = self.store.keep(dense, None if shared else part.dense)
            shared = False
        part.hidden = self.store.keep(hidden, part.hidden)
        if shared:
            part.dense = part.hidden


def _hidden_of(output: Tensor | tuple) -> Tensor:
    """The hidden states in what a block gives: older transformers return a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def _rows(tensors: list[Tensor], rows: slice) -> Tensor:
    """A copy of some rows of tensors that stand one below the other."""
    found, first = [], 0
    for tensor in tensors:
        found.append(tensor[max(0, rows.start - first) : max(0, rows.stop - first)])
        first += len(tensor)
    return torch.cat(found)


def first_block_call(model: nn.Module, ids: LongTensor) -> tuple[Tensor, tuple, dict]:
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


@contextmanager
def blocks_gave(model: nn.Module, path: str, hidden: Tensor) -> Iterator[None]:
    """Within it, the model runs as if its blocks, which are at `path`, had given these hidden
    states [b, seqlen, width], on the device of its head: what comes after them is its own."""
    last = model.get_submodule(path)[-1]
    with replaced_blocks(model, path, [_Given(last, hidden)]):
        yield


class _Given(nn.Module):
    """Stands for all blocks: gives what they gave, whatever it receives."""

    def __init__(self, like: nn.Module, hidden: Tensor):
        super().__init__()
        self.__dict__["like"], self.__dict__["hidden"] = like, hidden

    def __getattr__(self, name: str):
        return getattr(self.__dict__["like"], name)  # such as attention_type, which a model reads

    def forward(self, *args, **kwargs) -> Tensor:
        return self.__dict__["hidden"]


def kinds_of_blocks(model: nn.Module) -> list[str]:
    """The kinds of a model's blocks, by their attention."""
    return sorted({*(getattr(model.config, "layer_types", None) or ())})


def compare_blockwise(model: nn.Module, window: LongTensor, output: Tensor | tuple) -> None:
    """Block by block on one window [1, seqlen] against what the last block gave inside the model; a
    SparselabError where they differ."""
    whole = _hidden_of(output)  # [1, seqlen, width]
    stream = Activations(model, ActivationStore("device", whole.device))
    stream.enter([window])
    for block in blocks_of(model):
        stream.replay(block)
    gap = ((stream.parts[0].hidden - whole).abs().max() / whole.abs().max()).item()
    if not gap < 1e-3:
        if len(kinds := kinds_of_blocks(model)) > 1:
            raise SparselabError(
                f"{model_name(model)} has blocks of several kinds ({', '.join(kinds)}), whose"
                " attention reads other windows: they cannot be called one after the other with"
                " the same mask. Take a seqlen that fits its windows, or a model whose blocks are"
                " all of one kind."
            )
        raise SparselabError(
            f"{model_name(model)}: block by block differs from the whole model by {gap:.2g} of the "
            "largest activation. Its blocks are not called as this version of sparselab expects; "
            "please report it with the versions that `python -m sparselab doctor` prints."
        )
