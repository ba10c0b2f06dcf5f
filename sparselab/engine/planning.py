"""What a run will cost, before anything is loaded: memory by term, minutes by phase."""

import math
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
from torch import nn
from transformers import PretrainedConfig

from ..errors import SparselabError
from ..methods.base import Method
from ..methods.parameters import checked
from ..methods.registry import find_method
from ..models.architecture import Family, blocks_of, family_of
from ..models.checkpoint import config_of, empty_model
from ..models.loading import find_device
from ..numerics.statistics import GRAM
from ..runtime.memory import fitting_batch, free_bytes
from ..runtime.offload import ActivationStore
from .division import ABOVE, BELOW

GIB = 2**30
# Python, torch and transformers themselves (measured: bench/plan.txt); CUDA's context.
RUNTIME = {"cpu": 0.45 * GIB, "cuda": 0.5 * GIB}
SHARE = 0.5  # of a large product's speed that a forward pass or a solver reaches
# What is held in turn: of these the peak has those that are most together.
TURNS = (
    ("forward pass", "statistics", "feed-forward variables"),
    ("solver", "statistics", "feed-forward variables"),
    ("reconstruction", "reconstruction's targets"),
    ("before the blocks", "gradients", "inputs of all blocks"),
    ("before the blocks", "output head, copied"),
)


@dataclass
class Plan:
    """Bytes by term, where the run needs them ('device' or 'host'), seconds by phase, the bytes
    that are free in each place that this machine has, and how many windows go through a block at
    once."""

    title: str
    bytes: dict[str, tuple[str, float]]
    seconds: dict[str, float]
    free: dict[str, float]
    batch: int

    def total(self, place: str) -> float:
        """Bytes that a place must hold at the peak: less than the terms together, of which some
        take turns."""
        return peak(self.bytes, place)

    def frame(self) -> pd.DataFrame:
        """One row a term."""
        rows = [(term, where, amount / GIB) for term, (where, amount) in self.bytes.items()]
        return pd.DataFrame(rows, columns=["term", "where", "GiB"])

    def advice(self) -> str:
        """Whether it fits, and what to turn where it does not."""
        if "device" not in self.free:
            return "there is no such device here to compare with"
        short = [place for place, free in self.free.items() if self.total(place) > free]
        if not short:
            return "fits"
        largest = max(
            (amount, term) for term, (where, amount) in self.bytes.items() if where == short[0]
        )[1]
        knobs = {
            "activations": "fewer samples, or offload='cpu' or 'disk'",
            "statistics": "method='wanda'",
            "feed-forward variables": "fewer samples",
            "forward pass": "batch=1, or a shorter seqlen",
            "reconstruction": "sl.Reconstruction(batch=1), or none",
            "gradients": "fisher=False and divide=False, or a shorter seqlen",
        }
        return (
            f"does not fit: the {short[0]} needs {self.total(short[0]) / GIB:.1f} GiB and has "
            f"{self.free[short[0]] / GIB:.1f} free. The largest term is {largest}: "
            f"{knobs.get(largest, 'dtype=torch.bfloat16, or a smaller model')}."
        )

    def __str__(self) -> str:
        places = [self._peak(place) for place in ("device", "host") if self.total(place)]
        lines = [
            self.title,
            self.frame().round(3).to_string(index=False),
            f"peak: {', '.join(places)}; {self.advice()}",
        ]
        if self.seconds:
            phases = ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())
            lines.append(f"about {sum(self.seconds.values()) / 60:.1f} min: {phases}")
        return "\n".join(lines)

    def _peak(self, place: str) -> str:
        free = f" of {self.free[place] / GIB:.1f} free" if place in self.free else ""
        return f"{place} {self.total(place) / GIB:.2f} GiB{free}"

    __repr__ = __str__


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that costs depend on; parameters of one block, of all that is outside
    the blocks, and of the output head among those, where it is one of its own: it is copied from
    file to file at the start, and is not there later.
    """

    family: Family
    blocks: int
    width: int
    inner: int
    vocabulary: int
    block: int
    outside: int
    head: int
    groups: tuple[
        tuple[int, int], ...
    ]  # (inputs, outputs together) of the linears that share inputs

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Shape":
        """From a model without memory."""
        model = empty_model(config)
        family, blocks = family_of(model), blocks_of(model)
        block = sum(p.numel() for p in blocks[0].parameters())
        groups = []
        for names in family.groups:
            linears = [blocks[0].get_submodule(name) for name in names]
            outputs = sum(linear.out_features for linear in linears)
            groups.append((linears[0].in_features, outputs))
        total, headless = model.num_parameters(), model.base_model.num_parameters()
        return cls(
            family,
            len(blocks),
            config.hidden_size,
            groups[-1][0],
            config.vocab_size,
            block,
            total - len(blocks) * block,
            total - headless,
            tuple(groups),
        )

    def batch(self, seqlen: int, device: str, free: float = math.inf) -> int:
        """Windows that go through a block at once, where a kind of device has so many free bytes.
        On a CPU few are of use, and they fit wherever the rest does."""
        sizes = self.width, self.inner, self.vocabulary
        return fitting_batch(*sizes, seqlen, device, math.inf if device == "cpu" else free)


@checked
def plan(
    model: str | Path | nn.Module | PretrainedConfig,
    method: str | Method = "sparsegpt",
    samples: Annotated[int, ">= 1"] = 128,
    seqlen: Annotated[int, ">= 2"] = 2048,
    device: str | torch.device | None = None,
    *,
    dtype: torch.dtype | None = None,
    offload: str = "device",
    memory: Annotated[float, "> 0"] | None = None,
    measure: bool = True,
) -> Plan:
    """What ``sl.prune(model, ..., out=...)`` will need: bytes by term and seconds by phase.

    The memory is what the engine allocates, term by term. The seconds are its matrix products over
    half of the speed that a large product reaches on the device now. ``sl.prune(...,
    dry_run=True)`` measures a block instead.

    Parameters
    ----------
    model : str, Path, nn.Module or PretrainedConfig
        A name (only its config.json is read), a model, or a configuration of transformers.
    method : str or Method
        As for `sl.prune`.
    samples, seqlen : int
        Calibration windows, and tokens in each.
    device : torch.device or str, optional
        'cpu' or 'cuda'. Default: the GPU where there is one.
    dtype : torch.dtype, optional
        Of the weights. Default: what `sl.prune` would take.
    offload : {'device', 'cpu', 'disk'}
        Where the activations wait between two blocks.
    memory : float, optional
        Bytes that are free on the device, such as 24e9 for a card that is not here: fewer windows
        go through a block at once where it has less. Default: what is free there now.
    measure : bool
        Take a second to measure the device's speed; without it, and for 'cuda' on a machine without
        a GPU, the seconds are left out.

    Returns
    -------
    Plan
    """
    device = find_device(device, here=False)
    _check_place(device, offload)
    if isinstance(model, nn.Module):
        model = model.config
    config = model if isinstance(model, PretrainedConfig) else config_of(str(model))
    dtype = dtype or (torch.float32 if device.type == "cpu" else config.dtype or torch.float16)
    shape = Shape.of(config)
    method = find_method(method, shape.family.name)
    size, tokens = torch.empty((), dtype=dtype).element_size(), samples * seqlen
    name = (
        getattr(config, "name_or_path", "") if isinstance(model, PretrainedConfig) else str(model)
    )
    here = device.type == "cpu" or torch.cuda.is_available()
    free = {"device": memory or free_bytes(device)} if here or memory else {}
    batch = min(samples, shape.batch(seqlen, device.type, free.get("device", math.inf)))
    title = (
        f"{name or type(config).__name__}: {shape.blocks} blocks,"
        f" {shape.blocks * shape.block + shape.outside} parameters,"
        f" {str(dtype).removeprefix('torch.')}; {method}; calibration {samples} x {seqlen} tokens,"
        f" {batch} windows at once; {device}"
    )
    terms = memory_terms(shape, method, tokens, seqlen, size, device.type, offload, batch)
    seconds = phases(shape, method, tokens, seqlen, device, dtype) if measure and here else {}
    if device.type != "cpu":
        free["host"] = free_bytes(torch.device("cpu"))
    return Plan(title, terms, seconds, free, batch)


def _check_place(device: torch.device, offload: str) -> None:
    if device.type not in RUNTIME:
        raise SparselabError(f"device={str(device)!r}: a plan is for 'cpu' or 'cuda'.")
    if offload not in ActivationStore.PLACES:
        places = ", ".join(map(repr, ActivationStore.PLACES))
        raise SparselabError(
            f"offload={offload!r}: a plan is for {places}; 'auto' chooses one of them when the run"
            " begins."
        )


def peak(terms: dict[str, tuple[str, float]], place: str) -> float:
    """Bytes that a place holds at the peak, of terms such as `memory_terms` gives."""
    here = {term: amount for term, (where, amount) in terms.items() if where == place}
    always = sum(amount for term, amount in here.items() if term not in chain(*TURNS))
    return always + max(sum(here.get(term, 0) for term in turn) for turn in TURNS)


def memory_terms(
    shape: Shape,
    method: Method,
    tokens: int,
    seqlen: int,
    size: int,
    device: str,
    offload: str,
    batch: int | None = None,
) -> dict[str, tuple[str, float]]:
    """Bytes by term, and where they lie; size: bytes of a weight; batch: windows at once, by
    default as many as are of use."""
    batch = batch or shape.batch(seqlen, device)
    tuned, host = method.reconstruct, "host" if device == "cuda" else "device"
    aimed, kept = method.aims_at_dense_model, method.needs_dense_block
    widths = [inputs for inputs, _ in shape.groups]
    squares = [4 * width**2 for width in widths]  # one float32 Gram matrix each
    in_order, gram = method.in_order or aimed, GRAM in method.all_needs
    statistics = (
        (max(squares) * (2 if aimed else 1) if in_order else sum(squares))
        if gram
        else 4 * sum(widths)
    )
    part = size * min(tokens, batch * seqlen)  # of one number a token
    forward = part * (8 * shape.width + 4 * shape.inner)
    where = {"device": "device", "cpu": host, "disk": "disk"}[offload]
    terms = {
        "Python and torch": ("device", RUNTIME[device]),
        "before the blocks": ("device", size * (shape.outside - shape.head)),
        "output head, copied": (host, size * shape.head),
        "block" + ", and as it was dense" * kept: ("device", size * shape.block * (1 + kept)),
        "next block, read ahead": (host, size * shape.block),
        "activations": (where, size * tokens * shape.width * (1 + method.follows_dense_model)),
    }
    if device == "cuda":
        terms["next block, sent ahead"] = ("device", size * shape.block)
        if offload == "cpu":  # the part that is computed, and the one after it
            ahead = 2 * part * shape.width * (1 + method.follows_dense_model)
            terms["activations, sent ahead"] = ("device", ahead)
    terms |= {
        "forward pass": ("device", forward),
        "statistics": ("device", statistics),
        "solver": ("device", max(_solver(shape, method, group) for group in shape.groups)),
    }
    # A block's graph: about twice its activations, for each window.
    graph = 2 * size * seqlen * (8 * shape.width + 4 * shape.inner)
    if tuned:  # masters, their gradients, two moments and the best state, float32
        states = 5 * 4 * shape.block
        terms["reconstruction"] = ("device", states + graph * min(tuned.batch, batch))
        terms["reconstruction's targets"] = (where, size * tokens * shape.width)
    if method.fisher or method.divide:  # one window's logits, four times in float32
        logits = size * shape.head + 16 * seqlen * shape.vocabulary
        terms["gradients"] = ("device", max(logits, graph))
        # of a window; more where they fit
        inputs = size * seqlen * shape.width * (shape.blocks + 1)
        terms["inputs of all blocks"] = (where, inputs)
    own = method.ffn_bytes(tokens, shape.width, shape.inner, len(shape.family.ffn), size)
    return terms | {name: ("device", value) for name, value in own.items()}


def _solver(shape: Shape, method: Method, group: tuple[int, int]) -> float:
    """Bytes that a group's matrices take while they are pruned, beside weights and statistics."""
    inputs, outputs = group
    squares = method.squares * 4 * inputs**2 if GRAM in method.all_needs else 0
    return squares + method.copies * 4 * inputs * outputs


def phases(
    shape: Shape, method: Method, tokens: int, seqlen: int, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """Seconds by phase: floating point operations over measured speeds."""
    speed, exact = (SHARE * product_speed(device, kind) for kind in (dtype, torch.float32))
    aimed, gram, tuned = method.aims_at_dense_model, GRAM in method.all_needs, method.reconstruct
    forward = tokens * (2 * shape.block + 4 * seqlen * shape.width) * shape.blocks / speed
    passes = 4 if method.follows_dense_model else 2  # collect and replay, of both models
    grams = sum(2 * tokens * inputs**2 * (2 if aimed else 0.6) for inputs, _ in shape.groups)
    solve = sum(
        method.products * outputs * inputs**2 + 2 * inputs**3 * gram
        for inputs, outputs in shape.groups
    )
    seconds = {
        "forward passes": passes * forward,
        "Gram matrices": shape.blocks * grams * gram / exact,
        "solve": shape.blocks * solve / exact,
    }
    if method.fisher or method.divide:  # forward, forward again with its graph, and back; the head
        head = 3 * 2 * tokens * shape.width * shape.vocabulary / speed
        seconds["fisher"] = 4 * forward + head
    if method.divide:
        once = sum(
            len(BELOW + ABOVE) * 3 * outputs * inputs**2 + 2 * inputs**3
            for inputs, outputs in shape.groups
        )
        seconds["divide"] = forward + shape.blocks * (once + grams) / exact
    if tuned:  # a step is a forward pass and, for inputs and weights, twice that back
        seconds["reconstruct"] = (3 * tuned.epochs + 1) * forward
    if own := method.ffn_operations(tokens, shape.width, shape.inner, len(shape.family.ffn)):
        seconds["feed-forward sub-problems"] = shape.blocks * own / exact
    return seconds


def product_speed(
    device: torch.device, dtype: torch.dtype, width: int = 2048, budget: float = 0.3
) -> float:
    """Floating point operations a second in a product of two width x width matrices, the best of
    some runs."""
    a, best, end = (
        torch.randn(width, width, device=device).to(dtype),
        float("inf"),
        time.perf_counter() + budget,
    )
    while time.perf_counter() < end or best == float("inf"):
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * width**3 / best
