"""Several processes, each with a share of the calibration windows: sums are added up, matrices are
divided among them.

Started by `torchrun --nproc-per-node=N -m sparselab prune ...`; without torchrun every function
here does nothing.
"""

import io
import os
from collections.abc import Callable
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import LongTensor, Tensor

from ..errors import SparselabError

Name, Result = TypeVar("Name"), TypeVar("Result")


def size() -> int:
    """Processes that work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This one's number; the first, 0, prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def group():
    """Join the others that torchrun started, over NCCL on GPUs and over gloo elsewhere; the device
    of this one."""
    if not _of_torchrun():
        yield None
        return
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _of_torchrun() -> bool:
    """Whether torchrun started this process with others."""
    told = {name: os.environ.get(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    if told["WORLD_SIZE"] in (None, "", "1"):
        return False
    if not all(str(value).isdecimal() for value in told.values()):
        given = ", ".join(f"{name}={value}" for name, value in told.items())
        raise SparselabError(
            f"the environment says that several processes work together, but not which one this is"
            f" ({given}). Start them with torchrun, or unset WORLD_SIZE."
        )
    return True


def shard_windows(windows: LongTensor) -> LongTensor:
    """This process's calibration windows, [samples / processes, seqlen]."""
    if len(windows) < size():
        raise SparselabError(
            f"{len(windows)} calibration windows for {size()} processes: each needs one. Use more"
            " samples."
        )
    return windows.tensor_split(size())[rank()]


def all_reduce(*tensors: Tensor | None) -> None:
    """Each tensor becomes its sum over the processes, in place."""
    if size() > 1:
        for tensor in tensors:
            if tensor is not None:
                dist.all_reduce(tensor)


def all_reduce_scalar(number: float) -> float:
    """The sum of a number over the processes."""
    if size() == 1:
        return number
    value = torch.tensor(number, dtype=torch.float64, device=_own_device())
    dist.all_reduce(value)
    return type(number)(value.item())


def all_gather(mine: Result) -> list[Result]:
    """What each process has, by its number; tensors on this one's device: another's may be a card
    that this machine does not have, or one that its own process fills."""
    if size() == 1:
        return [mine]
    written, found = io.BytesIO(), [b""] * size()
    torch.save(mine, written)
    dist.all_gather_object(found, written.getvalue())
    device = _own_device()
    return [torch.load(io.BytesIO(one), device, weights_only=False) for one in found]


def _own_device() -> torch.device:
    """Where the processes' numbers meet."""
    nccl = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def run_divided(
    work: dict[Name, Callable[[], Result]], take: Callable[[Name, Result], None]
) -> None:
    """Hand the results, each computed by one process and sent to the others, to `take` by name, in
    order. `work` is used up: alone, a process holds one result at a time, and nothing of the work
    behind it. Thresholds belong to whole matrices, so that a matrix is the smallest piece that
    gives the same mask as one process does."""
    if size() == 1:
        for name in [*work]:
            take(name, work.pop(name)())
        return
    try:
        names = [*work][rank() :: size()]
        mine = {name: work[name]() for name in names}
    except SparselabError as error:
        mine = error  # the others would wait for ever
    results = all_gather(mine)
    for part in results:
        if isinstance(part, Exception):
            raise part
    for place, name in enumerate(work):
        take(name, results[place % size()][name])


def barrier() -> None:
    """Until all processes are here."""
    if size() > 1:
        dist.barrier()
