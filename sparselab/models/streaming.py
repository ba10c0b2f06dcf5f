"""A model in safetensors files whose blocks are read one at a time, each ahead of its turn."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import LongTensor, Tensor, nn

from ..errors import SparselabError
from ..runtime.memory import return_memory, trim_host_memory
from ..runtime.transfer import Sender, Sent
from .architecture import blocks_of, family_of, model_name, replaced_blocks
from .blockwise import compare_blockwise, kinds_of_blocks
from .checkpoint import Checkpoint
from .hooks import watching
from .loading import naming_device_errors
from .packed import stored_tensors


class BlockReader:
    """A model in safetensors files, of which one block after the other has memory: `load` fills it,
    while the one after it is read ahead, and sent to a GPU beside its work. `read_outside` reads
    what comes before the blocks, `head` what comes after them; before that, `model` is the
    structure alone.
    """

    def __init__(self, name: str | Path, dtype: torch.dtype | None, device: torch.device):
        self.checkpoint, self.device = Checkpoint(name), device
        self.model = self.checkpoint.skeleton(dtype)
        self.blocks, self.prefix = blocks_of(self.model), family_of(self.model).blocks
        self.like = [dict(block.state_dict()) for block in self.blocks]  # without memory
        self.outside = {
            key: like
            for key, like in stored_tensors(self.model).items()
            if not key.startswith(self.prefix + ".")
        }
        needed = self.model.base_model_prefix + "."
        self.own_head = {
            key: like for key, like in self.outside.items() if not key.startswith(needed)
        }
        with naming_device_errors(name, device):  # the first that the device is asked for
            self.sender = Sender(device)
        self.reader = ThreadPoolExecutor(1)
        self.ahead: dict[int, Future] = {}

    def read_outside(self) -> None:
        """Everything but the blocks, and a head of its own, to the device."""
        used = {key: like for key, like in self.outside.items() if key not in self.own_head}
        self.model.load_state_dict(self.checkpoint.read(used), strict=False, assign=True)
        with naming_device_errors(self.checkpoint.name, self.device):
            _move_outside(self.model, self.blocks, self.device)

    def release_outside(self) -> None:
        """Free it again, as the rest reads blocks only. Zeros stand there that take no memory: how
        windows are masked can still be asked of the model."""
        for key, like in self.outside.items():
            zero = torch.zeros((), dtype=like.dtype, device=self.device)
            if key not in self.own_head:
                _put(self.model, key, zero.expand(like.shape))
        self.model.tie_weights()  # else a head that is the embeddings would keep them
        return_memory()

    def load(self, layer: int, then: int | None = None) -> nn.Module:
        """The dense block on the device; the next one, or `then`, if there is such a block, is
        being read meanwhile."""
        tensors = self.ahead.pop(layer, None) or self._read(layer)
        then = layer + 1 if then is None else then
        if 0 <= then < len(self.blocks):
            self.ahead[then] = self._read(then)
        return self._fill(layer, tensors.result().receive())

    def release(self, layer: int) -> None:
        """Free the memory of a block that did not change."""
        self.blocks[layer].to("meta")
        trim_host_memory()

    def forget(self) -> None:
        """Free all blocks, and start reading from the first."""
        self.ahead = {}
        self.blocks.to("meta")
        return_memory()

    @contextmanager
    def head(self) -> Iterator[None]:
        """Within it, an output head that is not the embeddings has memory as well."""
        for key, value in self.checkpoint.read(self.own_head).items():
            _put(self.model, key, value.to(self.device))
        try:
            yield
        finally:
            for key, like in self.own_head.items():
                _put(self.model, key, like)

    @contextmanager
    def verified(self, window: LongTensor) -> Iterator[None]:
        """Prove on one window [1, seqlen] that block by block equals the whole model, cut to its
        first two blocks; within it, the model is cut to them.

        Raises a SparselabError where they differ, or where two blocks do not speak for all.
        """
        if len(kinds := kinds_of_blocks(self.model)) > 1:
            raise SparselabError(
                f"{model_name(self.model)} has blocks of several kinds ({', '.join(kinds)}), of"
                " which two cannot speak for all. Load it with sl.load, and pass the whole model:"
                " it is scored as it is, and pruned where its windows are no shorter than seqlen."
            )
        last = []
        try:
            blocks = [self.load(0, then=1)]
            if len(self.blocks) > 1:
                blocks.append(self.load(1, then=-1))  # no third one is held
            with replaced_blocks(self.model, self.prefix, blocks):
                with watching({"": blocks[-1]}, after=lambda _, args, output: last.append(output)):
                    # all but the head, which has no memory
                    self.model.base_model(window.to(self.device), use_cache=False)
                compare_blockwise(self.model, window, last[0])
                yield
        finally:
            self.forget()

    def close(self) -> None:
        """Nothing more is read."""
        self.reader.shutdown(cancel_futures=True)
        self.ahead = {}
        return_memory()

    def _read(self, layer: int) -> Future:
        names = {f"{self.prefix}.{layer}.{key}": like for key, like in self.like[layer].items()}
        return self.reader.submit(self._read_and_send, names)

    def _read_and_send(self, names: dict[str, Tensor]) -> Sent:
        return self.sender.send(self.checkpoint.read(names, stored=True))

    def _fill(self, layer: int, tensors: dict[str, Tensor]) -> nn.Module:
        here = {}
        for name, tensor in tensors.items():
            key = name.removeprefix(f"{self.prefix}.{layer}.")
            here[key] = tensor.to(
                self.device, self.like[layer][key].dtype
            )  # 16 bits take half the room until here
        self.blocks[layer].load_state_dict(here, assign=True)
        return self.blocks[layer]


def _put(model: nn.Module, key: str, value: Tensor) -> None:
    """Let a parameter be this tensor. It may have a gradient, as in a model in memory: torch takes
    other kernels, of other bits, where it may not, also where none is computed."""
    path, _, name = key.rpartition(".")
    setattr(model.get_submodule(path), name, nn.Parameter(value))


def _move_outside(model: nn.Module, blocks: nn.ModuleList, device: torch.device) -> None:
    """Everything but the blocks, and a head of its own, to the device; blocks have no memory."""
    inside = {id(module) for block in blocks for module in block.modules()}
    for module in model.modules():
        if id(module) not in inside:
            for name, value in module.named_parameters(recurse=False):
                if not value.is_meta:
                    _put(module, name, value.to(device))
            for name, value in module.named_buffers(recurse=False):
                setattr(module, name, value.to(device))
    model.tie_weights()
