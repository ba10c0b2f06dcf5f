"""Before a run: proof that block by block equals the whole model, and the dense perplexity."""

import warnings

import torch
from torch import LongTensor, nn

from ..errors import SparselabError
from ..evaluation.perplexity import Perplexity, token_losses
from ..models.architecture import blocks_of, family_of, linears_of, model_name
from ..models.blockwise import compare_blockwise
from ..models.hooks import watching
from .activations import CalibrationActivations

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
    compare_blockwise(model, calibration[:1], last[0])
    vocabulary = model.get_input_embeddings().num_embeddings
    if gate > 2 * vocabulary:
        warnings.warn(
            f"{model_name(model)} has a dense perplexity of {gate} on the calibration text, worse"
            f" than chance ({vocabulary}): do checkpoint, tokenizer and text belong together?",
            stacklevel=6,
        )
    return gate


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
