"""Where activations wait between two blocks: on the device, in the host's memory, on disk."""

import os
import shutil
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import SparselabError
from . import distributed
from .files import naming_file_errors
from .memory import free_bytes
from .transfer import Sender, Sent


class ActivationStore:
    """Where activations wait between two blocks: on the device, in the host's memory, or in a file
    without a name, which is gone when the process is. Between a GPU and the host's memory they
    travel beside the GPU's work, so that what `keep` gave is read by way of `fetch`, or after
    `settle`."""

    PLACES = ("device", "cpu", "disk")

    def __init__(self, place: str, device: torch.device):
        self.place, self.device = place, device
        self.sender = Sender(device) if place == "cpu" and device.type == "cuda" else None
        self.ahead: tuple[list[Tensor], Sent | None] = [], None  # what is wanted next, on its way

    @classmethod
    def check(cls, offload: str) -> None:
        """A SparselabError for a name that is none of a place, nor 'auto'."""
        if offload not in ("auto", *cls.PLACES):
            raise SparselabError(f"offload={offload!r}: 'auto', 'device', 'cpu' or 'disk'.")

    @classmethod
    def choose(cls, offload: str, model: nn.Module, tokens: int) -> "ActivationStore":
        """By name, or 'auto': on the device while the activations fill at most 40 % of what is free
        there, else in the host's memory while they fill at most half of what is free, else on disk.
        """
        weight = next(model.parameters())
        cls.check(offload)
        if offload == "auto":
            needed, rooms = tokens * model.config.hidden_size * weight.element_size(), _rooms(model)
            offload = next((place for place in ("device", "cpu") if needed <= rooms[place]), "disk")
        return cls(offload, weight.device)

    @classmethod
    def portion(cls, offload: str, model: nn.Module, tokens: int, copies: int) -> tuple[str, int]:
        """Where `copies` of the activations of so many tokens can wait, and how many tokens' they
        are at a time, where they do not all fit; 'auto' does not take the disk for that."""
        rooms, each = _rooms(model), copies * model.config.hidden_size
        each *= next(model.parameters()).element_size()
        places = ("device", "cpu") if offload == "auto" else (offload,)
        for place in places:
            if tokens * each <= rooms[place]:
                return place, tokens
        place = max(places, key=rooms.get)
        return place, int(rooms[place] // each)

    def keep(self, new: Tensor, old: Tensor | None = None) -> Tensor:
        """Keep a tensor; `old`, kept before and no longer needed, gives its room."""
        if self.sender is None and self.place != "disk":
            return new
        if old is None or old.shape != new.shape or old is new:
            old = self._room(new)
        if self.sender is None or new.device != self.device:
            return old.copy_(new)
        self.sender.bring(new, old)
        return old

    def fetch(self, kept: list[Tensor], then: Sequence[Tensor] = ()) -> list[Tensor]:
        """Tensors that were kept, on the device; `then`, those that are wanted next, travel there
        meanwhile."""
        if self.sender is None:
            return [tensor.to(self.device) for tensor in kept]
        (wanted, sent), self.ahead = self.ahead, ([], None)
        if sent is None or [*map(id, wanted)] != [*map(id, kept)]:
            sent = self._send(kept)
        found = [*sent.receive().values()]
        if sent.arrived is None:  # the device had no room for them yet
            self.sender.settle()
            found = [tensor.to(self.device) for tensor in found]
        if then:
            self.ahead = [*then], self._send(then)
        return found

    def settle(self) -> None:
        """Wait until all that is kept is where it waits, so that the host can read it, and let go
        what was on its way to the device."""
        self.ahead = [], None
        if self.sender is not None:
            self.sender.settle()

    def _send(self, kept: Sequence[Tensor]) -> Sent:
        return self.sender.send({str(place): tensor for place, tensor in enumerate(kept)})

    def _room(self, like: Tensor) -> Tensor:
        if self.place == "cpu":
            return torch.empty_like(like, device="cpu", pin_memory=True)
        folder, size = os.environ.get("SPARSELAB_SCRATCH"), like.numel() * like.element_size()
        with (
            naming_file_errors(
                f"activations cannot wait in {folder or tempfile.gettempdir()} (scratch folder)",
                "Set SPARSELAB_SCRATCH to a folder with room, or pass offload='cpu'.",
            ),
            tempfile.NamedTemporaryFile(prefix="sparselab-", dir=folder) as file,
        ):
            if hasattr(os, "posix_fallocate"):  # else a full disk kills the process, by a signal
                os.posix_fallocate(file.fileno(), 0, size)
            room = torch.from_file(file.name, shared=True, size=like.numel(), dtype=like.dtype)
            return room.view(like.shape)


def _rooms(model: nn.Module) -> dict[str, float]:
    """Bytes that activations may fill by place: 40 % of what is free on the device, half of that in
    the host's memory, nine tenths of that on disk, which several processes share."""
    folder = os.environ.get("SPARSELAB_SCRATCH") or tempfile.gettempdir()
    with naming_file_errors(f"scratch folder {folder}", "Set SPARSELAB_SCRATCH to another folder."):
        disk = shutil.disk_usage(folder).free
    return {
        "device": 0.4 * free_bytes(next(model.parameters()).device),
        "cpu": 0.5 * free_bytes(torch.device("cpu")) / distributed.size(),
        "disk": 0.9 * disk / distributed.size(),
    }
