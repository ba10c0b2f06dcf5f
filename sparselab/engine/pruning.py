"""`prune`, the one call: what can be wrong with it is found here, before anything changes."""

import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import LongTensor, nn

from ..errors import SparselabError
from ..methods.base import Method, Target
from ..methods.parameters import checked
from ..methods.reconstruction import Reconstruction
from ..methods.registry import find_method
from ..models.architecture import Family, blocks_of, family_of, linears_of, model_name
from ..models.loading import find_place
from ..models.validation import (
    check_feed_forward,
    check_not_shared,
    check_ready,
    check_rows,
    check_weights,
)
from ..patterns import Allocation, Pattern, plain
from ..runtime.files import DISTRIBUTION
from ..runtime.memory import naming_memory_errors
from ..runtime.offload import ActivationStore
from .block import PhaseClock, PruningRun
from .division import divides
from .finetuning import check_trainable
from .loop import dry_run_one_block, open_result, prune_blocks
from .reconstruction import units_of
from .report import Report
from .sources import InMemoryBlocks, StreamedBlocks

ERROR_ROWS = 512  # of a matrix, on which the error of a model in files is measured
FEWER = (
    "Use fewer samples, a shorter seqlen, offload='disk', a smaller dtype, or a larger machine;"
    " sl.plan says what each needs."
)


@checked
@torch.no_grad()
def prune(
    model: nn.Module | str | Path,
    calibration: LongTensor,
    *,
    method: str | Method,
    sparsity: float | str | Mapping,
    layers: Iterable[int] | str | None = None,
    modules: Iterable[str] | None = None,
    refit: bool | None = None,
    targets: Target | None = None,
    in_order: bool | None = None,
    fisher: bool | None = None,
    divide: bool | None = None,
    reconstruct: Reconstruction | str | bool | None = None,
    batch: Annotated[int, ">= 1", "windows at once, 1 or more"] | None = None,
    progress: bool = True,
    out: str | Path | None = None,
    offload: Literal["auto", *ActivationStore.PLACES] = "auto",
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    dry_run: bool = False,
    exact_errors: bool = False,
) -> Report:
    """Prune a model of the OPT or LLaMA family, block by block, by the protocol of SparseGPT and
    Wanda.

    Unless a switch says otherwise, the statistics of all linears of a block come from one pass
    through the still dense block, whose inputs come from the pruned blocks before it. Embeddings,
    norms, biases and the output head stay dense. Before anything changes, the engine proves that
    block by block equals ``model(ids)``, and prints the dense perplexity of a few calibration
    windows (a model in files: on its first two blocks, without the perplexity).

    Parameters
    ----------
    model : nn.Module, str or Path
        What `sl.load` gave, which is pruned in place; or the name of a model (a folder, a Hub id),
        which is then read from its files block by block and written to the folder `out`: never
        whole in memory, and an interrupted run goes on where the same call is made again.
    calibration : LongTensor of shape (samples, seqlen)
        Token ids, see `sl.calibration`.
    method : str or Method
        A name, such as 'wanda'; with a preset or hyper-parameters, as the tables write it, such as
        'admm:guided' or 'wanda:refit=True'; or an instance, such as ``sl.SparseGPT(damp=0.1)``.
    sparsity : float, str or Mapping
        A fraction of zeros such as 0.7, or 'n:m', n zeros in every m consecutive inputs; or one of
        them for each block (by number) or linear (by its full name), such as `sl.owl` and
        `sl.by_sensitivity` give.
    layers : iterable of int or str, optional
        The blocks to prune, a range or list of numbers, or 'first half' as in SparseLLM's tables.
        Default: all.
    modules : iterable of str, optional
        The linears to prune, by the end of their names, such as ['fc1', 'fc2']. Default: all of the
        family.
    refit : bool, optional
        Fit the kept weights exactly under the mask. This switch and the next five belong to every
        method (see `sl.Method`); they are set here or on the instance. Default: the method's own.
    targets : {'dense-block', 'dense-model', 'dense-stream'}, optional
        What a linear aims at: what it gives in the dense block, in the dense model, or what the
        dense model's residual stream is after it. Default: the method's own.
    in_order : bool, optional
        Prune the linears of a block in the order in which they run, each on the inputs that the
        pruned ones before it leave (what GPTQ's code calls ``true_sequential``). Default: the
        method's own.
    fisher : bool, optional
        Errors count as much as the loss's squared gradient where they are made. Default: the
        method's own.
    divide : bool, optional
        Divide the zeros among the matrices so that the loss expected of them is least. Default: the
        method's own.
    reconstruct : Reconstruction, bool or {'tm', 'ebft', 'free_lunch'}, optional
        Tune what pruning left of each block by gradient, see `sl.Reconstruction`. Default: the
        method's own.
    batch : int, optional
        Windows at once. Default: what free memory holds.
    progress : bool, default True
        A progress bar, and the dense perplexity on standard output.
    out : str or Path, optional
        The folder of the result, for a model that is given by name.
    offload : {'auto', 'device', 'cpu', 'disk'}, default 'auto'
        Where the activations wait between two blocks; 'disk' is a file without a name. 'auto': on
        the device while they fill at most 40 % of what is free there, else in the host's memory
        while they fill at most half of what is free, else on disk.
    dtype, device : torch.dtype, torch.device or str, optional
        For a model that is given by name; they mean what they mean to `sl.load`.
    dry_run : bool, default False
        Prune the first of the blocks only, leave it as it was, write nothing. The report's seconds
        are those of the whole run, extrapolated (see also `sl.plan`, which needs no model).
    exact_errors : bool, default False
        Measure the report's output errors on all rows of a matrix, where a model in files has them
        measured on 512, evenly spread: on all they take as long as the solver.

    Returns
    -------
    Report
        A row for each matrix, the seconds by phase, the peak of memory (bytes), the settings.

    Raises
    ------
    SparselabError
        Names what was wrong and what to do, before the first weight changes where it can.
    """
    started = time.perf_counter()
    given = {"refit": refit, "targets": targets, "in_order": in_order, "fisher": fisher}
    given |= {"divide": divide, "reconstruct": reconstruct}
    switches = {name: value for name, value in given.items() if value is not None}
    replace(find_method(method), **switches)  # what is wrong is said before a file is read
    pattern = (Allocation if isinstance(sparsity, (Mapping, Allocation)) else Pattern).parse(
        sparsity
    )
    with (
        naming_memory_errors("prune this model", FEWER),
        closing(_source(model, out, dtype, device, dry_run)) as source,
    ):
        run = _prepare(source, calibration, method, switches, pattern, layers, modules)
        run.error_rows = ERROR_ROWS if source.streamed and not exact_errors else None
        if dry_run:
            return dry_run_one_block(run, batch, offload)
        open_result(run, batch)
        report = prune_blocks(run, batch, offload, progress)
        report.seconds["total"] = time.perf_counter() - started  # for the report beside the weights
        source.complete(report)
    report.seconds["total"] = time.perf_counter() - started
    return report


def _source(
    model: nn.Module | str | Path, out, dtype, device, dry_run: bool
) -> InMemoryBlocks | StreamedBlocks:
    if not isinstance(model, nn.Module):
        if not out and not dry_run:
            raise SparselabError(
                f"prune({str(model)!r}) reads a model block by block and writes the result: say"
                " where, out='folder'. To prune in memory, pass the model that sl.load gives."
            )
        device, dtype = find_place(device, dtype)
        return StreamedBlocks(model, out, dtype, device)
    if (out, dtype, device) != (None, None, None):
        raise SparselabError(
            "out=, dtype= and device= belong to a model given by name. A model in memory is pruned"
            " in place, as it is; write it with sl.save."
        )
    return InMemoryBlocks(model)


def _prepare(
    source: InMemoryBlocks | StreamedBlocks,
    calibration: LongTensor,
    method: str | Method,
    switches: dict,
    pattern: Pattern | Allocation,
    layers,
    modules,
) -> PruningRun:
    """Everything that can be wrong is found here, before minutes pass."""
    model = source.model
    check_ready(model)
    family, count = family_of(model), len(blocks_of(model))
    method = replace(find_method(method, family.name), **switches)
    check_rows(model, calibration, "the calibration")
    chosen = _chosen_layers(layers, count)
    linears = _chosen_linears(model, chosen, modules)
    if not source.streamed:
        check_weights(linears)
        check_not_shared(linears)
    shares = _shares(method, pattern, linears, family)
    for name, linear in linears.items():
        shares[name].check_width(linear.in_features, name)
    if method.prunes_ffn_jointly:
        check_feed_forward(model, family, linears)
    if method.reconstruct:
        check_trainable(model)
        units_of(blocks_of(model)[0], family, method.reconstruct.unit)
    report = Report(_settings(model, calibration, method, pattern, chosen, count))
    if isinstance(pattern, Allocation):
        sizes = {name: linear.weight.numel() for name, linear in linears.items()}
        report.describe_shares(shares, sizes)
    clock = PhaseClock(report.seconds, next(model.parameters()).device)
    return PruningRun(
        source, calibration, family, method, pattern, chosen, shares, linears, clock, report
    )


def _shares(
    method: Method, pattern: Pattern | Allocation, linears: dict[str, nn.Linear], family: Family
) -> dict[str, Pattern]:
    """The pattern of each matrix: as the user divided it, else as the method does."""
    if divides(method, pattern):  # the loop does it; here only what is wrong is found
        return dict.fromkeys(linears, pattern)
    if not isinstance(pattern, Allocation):
        return method.shares({name: linear.weight for name, linear in linears.items()}, pattern)
    if method.allocates:
        raise SparselabError(
            f"{method} divides the zeros among the matrices itself: give it one number as"
            " sparsity=, or take scope='matrix'."
        )
    return pattern.shares(linears, family.blocks)


def _chosen_layers(layers: Iterable[int] | str | None, count: int) -> list[int]:
    if layers is None:
        return list(range(count))
    if isinstance(layers, str) and layers == "first half":
        layers = range(count // 2)
    given = plain(layers)  # a single number will do
    chosen = [*map(plain, given)] if isinstance(given, Iterable) else [given]
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in chosen):
        raise SparselabError(
            f"layers={layers!r}: a range or list of block numbers, or 'first half'."
        )
    chosen = sorted({*chosen})
    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise SparselabError(f"layers={chosen}: choose some of the blocks 0 to {count - 1}.")
    return chosen


def _chosen_linears(
    model: nn.Module, layers: list[int], modules: Iterable[str] | None
) -> dict[str, nn.Linear]:
    linears = linears_of(model, layers)
    if modules is None:
        return linears
    modules = plain(modules)
    if not isinstance(modules, Iterable):
        raise SparselabError(
            f"modules={modules!r}: the ends of linears' names, such as ['fc1', 'fc2']."
        )
    modules = (modules,) if isinstance(modules, str) else tuple(modules)
    known = sorted({name.split(".")[-1] for name in linears})
    for module in modules or ("",):
        if not any(name.endswith(f".{module}") for name in linears):
            raise SparselabError(
                f"modules={list(modules)}: no linear is called {module!r}. Known:"
                f" {', '.join(known)}."
            )
    ends = tuple(f".{module}" for module in modules)
    return {name: linear for name, linear in linears.items() if name.endswith(ends)}


def _settings(
    model, calibration, method: Method, pattern: Pattern, layers: list[int], blocks: int
) -> dict:
    weight = next(model.parameters())
    return {
        "model": model_name(model),
        "method": str(method),
        "pattern": str(pattern),
        "samples": len(calibration),
        "seqlen": calibration.shape[1],
        "layers": layers,
        "blocks": blocks,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": weight.device.type,
        "dense_perplexity": None,
        "gate_windows": 0,
        "versions": {
            "sparselab": version(DISTRIBUTION),
            **{name: version(name) for name in ("torch", "transformers")},
        },
    }
