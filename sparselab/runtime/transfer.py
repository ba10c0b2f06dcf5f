"""What travels between a device and the host while both go on working."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .memory import is_out_of_memory


class Later:
    """A scalar on its way from a GPU to the host. `item()` of a tensor waits for all that was
    queued before and leaves the GPU with nothing to do; here only this one scalar is waited for,
    and what is queued between making a `Later` and reading it keeps the GPU busy. On a CPU it is
    the tensor itself, which must not change until it is read."""

    def __init__(self, scalar: Tensor):
        self.scalar, self.arrived = scalar, None
        if scalar.is_cuda:
            self.scalar = torch.empty((), dtype=scalar.dtype, pin_memory=True)
            self.scalar.copy_(scalar, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record(torch.cuda.current_stream(scalar.device))

    def read(self) -> bool | int | float:
        """The number, as soon as it is here."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.scalar.item()


@dataclass
class Sent:
    """Tensors that are on their way to a device, and the event that they are there."""

    tensors: dict[str, Tensor]
    arrived: "torch.cuda.Event | None" = None

    def receive(self) -> dict[str, Tensor]:
        """The tensors; what is queued from now on waits for them, the host does not."""
        if self.arrived is not None:
            now = torch.cuda.current_stream(next(iter(self.tensors.values())).device)
            now.wait_event(self.arrived)
            for tensor in self.tensors.values():  # allocated on one stream, used on another
                tensor.record_stream(now)
        return self.tensors


class Sender:
    """Sends tensors from the host ahead of their use: to a GPU from pinned memory and on a stream
    of its own, beside the products of the present block; and brings others back to the host. On a
    CPU they stay what they are."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.brought: torch.cuda.Event | None = None  # that the last one is in the host's memory

    def send(self, tensors: dict[str, Tensor]) -> Sent:
        """From any thread. Where a GPU has no room yet, they wait in the host's memory."""
        if self.stream is None:
            return Sent(tensors)
        waiting, there = dict(tensors), {}
        with torch.cuda.stream(self.stream):  # of that GPU, whatever the thread's own is
            try:
                for name in waiting:  # one pageable tensor after the other is let go
                    waiting[name] = waiting[name].pin_memory()
                for name, tensor in waiting.items():
                    there[name] = tensor.to(self.stream.device, non_blocking=True)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return Sent(waiting)
            return Sent(there, self.stream.record_event())

    def bring(self, tensor: Tensor, room: Tensor) -> None:
        """Copy a GPU's tensor, which must not change any more, to `room` of its shape in the host's
        pinned memory, beside what the GPU does next. What is sent from `room` later waits for it;
        the host itself reads it after `settle` only. Of two at once the first is waited for: else a
        host that runs ahead would keep all of them on the GPU."""
        if self.brought is not None:
            self.brought.synchronize()
        self.stream.wait_event(torch.cuda.current_stream(self.stream.device).record_event())
        with torch.cuda.stream(self.stream):
            room.copy_(tensor, non_blocking=True)
            self.brought = self.stream.record_event()
        tensor.record_stream(self.stream)  # allocated on one stream, used on another

    def settle(self) -> None:
        """Wait for all that was sent and brought."""
        if self.stream is not None:
            self.stream.synchronize()
