"""Where activations wait between two blocks: on the device, in the host's memory, on disk."""

import os
import shutil
import tempfile

import torch
from torch import Tensor, nn

from ..errors import SparselabError
from . import distributed
from .files import naming_file_errors
from .memory import free_bytes


class ActivationStore:
    """Where activations wait between two blocks: on the device, in the host's memory, or in a file
    without a name, which is gone when the process is."""

    PLACES = ("device", "cpu", "disk")

    def __init__(self, place: str, device: torch.device):
        self.place, self.device = place, device

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
        if self.place == "device" or (self.place == "cpu" and self.device.type == "cpu"):
            return new
        if old is None or old.shape != new.shape or old is new:
            old = self._room(new)
        return old.copy_(new)

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
