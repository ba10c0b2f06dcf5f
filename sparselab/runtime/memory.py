"""How many windows go through a model at once: decided from free memory, halved when that was too
many."""

import ctypes
import errno
import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from ..errors import SparselabError

try:
    import resource
except ImportError:  # Windows
    resource = None

Result = TypeVar("Result")
OUT_OF_MEMORY = (
    "out of memory with a single window at a time. Use a shorter seqlen, fewer samples, "
    "dtype=torch.bfloat16, a smaller model or a larger machine."
)
# Of plain RuntimeErrors: Windows, mmap, oneDNN, a pool of threads, pinned memory, cuBLAS.
OUT_OF_MEMORY_WORDS = (
    "not enough memory",
    "annot allocate memory",
    "could not create a primitive",
    "can't start new thread",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",
)
TOKENS_AT_ONCE = 4096  # on a CPU more tokens at once are not faster, only larger
LARGEST_CHUNK = 16384  # tokens; on a GPU more at once save no time: each launch is long enough


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on a device; what torch keeps for itself and does not use
    counts."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def batch_size(model: nn.Module, seqlen: int) -> int:
    """Windows at once: a quarter of free memory filled with the widest activations, and no more
    than is useful."""
    device, config = next(model.parameters()).device, model.config
    inner = getattr(config, "intermediate_size", getattr(config, "ffn_dim", 0))
    sizes = config.hidden_size, inner, config.vocab_size
    return fitting_batch(*sizes, seqlen, device.type, free_bytes(device))


def fitting_batch(
    width: int, inner: int, vocabulary: int, seqlen: int, device: str, free: float
) -> int:
    """Windows at once in a model of such sizes on a kind of device with so many free bytes."""
    widest = max(8 * width + 4 * inner, 2 * vocabulary)
    useful = max(1, (TOKENS_AT_ONCE if device == "cpu" else 16 * TOKENS_AT_ONCE) // seqlen)
    return int(max(1, min(useful, free // 4 // (4 * widest * seqlen))))


def chunk_size(device: torch.device, each: int, in_cache: int) -> int:
    """Tokens at a time in a sum over tokens, which need `each` bytes: on a CPU `in_cache`, as many
    as stay there. A GPU pays for each launch instead: as many as a quarter of free memory holds, to
    a power of two and no more than are useful, so that the bits of the sum hardly ever depend on
    what is free."""
    if device.type == "cpu":
        return in_cache
    fits = free_bytes(device) // 4 // each
    return min(LARGEST_CHUNK, 1 << max(fits, in_cache).bit_length() - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """A GPU's exception, a CPU's, or one of the plain RuntimeErrors that torch and its back ends
    raise instead."""
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or getattr(error, "errno", None) == errno.ENOMEM
        or any(words in str(error) for words in OUT_OF_MEMORY_WORDS)
        or (isinstance(error, Exception) and should_reduce_batch_size(error))
    )


def retry_smaller(work: Callable[[], Result], shrink: Callable[[], None]) -> Result:
    """`work()`, tried again after `shrink()` while memory runs out. The work must be free to start
    anew; `shrink` raises where nothing smaller is left."""
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return_memory()  # here, where the error no longer holds that of the failed work
        shrink()


def with_batch_halving(work: Callable[[int], Result], batch: int) -> Result:
    """`work(batch)`, tried again with half the batch while memory runs out."""

    def halve() -> None:
        nonlocal batch
        if batch == 1:
            raise SparselabError(OUT_OF_MEMORY)
        batch //= 2

    return retry_smaller(lambda: work(batch), halve)


@contextmanager
def naming_memory_errors(what: str, advice: str):
    """Run the body; where memory runs out, raise one sentence: "not enough memory to {what}."."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise SparselabError(f"not enough memory to {what}. {advice}") from error


def in_batches(
    function: Callable[[Tensor, int], Result],
    batches: Callable[[int], Iterable[Tensor]],
    model: nn.Module,
    seqlen: int,
    bar,
) -> list[Result]:
    """The function's results on batches of windows [b, up to seqlen], which `batches(size)` cuts,
    as many at once as fit; it also receives the number of the first window."""

    def work(size: int) -> list[Result]:
        bar.reset()
        results, first = [], 0
        for part in batches(size):
            results.append(function(part, first))
            first += len(part)
            bar.update(len(part))
        return results

    return with_batch_halving(work, batch_size(model, seqlen))


def return_memory() -> None:
    """Between two phases: give back what the allocators of the host and of the GPUs hold and do not
    use. `free_bytes` counts it as free, but others cannot have it: the libraries' workspaces, other
    processes, and torch itself where it lies in pieces."""
    trim_host_memory()
    torch.cuda.empty_cache()  # nothing where no GPU is in use


def trim_host_memory() -> None:
    """Return freed memory to the system. glibc keeps freed pieces of up to 32 MB, most matrices of
    a block among them, and what it keeps grows from block to block."""
    with suppress(OSError, AttributeError):  # another system, another allocator
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_bytes(device: torch.device) -> int:
    """The most memory held so far: by torch on a GPU, by the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    return peak_rss() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_rss(process: int | str = "self") -> int:
    """The most bytes that a process ever held, 0 where /proc does not tell; getrusage's figure,
    which others must take, begins with what the parent process held."""
    with suppress(OSError, StopIteration):
        status = Path(f"/proc/{process}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return 0


def reset_peak(device: torch.device) -> int:
    """Let `peak_bytes` count from now on, where the system can (Linux, a GPU); the bytes that are
    held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    trim_host_memory()  # freed memory would be used again, uncounted
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's code for the high-water mark
    return peak_bytes(device)
