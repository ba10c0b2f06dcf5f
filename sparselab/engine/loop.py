"""The loop over the blocks: read a block, collect what its linears receive, prune them, replay,
write."""

import copy

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..models.architecture import blocks_of, model_name
from ..models.validation import check_weights
from ..patterns import Pattern
from ..runtime import distributed
from ..runtime.memory import peak_bytes
from .activations import CalibrationActivations
from .block import BlockPruner, PruningRun
from .division import divide_zeros, divides
from .fisher import Fisher, fisher_weights
from .report import Report
from .sources import fingerprint
from .verification import verify_blockwise, verify_residual_stream


def prune_blocks(run: PruningRun, batch: int | None, offload: str, progress: bool) -> Report:
    """Every block in turn. In the comments, what a run may be beside the plain one: streamed from
    files, resumed."""
    _verify(run, progress)
    _weigh(run, batch, offload, progress)
    activations = _capture(run, batch, offload)
    last = max(run.chosen)
    for layer in _progress(run, progress):
        with run.file_clock("read"):  # streamed: from its files; else it is there
            block = run.source.load(layer)
        chosen, original = layer in run.chosen, None
        if chosen and run.method.needs_dense_block:
            original = copy.deepcopy(block)  # the dense model's activations go through it

        if layer < run.source.done:  # resumed: as the interrupted run left it
            run.source.restore(layer)
            activations.cut(run.source.batches[layer])
        elif chosen:
            prune_block(run, activations, block, original, layer)

        if layer < last:
            with run.clock("replay"):  # the pruned block's outputs are the next one's inputs
                activations.replay(block, original)
        with run.file_clock("write"):
            run.source.finish(layer, run.report, activations.batches)
    run.report.peak_bytes = peak_bytes(run.clock.device)
    return run.report


def prune_block(
    run: PruningRun,
    activations: CalibrationActivations,
    block: nn.Module,
    original: nn.Module | None,
    layer: int,
) -> None:
    """Collect and prune: all linears from one pass, or group by group in the order in which they
    run."""
    pruner = BlockPruner(run, layer)
    if run.source.streamed:
        check_weights(
            {name: linear for name, linear in run.linears.items() if name.startswith(pruner.prefix)}
        )
    for stage in pruner.stages():
        with run.clock("collect"):
            collected = activations.collect(
                block,
                lambda stage=stage: pruner.collectors(stage),
                original if run.method.aims_at_dense_model else None,
                pruner.prefix,
                run.token_weights(pruner.prefix),
                run.held_out,
            )
        pruner.prune(stage, collected)
        if run.method.reconstruct:
            pruner.reconstruct(stage, activations, block, original)


def open_result(run: PruningRun, batch: int | None) -> None:
    """Open the place where the result goes, with what an earlier run left there; the first process
    looks first."""
    kinds = sorted({name.rsplit(".", 1)[-1] for name in run.linears})
    exact = getattr(run.pattern, "sparsity", None)  # the report rounds it
    mine = fingerprint(
        {
            **run.report.settings,
            "modules": kinds,
            "sparsity": exact,
            "batch": batch,
            "error_rows": run.error_rows,
            "processes": distributed.size(),
        },
        run.calibration,
    )
    if distributed.rank() == 0:
        run.source.start(mine, run.report)
    distributed.barrier()
    if distributed.rank():
        run.source.join(mine, run.report)


def dry_run_one_block(run: PruningRun, batch: int | None, offload: str) -> Report:
    """The first chosen block, pruned on the first block's inputs, timed, and left as it was. The
    seconds of the whole run are extrapolated from it, without those of the proof and of writing."""
    _weigh(run, batch, offload, progress=False)
    activations, layer = _capture(run, batch, offload), run.chosen[0]
    with run.file_clock("read"):
        block = run.source.load(layer)
    original = copy.deepcopy(block)
    dense = original if run.method.needs_dense_block else None
    try:
        prune_block(run, activations, block, dense, layer)
        with run.clock("replay"):
            activations.replay(block, dense)
    finally:
        block.load_state_dict(original.state_dict())
    seconds = run.report.seconds
    times = {
        "capture": 1,
        "fisher": 1,
        "divide": 1,
        "read": len(_visited(run)),
        "replay": max(run.chosen),
    }
    for phase in seconds:
        seconds[phase] *= times.get(phase, len(run.chosen))
    seconds["total"] = sum(seconds.values())
    run.report.settings["dry_run"] = layer
    run.report.peak_bytes = peak_bytes(run.clock.device)
    return run.report


def _verify(run: PruningRun, progress: bool) -> None:
    """Proof, before anything changes, that block by block equals the whole model."""
    source, targets = run.source, run.method.targets
    if source.streamed:
        with run.clock("check"), source.verified(run.calibration[:1]):
            verify_residual_stream(source.model, run.calibration[:1], targets)
        return
    with run.clock("check"):
        gate = verify_blockwise(source.model, run.calibration)
        verify_residual_stream(source.model, run.calibration[:1], targets)
    source.forget()
    run.report.settings.update(dense_perplexity=float(gate), gate_windows=gate.windows)
    if progress:
        print(
            f"{model_name(source.model)}: dense perplexity {gate} on {gate.windows} calibration"
            f" windows of {gate.seqlen} tokens; block by block equals the whole model."
        )


def _weigh(run: PruningRun, batch: int | None, offload: str, progress: bool) -> None:
    """How much errors cost, and which matrix gets how many zeros, where the method asks for it."""
    divided = divides(run.method, run.pattern)
    if not (run.method.fisher or divided):
        return
    options = {"batch": batch or run.source.batch, "offload": offload, "progress": progress}

    def weights() -> dict[str, Tensor]:
        with run.clock("fisher"):
            return fisher_weights(run.source, run.windows, **options).tensors()

    def shares() -> dict[str, Tensor]:
        sparsity = run.pattern.sparsity
        with run.clock("divide"):
            found = divide_zeros(run.source, run.windows, run.linears, sparsity, fisher, **options)
        return {name: torch.tensor(share.sparsity).double() for name, share in found.items()}

    fisher = Fisher.of(run.source.kept("fisher", weights))
    run.fisher = fisher if run.method.fisher else None
    if divided:
        found = run.source.kept("divide", shares)
        run.share({name: Pattern(found[name].item()) for name in run.linears})


def _capture(run: PruningRun, batch: int | None, offload: str) -> CalibrationActivations:
    """What the first block receives from this process's share of the calibration windows."""
    with run.clock("capture"):
        activations = CalibrationActivations(
            run.source.model,
            run.windows,
            run.source.captured or batch or run.source.batch,
            dense=run.method.follows_dense_model,
            offload=offload,
        )
    run.source.capture(activations.batches)
    return activations


def _progress(run: PruningRun, progress: bool) -> tqdm:
    """The blocks to go through, with a bar."""
    silent = not progress or distributed.rank() > 0
    return tqdm(
        _visited(run), desc=f"{run.method.name} {run.pattern}", unit="block", disable=silent
    )


def _visited(run: PruningRun) -> range:
    """The blocks to go through: all that are to be written, else up to the last chosen one."""
    return range(len(blocks_of(run.source.model)) if run.source.streamed else max(run.chosen) + 1)
