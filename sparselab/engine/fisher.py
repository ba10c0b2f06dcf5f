"""How much an error costs: the loss's squared gradient at every output of the dense model, from one
sweep forward through the blocks and one back.

Windows are taken in portions, of which the inputs of all blocks fit somewhere; a portion goes
through a block in parts, whose graph fits into memory.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import LongTensor, Tensor, nn
from tqdm.auto import tqdm

from ..errors import SparselabError
from ..evaluation.perplexity import token_losses
from ..models.architecture import Family, family_of
from ..models.blockwise import ActivationBatch, blocks_gave
from ..models.hooks import watching
from ..runtime import distributed
from ..runtime.memory import batch_size, with_batch_halving
from ..runtime.offload import ActivationStore
from .activations import CalibrationActivations
from .sources import InMemoryBlocks, StreamedBlocks

ROW_FLOOR, TOKEN_FLOOR = 1e-3, 0.05  # added to shares of the mean: none is worth nothing
TOKEN_POWER = 0.5  # the root: a few tokens would have the statistics for themselves


@dataclass
class Fisher:
    """How much an error costs: mean squared gradients of the loss (nats, summed over the text) in
    the dense model, by the linear's name.

    `rows` [r]: of its outputs, as shares of their mean, which is `scale`. `tokens` [windows,
    seqlen]: the root of the sum, over the linears with the same input, of the mean over their
    outputs, as shares of its mean: the squares would leave the statistics to a few tokens.
    """

    rows: dict[str, Tensor] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by 'kind/name'."""
        kinds = {"rows": self.rows, "tokens": self.tokens}
        kinds["scale"] = {name: torch.tensor(value) for name, value in self.scale.items()}
        return {
            f"{kind}/{name}": t.clone() for kind, held in kinds.items() for name, t in held.items()
        }

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Fisher":
        """What `tensors` gave."""
        found = cls()
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            getattr(found, kind)[name] = tensor.item() if kind == "scale" else tensor
        return found

    def of_block(self, prefix: str) -> dict[str, Tensor]:
        """The weights of the tokens in a block, by the linear's name in it."""
        return {
            name.removeprefix(prefix): weights
            for name, weights in self.tokens.items()
            if name.startswith(prefix)
        }


def fisher_weights(
    source: InMemoryBlocks | StreamedBlocks,
    windows: LongTensor,
    *,
    batch: int | None = None,
    offload: str = "device",
    progress: bool = False,
) -> Fisher:
    """Of the dense model, block by block: the memory of one block's backward pass is enough.

    The inputs of all blocks wait where the activations do; where they do not fit, the windows are
    taken in portions, and the model is read twice for each.

    Parameters
    ----------
    source : InMemoryBlocks or StreamedBlocks
        The dense model, before any block is pruned.
    windows : LongTensor of shape (windows, seqlen)
        This process's calibration windows.
    batch : int, optional
        Windows at once. Default: what free memory holds.
    offload : str
        As for `sl.prune`.
    progress : bool
        Show a progress bar.

    Notes
    -----
    That a layer's errors count as much as the loss's squared gradient there: van der Ouderaa et
    al., The LLM Surgeon, arXiv 2312.17244; Kim et al., GuidedQuant, arXiv 2505.07004.
    """
    model, seqlen = source.model, windows.shape[1]
    family, count = family_of(model), len(source.blocks)
    place, tokens = ActivationStore.portion(offload, model, windows.numel(), count + 1)
    fits = max(1, tokens // seqlen)  # windows
    batch = min(batch or _backward_batch(model, seqlen), fits)
    portions = windows.split(fits // batch * batch)  # the same bits whatever is free
    found: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)  # by part of the windows
    total = 2 * count * len(portions)
    with source.head(), tqdm(total=total, desc="fisher", unit="block", disable=not progress) as bar:
        for portion in portions:
            start = bar.n

            def work(size: int, portion=portion, start=start) -> tuple[int, dict]:
                bar.reset(total)
                bar.update(start)  # what an attempt that ran out of memory had done is done anew
                source.forget()  # and the blocks that it held are let go
                return size, _sweep(source, family, portion, size, place, bar)

            batch, swept = with_batch_halving(work, batch)
            for name, parts in swept.items():
                found[name] += parts
    source.forget()
    sums = {name: sum(rows for rows, _ in parts) for name, parts in found.items()}
    distributed.all_reduce(*sums.values())
    number = distributed.all_reduce_scalar(windows.numel())
    fisher = Fisher()
    means = {name: squares.mean() for name, squares in sums.items()}
    values = torch.stack([mean.to(model.device) for mean in means.values()]).tolist()
    for (name, mean), value in zip(means.items(), values, strict=True):
        if not math.isfinite(value):
            raise SparselabError(
                f"the loss's gradients at {name} are not finite (NaN or infinite). Load the model"
                " with dtype=torch.bfloat16 or torch.float32: float16 overflows."
            )
        fisher.scale[name] = value / number
        fisher.rows[name] = _shares(sums[name], mean, ROW_FLOOR)
    for layer in range(count):
        for group in family.groups:
            names = [f"{family.blocks}.{layer}.{name}" for name in group]
            tokens = [torch.cat([some for _, some in found[name]]) for name in names]
            shared = _token_shares(sum(tokens))
            fisher.tokens |= dict.fromkeys(names, shared)
    return fisher


def _shares(squares: Tensor, mean: Tensor, floor: float) -> Tensor:
    """Squared gradients over their mean, with a floor; their mean is 1."""
    return (squares / mean.clamp(min=torch.finfo(torch.float32).tiny) + floor) / (1 + floor)


def _token_shares(squares: Tensor) -> Tensor:
    """Of tokens [windows, seqlen], to the power; the mean over all processes is 1."""
    shares = _shares(squares, _mean(squares), TOKEN_FLOOR) ** TOKEN_POWER
    return shares / _mean(shares)


def _mean(values: Tensor) -> Tensor:
    """Over the values of all processes."""
    total = values.sum(dtype=torch.float64)
    distributed.all_reduce(total)
    return (total / distributed.all_reduce_scalar(values.numel())).float()


def _backward_batch(model: nn.Module, seqlen: int) -> int:
    """Windows at once where a block's graph is kept: on a GPU a quarter of those of a forward
    pass."""
    device = next(model.parameters()).device
    return max(1, batch_size(model, seqlen) // (4 if device.type == "cuda" else 1))


def _sweep(
    source: InMemoryBlocks | StreamedBlocks,
    family: Family,
    windows: LongTensor,
    batch: int,
    offload: str,
    bar: tqdm,
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Squared gradients by linear and part of the windows: the sum over its tokens [r], and the
    mean over the linear's rows [windows, seqlen]."""
    activations = CalibrationActivations(source.model, windows, batch, offload=offload)
    parts, store, count = activations.parts, activations.store, len(source.blocks)
    inputs: list[list[Tensor]] = []  # of each block, by part
    for layer in range(count):
        block = source.load(layer)
        inputs.append([part.hidden for part in parts])
        for place, part in enumerate(parts):
            part.hidden = store.keep(part.through(block, activations.fetch(place)[0]))
        source.release(layer)
        bar.update()
    slopes = [
        _slope_at_end(source.model, family, part, activations.fetch(place)[0])
        for place, part in enumerate(parts)
    ]
    found: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for layer in reversed(range(count)):
        block, prefix = source.load(layer, then=layer - 1), f"{family.blocks}.{layer}."
        for number, part in enumerate(parts):
            mine, *then = ([one] for one in inputs[layer][number : number + 2])
            (given,) = store.fetch(mine, *then)
            slopes[number], own = _back(block, part, given, slopes[number], family)
            for name, pair in own.items():
                found[prefix + name].append(pair)
        inputs.pop()
        source.release(layer)
        bar.update()
    return found


def _back(
    block: nn.Module, part: ActivationBatch, hidden: Tensor, slope: Tensor, family: Family
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """The loss's gradient with respect to a block's input, from that to its output [b, seqlen,
    width]; and by linear the squares of those to its outputs, summed over tokens and averaged over
    rows."""
    names = [name for group in family.groups for name in group]
    seen: dict[str, Tensor] = {}

    def keep(name, args, output):
        seen[name] = output

    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_()
        with watching({name: block.get_submodule(name) for name in names}, after=keep):
            made = part.through(block, hidden)
        wanted = [hidden, *(seen[name] for name in names)]
        gradient, *slopes = torch.autograd.grad(made, wanted, slope)
    found = {}
    for name, each in zip(names, slopes, strict=True):
        squares = each.float().square_().reshape(*part.ids.shape, -1)  # OPT flattens sequences
        found[name] = squares.sum((0, 1)), squares.mean(-1)
    return gradient, found


def _slope_at_end(
    model: nn.Module, family: Family, part: ActivationBatch, output: Tensor
) -> Tensor:
    """The gradient of the summed loss of a part's windows with respect to the last block's output
    [b, seqlen, width], window by window: logits are large."""
    slopes = []
    for ids, given in zip(part.ids.split(1), output.split(1), strict=True):
        hidden = given.detach().requires_grad_()
        with torch.enable_grad(), blocks_gave(model, family.blocks, hidden):
            logits = model(ids.to(hidden.device), use_cache=False).logits
            slopes += torch.autograd.grad(token_losses(logits, ids).sum(), hidden)
    return torch.cat(slopes)
