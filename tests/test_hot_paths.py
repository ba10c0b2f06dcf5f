"""What a GPU would wait for, counted on a CPU: stops, launches, memory, transfers; precision."""

from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, stored, weights
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import sparselab as sl
from sparselab import patterns
from sparselab.engine import loop
from sparselab.methods import feed_forward, sparsegpt
from sparselab.models import loading, streaming
from sparselab.models.blockwise import ActivationBatch, Activations
from sparselab.numerics import cholesky, statistics
from sparselab.runtime import memory, offload, transfer
from sparselab.runtime.transfer import Later

aten = torch.ops.aten
# What stops a GPU: numbers, shapes or checks that the host needs.
STOPS = {
    aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten.is_nonzero,
    aten._linalg_check_errors, aten._unique2, aten.unique_consecutive,
}  # fmt: skip
READS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}
BY_MASK = {aten.index, aten.index_put_, aten.index_put}


class Stops(TorchDispatchMode):
    """Counts what would stop a GPU, and all operations."""

    def __init__(self):
        super().__init__()
        self.stops, self.operations, self.paused, self.places = 0, 0, False, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function.overloadpacket
        masks = packet in BY_MASK and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.operations += 1
        if (packet in STOPS or masks) and not self.paused:
            self.count(str(packet))
        return function(*args, **(kwargs or {}))

    def count(self, what):
        self.stops += 1
        self.places[what] = self.places.get(what, 0) + 1


class Reads(TorchFunctionMode):
    """Counts what no operation shows on a CPU."""

    def __init__(self, stops):
        super().__init__()
        self.stops = stops

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in READS and not self.stops.paused:
            self.stops.count(function.__name__)
        return function(*args, **(kwargs or {}))


def leftmost(scores, count):
    """`patterns.lowest` as it is on a GPU."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count, dim=1, keepdim=True).values
    return patterns._leftmost(scores, threshold, count)


@pytest.fixture
def stops_of_a_block(windows, monkeypatch):
    """Of `stops_of_a_block(method, **sizes)`: what a block more costs, as a `Stops`. Scalars that a
    `Later` brings stop nothing; the optimiser's counters are on the host."""
    now = None
    monkeypatch.setattr(patterns, "lowest", leftmost)
    monkeypatch.setattr(sparsegpt, "lowest", leftmost)

    def unseen(work):
        def runs(*args, **options):
            before, now.paused = now.paused, True
            try:
                return work(*args, **options)
            finally:
                now.paused = before

        return runs

    monkeypatch.setattr(Later, "read", unseen(Later.read))
    monkeypatch.setattr(torch.optim.AdamW, "step", unseen(torch.optim.AdamW.step))

    def count(method, blocks, sizes):
        nonlocal now
        model = TINY["llama"](num_hidden_layers=blocks, **sizes)
        now = Stops()
        with Reads(now), now:
            sl.prune(model, windows, method=method, sparsity=0.7, progress=False, batch=4)
        return now

    def of_a_block(method, **sizes):
        fewer, more = count(method, 2, sizes), count(method, 3, sizes)
        more.stops -= fewer.stops
        more.operations -= fewer.operations
        return more

    return of_a_block


@pytest.mark.parametrize(
    "method, most",
    [
        ("magnitude", 40),
        ("wanda", 40),
        ("sparsegpt", 50),
        ("dsnot", 40),
        ("swaps", 40),
        ("admm", 70),
        ("sparsellm", 80),
        (sl.Wanda(refit=True), 50),
        (sl.SparseGPT(fisher=True, divide=True), 85),
    ],
    ids=str,
)
def test_few_stops_a_block_and_no_more_for_more_columns(method, most, stops_of_a_block):
    """A few for each of the seven matrices: what the report says of it, and checks."""
    found = [stops_of_a_block(method, intermediate_size=width).stops for width in (48, 144)]
    assert found[0] == found[1] <= most


@pytest.mark.parametrize(
    "few, many",
    [
        [sl.ADMM(tolerance=0.0, steps=steps) for steps in (6, 24)],
        [sl.SparseGPT(block=block) for block in (32, 8)],
        [sl.Swaps(max_cycles=cycles) for cycles in (1, 12)],
        [sl.DSnoT(max_cycles=cycles) for cycles in (2, 20)],
    ],
    ids=["admm", "sparsegpt", "swaps", "dsnot"],
)
def test_more_steps_are_no_more_stops(few, many, stops_of_a_block):
    one, other = map(stops_of_a_block, (few, many))
    assert one.stops == other.stops and one.operations < other.operations


def test_steps_of_the_descent_do_not_stop_a_gpu(stops_of_a_block):
    """A pass reads twice: the held-out error, and on the host the order of the windows."""
    tuned = [
        sl.SparseGPT(reconstruct=sl.Reconstruction(epochs=epochs, batch=batch, patience=9))
        for epochs, batch in ((1, 7), (1, 1), (3, 1))
    ]
    few, steps, passes = (stops_of_a_block(method).stops for method in tuned)
    assert few == steps and passes == steps + 4 and steps <= 60


def test_an_epoch_of_sparsellm_has_few_stops(stops_of_a_block):
    found = [
        stops_of_a_block(sl.SparseLLM(epochs=epochs, tolerance=-1.0)).stops for epochs in (1, 2, 3)
    ]
    assert found[2] - found[1] == found[1] - found[0] <= 10


# Precision.


def precisions():
    """All that a user may have set, by either interface of torch."""
    kinds = torch.backends
    places = (kinds, kinds.cuda.matmul, kinds.cudnn, kinds.cudnn.conv, kinds.mkldnn.matmul)
    return (
        [place.fp32_precision for place in places],
        torch.get_float32_matmul_precision(),
        kinds.cuda.matmul.allow_tf32,
    )


@pytest.mark.parametrize("user", ["highest", "high"])
@pytest.mark.parametrize("fails", [False, True])
def test_precision_is_afterwards_what_it_was(windows, monkeypatch, user, fails):
    """Gram matrices of 16-bit inputs are multiplied in TF32 on a GPU, and nothing else is."""
    seen, panels, first = [], cholesky._panels, torch.get_float32_matmul_precision()

    def watched(width):
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        if fails and len(seen) == 30:
            raise RuntimeError("in the middle")
        return panels(width)

    monkeypatch.setattr(cholesky, "_panels", watched)
    torch.set_float32_matmul_precision(user)
    try:
        before = precisions()
        call = {"method": "sparsegpt", "sparsity": 0.5, "progress": False, "batch": 2}
        with pytest.raises(RuntimeError, match="middle") if fails else nullcontext():
            sl.prune(TINY["llama"]().bfloat16(), windows, **call)
        assert precisions() == before and "tf32" in seen
    finally:
        torch.set_float32_matmul_precision(first)


def test_an_inherited_precision_stays_inherited():
    """What torch.backends says for all products is not pinned to those of a GPU."""
    everywhere, products = torch.backends, torch.backends.cuda.matmul
    before = everywhere.fp32_precision, products.fp32_precision
    try:
        products.fp32_precision = "none"
        for value in ("tf32", "ieee"):
            everywhere.fp32_precision = value
            with cholesky.tensor_cores(torch.float32):
                pass
            if value == "tf32":
                with cholesky.tensor_cores(torch.bfloat16):
                    pass
            assert products.fp32_precision == value
    finally:
        everywhere.fp32_precision, products.fp32_precision = before


# Memory.

GPU = torch.device("cuda")


@pytest.fixture
def card(monkeypatch):
    """A GPU that torch believes in, by its counters alone: bytes free, reserved and allocated."""
    counters = {"free": 60 * 2**30, "reserved": 30 * 2**30, "allocated": 4 * 2**30}
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "mem_get_info", lambda device=None: (counters["free"], 80 * 2**30))
    monkeypatch.setattr(cuda, "memory_reserved", lambda device=None: counters["reserved"])
    monkeypatch.setattr(cuda, "memory_allocated", lambda device=None: counters["allocated"])

    def empty():
        counters["free"] += counters["reserved"] - counters["allocated"]
        counters["reserved"] = counters["allocated"]

    monkeypatch.setattr(cuda, "empty_cache", empty)
    return counters


def on_a_gpu(config):
    """What `batch_size` and `ActivationStore` ask of a model, with its weights on a GPU."""
    weight = SimpleNamespace(device=GPU, element_size=lambda: 2)
    return SimpleNamespace(config=config, parameters=lambda: iter([weight]))


def test_what_torch_keeps_for_itself_is_free(card):
    """26 GiB that scoring left in the allocator make no batch smaller, and put no activations
    elsewhere; given back or not, all is the same."""
    model = on_a_gpu(LlamaConfig(hidden_size=8192, intermediate_size=2**17))
    found = []
    for _ in range(2):
        rooms = offload._rooms(model)
        found.append((memory.free_bytes(GPU), memory.batch_size(model, 2048), rooms["device"]))
        memory.return_memory()
    assert found[0] == found[1] and found[0][0] == 86 * 2**30
    assert card["reserved"] == card["allocated"] and 1 < found[0][1] < 32
    card["reserved"] = card["allocated"] = 80 * 2**30
    card["free"] = 2**20
    assert memory.batch_size(model, 2048) == 1


def test_caches_are_returned_between_phases(windows, card, monkeypatch, tmp_path):
    """Before the first block is captured, after scoring, and before a smaller attempt."""
    order = []
    empty = torch.cuda.empty_cache
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: (order.append("returned"), empty()))
    capture = loop._capture
    monkeypatch.setattr(loop, "_capture", lambda *a: (order.append("capture"), capture(*a))[1])
    model, call = TINY["llama"](), {"method": "wanda", "sparsity": 0.5, "progress": False}
    sl.prune(model, windows, **call)
    assert order == ["returned", "capture"]
    order.clear()
    sl.prune(stored(tmp_path / "model", model), windows, out=tmp_path / "out", **call)
    assert order[:2] == ["returned", "capture"] and order[-1] == "returned"
    order.clear()
    sl.perplexity(model, windows.flatten(), seqlen=32, progress=False)
    assert order == ["returned"]
    order.clear()
    attempts = iter([torch.OutOfMemoryError("CUDA out of memory"), None])

    def work():
        if error := next(attempts):
            raise error
        return "done"

    assert memory.retry_smaller(work, lambda: order.append("smaller")) == "done"
    assert order == ["returned", "smaller"]


def test_a_model_is_loaded_straight_to_its_device(tmp_path, monkeypatch):
    """On the device without memory nothing is read: no whole copy waits in the host's memory."""
    folder, asked = stored(tmp_path / "model", TINY["llama"]()), []
    load = loading.AutoModelForCausalLM.from_pretrained

    def watched(*args, **options):
        asked.append(options.get("device_map"))
        model, found = load(*args, **options)
        assert {weight.device.type for weight in model.parameters()} == {device}
        return model, found

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", watched)
    for device in ("meta", "cpu"):
        model, _ = sl.load(folder, device=device)
        assert not any(hasattr(module, "_hf_hook") for module in model.modules())
    assert asked == [{"": torch.device("meta")}, None]


@pytest.mark.parametrize(
    "error, words",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "not enough memory to load"),
        (RuntimeError("no kernel image\nis available"), "cannot be put on cpu: no kernel image. "),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_device_that_refuses_gets_a_sentence(
    tmp_path, windows, monkeypatch, error, words, streamed
):
    folder = stored(tmp_path / "model", TINY["llama"]())

    def refuses(*_, **__):
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "to", refuses)
    monkeypatch.setattr(streaming, "_move_outside", refuses)
    call = {"method": "wanda", "sparsity": 0.5, "progress": False, "out": tmp_path / "out"}
    with pytest.raises(sl.SparselabError, match=words) as raised:
        sl.prune(folder, windows, **call) if streamed else sl.load(folder)
    assert "\n" not in str(raised.value) and not (tmp_path / "out.part").exists()


# Chunks.


def test_chunks_are_of_the_device(card):
    """On a CPU what its cache holds, whatever is free; on a GPU a power of two, as memory has it,
    and never so many that it matters which."""
    wide = 4 * 8 * 13824  # bytes of a token in LLaMA-2-13b's feed-forward network
    for card["free"] in (0, 2**40):
        assert memory.chunk_size(torch.device("cpu"), wide, 256) == 256
    found = []
    for free in (0, 1, 6, 20, 60, 130):  # GiB, beside what torch keeps
        card.update(free=free * 2**30, reserved=2**30, allocated=2**30)
        found.append(memory.chunk_size(GPU, wide, 256))
    assert found == [256, 512, 2048, 8192, 16384, 16384]


@pytest.mark.parametrize("work", ["norms", "feed-forward"])
def test_a_gpu_gets_few_launches(work, card, monkeypatch):
    """65,536 tokens of a tiny width, in a CPU's chunks and in a GPU's."""
    x, counted = torch.randn(65536, 8), []
    linears = {"up": torch.nn.Linear(8, 16), "gate": torch.nn.Linear(8, 16)}
    linears["down"] = torch.nn.Linear(16, 8)
    chunk = memory.chunk_size
    for device in (torch.device("cpu"), GPU):
        for place in (statistics, feed_forward):
            monkeypatch.setattr(place, "chunk_size", lambda _, *sizes: chunk(device, *sizes))  # noqa: B023
        with torch.no_grad(), Stops() as operations:
            if work == "norms":
                statistics.Statistics(8, x.device, needs=("norms",), every=64).add(x)
            else:
                network = feed_forward.FeedForward(linears, len(x))
                network.add(x)
                network.initial_cross_products({"gram", "norms"})
                network.hidden_statistics(network.weight)
        counted.append(operations.operations)
    assert counted[1] < counted[0] / (10 if work == "norms" else 20)


# Transfers.


@pytest.fixture
def streams(monkeypatch):
    """Streams and events of a GPU, which write down what they are asked for, in order."""
    log, cpu = [], torch.device("cpu")

    class Event(str):
        def synchronize(self):
            log.append(f"{self} waited for")

    class Stream:
        device = cpu

        def __init__(self, name):
            self.name = name

        def record_event(self):
            log.append(f"event on {self.name}")
            return Event("event")

        def wait_event(self, event):
            log.append(f"{self.name} waits for {event}")

    @contextmanager
    def on(stream):
        log.append(f"to {stream.name}")
        yield
        log.append(f"off {stream.name}")

    def sends(tensor, *target, **how):
        if how.get("non_blocking"):
            log.append("copy")
        return to(tensor, *target, **how)

    def brings(tensor, source, non_blocking=False):
        if non_blocking:
            log.append("copy back")
        return copy(tensor, source)

    to, copy = torch.Tensor.to, torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", brings)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (log.append("pin"), self)[1])
    monkeypatch.setattr(torch.Tensor, "to", sends)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, stream: log.append(f"kept for {stream.name}")
    )
    return log


def test_the_next_block_is_sent_on_a_stream_of_its_own(streams):
    """From pinned memory; what uses it waits for the event, and its memory for what uses it."""
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    sent = transfer.Sender(GPU).send(tensors)
    there = ["to side", "pin", "pin", "copy", "copy", "event on side", "off side"]
    assert streams == there
    assert sent.receive().keys() == tensors.keys()
    assert streams == [*there, "main waits for event", "kept for main", "kept for main"]


def test_a_block_without_room_on_the_gpu_waits_in_host_memory(streams, monkeypatch):
    def no_room(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "to", no_room)
    sent, tensors = transfer.Sender(GPU).send({"a": torch.ones(2)}), {"a": torch.ones(2)}
    assert sent.arrived is None and torch.equal(sent.receive()["a"], tensors["a"])
    assert "event on side" not in streams


def test_a_streamed_run_by_way_of_a_side_stream_has_the_same_bits(windows, tmp_path, streams):
    """Each block comes the new way, and is received before it is used; a CPU knows no streams."""
    folder = stored(tmp_path / "model", TINY["llama"](num_hidden_layers=3))
    call, sender = {"method": "wanda", "sparsity": 0.5, "progress": False}, streaming.Sender
    sl.prune(folder, windows, out=tmp_path / "plain", **call)
    assert "event on side" not in streams
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "Sender", lambda device: sender(GPU))
        sl.prune(folder, windows, out=tmp_path / "sent", **call)
    assert streams.count("main waits for event") == 5  # two of them for the proof
    one, two = weights(tmp_path / "plain"), weights(tmp_path / "sent")
    assert {*one} == {*two} and all(torch.equal(one[key], two[key]) for key in one)


@torch.no_grad()
def test_offloaded_activations_travel_beside_the_products(streams, monkeypatch):
    """Outputs go to the host, and the next part's inputs to the GPU, on the side stream: while a
    part is computed, the one after it is on its way. The host waits for what was brought one part
    before."""
    windows, block = torch.arange(24).view(3, 8) + 4, TINY["llama"]()
    store = offload.ActivationStore("cpu", torch.device("cpu"))
    store.sender = transfer.Sender(GPU)
    monkeypatch.setattr(store, "_room", torch.empty_like)
    stream = Activations(block, store)
    stream.enter(windows.split(1))
    streams.clear()
    through = ActivationBatch.through
    monkeypatch.setattr(
        ActivationBatch, "through", lambda *a: (streams.append("products"), through(*a))[1]
    )
    stream.replay(sl.blocks_of(block)[0])
    sent = ["to side", "pin", "copy", "event on side", "off side"]
    there = ["main waits for event", "kept for main"]
    brought = ["event waited for", "event on main", "side waits for event", "to side", "copy back"]
    brought += ["event on side", "off side", "kept for side"]
    middle = [*there, *sent, "products", *brought]
    assert streams == [*sent, *middle, *middle, *there, "products", *brought]


class Lazy(transfer.Sender):
    """Of a GPU at its slowest: nothing is there before somebody waits for it."""

    def __init__(self):
        self.queue, self.settled, self.sent, self.bytes = [], 0, 0, 0

    def _drain(self):
        while self.queue:
            self.queue.pop(0)()

    def send(self, tensors):
        there = {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}
        self.queue += [partial(there[name].copy_, tensor) for name, tensor in tensors.items()]
        self.sent += 1
        self.bytes += sum(tensor.nbytes for tensor in tensors.values())
        return SimpleNamespace(arrived=True, receive=lambda: (self._drain(), there)[1])

    def bring(self, tensor, room):
        self.queue.append(partial(room.copy_, tensor))

    def settle(self):
        self.settled += 1
        self._drain()


@pytest.fixture
def lazy(monkeypatch):
    """All senders of activation stores for offload='cpu', as on a GPU; rooms start as NaN."""
    senders, begin = [], offload.ActivationStore.__init__

    def as_on_a_gpu(self, place, device):
        begin(self, place, device)
        if place == "cpu":
            self.sender = Lazy()
            senders.append(self.sender)

    monkeypatch.setattr(offload.ActivationStore, "__init__", as_on_a_gpu)
    monkeypatch.setattr(
        offload.ActivationStore, "_room", lambda self, like: torch.full_like(like, torch.nan)
    )
    return senders


@pytest.mark.parametrize(
    "method",
    ["sparsellm", sl.ADMM.guided(), sl.SparseGPT(reconstruct=sl.Reconstruction(epochs=1, batch=2))],
    ids=["sparsellm", "guided", "tuned"],
)
@pytest.mark.parametrize("short", [False, True])
def test_nothing_is_read_before_it_is_there(method, short, windows, lazy, monkeypatch):
    """Whatever reads activations waits for them: the same bits, also after memory ran out; the host
    itself waits only then."""
    found, forward = [], ActivationBatch.through

    def limited(self, block, hidden):
        if short and len(hidden) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, block, hidden)

    monkeypatch.setattr(ActivationBatch, "through", limited)
    for place in ("device", "cpu"):
        model = TINY["llama"]()
        call = {"method": method, "sparsity": 0.5, "progress": False, "batch": 3}
        sl.prune(model, windows, offload=place, **call)
        found.append(model.state_dict())
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())
    assert lazy and all(sender.sent for sender in lazy)
    assert short or not any(sender.settled for sender in lazy)


def test_scores_of_offloaded_activations_are_the_same(windows, lazy, tmp_path):
    folder, text = stored(tmp_path / "model", TINY["opt"]()), windows.flatten()
    call = {"seqlen": 16, "progress": False}
    one, two = (sl.perplexity(folder, text, offload=place, **call) for place in ("device", "cpu"))
    assert torch.equal(one.losses, two.losses) and lazy[0].sent and not lazy[0].settled


def test_a_scalar_that_comes_later_waits_for_itself_alone(monkeypatch):
    """On a GPU it is copied to pinned memory before the event, and read after it; on a CPU at
    once."""
    log = []

    class Scalar:
        is_cuda, dtype, device = True, torch.float32, GPU
        value = torch.tensor(3.0)

    class Pinned:
        def copy_(self, other, non_blocking):
            self.value = other.value
            log.append(("copy", non_blocking))

        def item(self):
            log.append("item")
            return self.value.item()

    event = SimpleNamespace(
        record=lambda stream: log.append(f"event on {stream}"),
        synchronize=lambda: log.append("event waited for"),
    )
    monkeypatch.setattr(transfer.torch, "empty", lambda shape, dtype, pin_memory: Pinned())
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "main")
    later = Later(Scalar())
    assert log == [("copy", True), "event on main"] and later.read() == 3.0
    assert log[2:] == ["event waited for", "item"]
    assert Later(torch.tensor(True)).read() is True
