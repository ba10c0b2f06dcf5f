"""Before a run: proof that block by block equals the whole model, and the dense perplexity."""

import warnings

import torch
from torch import LongTensor, Tensor, nn

from ..errors import SparselabError
from ..evaluation.perplexity import Perplexity, token_losses
from ..models.architecture import blocks_of, family_of, linears_of, model_name, replaced_blocks
from ..models.hooks import watching
from .activations import CalibrationActivations
from .sources import StreamedBlocks

GATE_SHARE = (
    32  # one calibration window in 32 (at most 8) measures the dense perplexity before a run
)


def verify_blockwise(model: nn.Module, calibration: LongTensor) -> Perplexity:
    """Prove on the first window that block by block equals model(ids), and measure the dense
    perplexity of a few.

    The proof guards against every change in how a library calls its blocks; the perplexity against
    a checkpoint, tokenizer and text that do not belong together. Raises a SparselabError where they
    differ or are not finite.
    """
    losses, last = [], []
    with watching({"": blocks_of(model)[-1]}, after=lambda name, args, output: last.append(output)):
        for ids in calibration[: min(8, -(-len(calibration) // GATE_SHARE))].split(1):
            logits = model(ids.to(model.device), use_cache=False).logits
            losses.append(token_losses(logits, ids).mean(1))
            del last[1:]
    gate = Perplexity(torch.cat(losses), calibration.shape[1])
    if not torch.isfinite(gate.losses).all():
        raise SparselabError(_first_nonfinite(model, calibration[:1]))
    _compare_blockwise(model, calibration[:1], last[0])
    vocabulary = model.get_input_embeddings().num_embeddings
    if gate > 2 * vocabulary:
        warnings.warn(
            f"{model_name(model)} has a dense perplexity of {gate} on the calibration text, worse"
            f" than chance ({vocabulary}): do checkpoint, tokenizer and text belong together?",
            stacklevel=6,
        )
    return gate


def _compare_blockwise(model: nn.Module, window: LongTensor, output: Tensor | tuple) -> None:
    """Block by block on one window [1, seqlen] against what the last gave inside the model."""
    whole = output if isinstance(output, Tensor) else output[0]  # [1, seqlen, width]
    stream = CalibrationActivations(model, window, 1)
    for block in blocks_of(model):
        stream.replay(block)
    gap = ((stream.parts[0].hidden - whole).abs().max() / whole.abs().max()).item()
    if not gap < 1e-3:
        if len(kinds := _kinds(model)) > 1:
            raise SparselabError(
                f"{model_name(model)} has blocks of several kinds ({', '.join(kinds)}), whose"
                " attention reads other windows: they cannot be called one after the other with"
                " the same mask. Take a seqlen that fits its windows, or a model whose blocks are"
                " all of one kind."
            )
        raise SparselabError(
            f"{model_name(model)}: block by block differs from the whole model by {gap:.2g} of the "
            "largest activation. Its blocks are not called as this version of sparselab expects; "
            "please report it with the versions that `python -m sparselab doctor` prints."
        )


def _kinds(model: nn.Module) -> list[str]:
    """The kinds of a model's blocks, by their attention."""
    return sorted({*(getattr(model.config, "layer_types", None) or ())})


def verify_residual_stream(model: nn.Module, window: LongTensor, targets: str) -> None:
    """What targets="dense-stream" takes for granted: these linears' outputs are added to the
    residual stream as they are."""
    if targets != "dense-stream":
        return
    residual, block = family_of(model).residual, blocks_of(model)[0]
    part, seen = CalibrationActivations(model, window, 1).parts[0], {}
    places = {
        name: module
        for name, module in block.named_modules()
        if name in {*residual, *residual.values()} - {""}
    }
    with watching(places, after=lambda name, args, output: seen.update({name: (args[0], output)})):
        after = part.through(block, part.hidden)
    stream = [part.hidden, *(seen[place][0] for place in residual.values() if place in seen), after]
    gaps = [
        (before.flatten() + seen[name][1].flatten() - then.flatten()).abs().max() / then.abs().max()
        for name, before, then in zip(residual, stream, stream[1:], strict=False)
    ]
    if len(stream) <= len(residual) or not max(gaps) < 1e-2:
        raise SparselabError(
            f"{model_name(model)}: targets='dense-stream' needs blocks that add the outputs of"
            f" {' and '.join(residual)} to the residual stream as they are. Choose"
            " targets='dense-model'."
        )


def verify_streamed(source: StreamedBlocks, window: LongTensor, targets: str) -> None:
    """The same proof for a model in files, cut to its first two blocks."""
    if len(kinds := _kinds(source.model)) > 1:  # two blocks do not speak for all
        raise SparselabError(
            f"{model_name(source.model)} has blocks of several kinds ({', '.join(kinds)}), of which"
            " two cannot speak for all. Load it with sl.load: where its windows are no shorter"
            " than seqlen, sl.prune takes the whole model."
        )
    last, blocks = [], [source.load(layer) for layer in range(min(2, len(source.blocks)))]
    try:
        with (
            replaced_blocks(source.model, source.prefix, blocks),
            watching({"": blocks[-1]}, after=lambda name, args, output: last.append(output)),
        ):  # all but the head, which has no memory
            source.model.base_model(window.to(source.device), use_cache=False)
            _compare_blockwise(source.model, window, last[0])
            verify_residual_stream(source.model, window, targets)
    finally:
        source.forget()


def _first_nonfinite(model: nn.Module, ids: LongTensor) -> str:
    """Which linear is the first to receive something that is not finite."""
    broken: list[str] = []

    def look(name, args, kwargs):
        if not torch.isfinite(args[0]).all():
            broken.append(name)

    with watching(linears_of(model), before=look):
        model(ids.to(model.device), use_cache=False)
    where = f"the calibration inputs of {broken[0]} are" if broken else "the model's output is"
    return (
        f"{where} not finite (NaN or infinite). Look for broken weights before it, or load the"
        " model with dtype=torch.float32: float16 overflows."
    )
