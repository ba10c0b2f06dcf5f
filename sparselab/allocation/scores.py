"""What the allocations read of a model: the Wanda scores of a block, the mean loss, and how far
its predictions are from the dense model's."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import LongTensor, Tensor, nn

from ..errors import SparselabError
from ..evaluation.divergence import window_divergences
from ..evaluation.perplexity import window_losses
from ..evaluation.placement import input_device
from ..methods.wanda import wanda_scores
from ..models.architecture import linears_of
from ..models.hooks import watching
from ..models.validation import check_finite, check_ready, check_rows
from ..patterns import Pattern
from ..runtime.memory import with_batch_halving

HIGHEST = 0.99  # share of zeros that a search may give to a block: nothing is left of it at 1
HeldOut = Annotated[float, "> 0", "< 1", "a share of the windows"]
TOKENS = 2048  # whose logits are there at once: 400 MB in float32 for a vocabulary of 50 000


@torch.no_grad()
def input_norms(model: nn.Module, windows: LongTensor) -> dict[str, Tensor]:
    """||X_j||_2 of the inputs of every linear in the dense model, float32 [c], by its name; windows
    [n, seqlen]."""
    check_ready(model)
    check_rows(model, windows, "the calibration")
    linears = linears_of(model)
    squares = {}
    for name, linear in linears.items():
        squares[name] = torch.zeros(linear.in_features, device=linear.weight.device)

    def add(name, args, kwargs):
        squares[name] += args[0].flatten(0, -2).float().square().sum(0)  # [tokens, c] -> [c]

    with watching(linears, before=add):
        mean_loss(model, windows)
    return {name: square.sqrt() for name, square in squares.items()}


def block_scores(model: nn.Module, block: int, norms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Wanda's |W_ij| ||X_j|| of the linears of a block, [r, c] each."""
    scores = {}
    for name, linear in linears_of(model, [block]).items():
        scores[name] = wanda_scores(linear.weight.detach().float(), norms[name])
    return scores


def mean_loss(model: nn.Module, windows: LongTensor) -> float:
    """Of all tokens of the windows [n, seqlen], nats a token."""
    losses = [window_losses(model, part) for part in windows.split(8)]
    return torch.cat(losses).double().mean().item()


def as_fraction(sparsity: float | str) -> float:
    """What the user gave as a number; a SparselabError where it is n:m or none."""
    pattern = Pattern.parse(sparsity)
    if pattern.m:
        raise SparselabError(
            f"sparsity {sparsity!r}: what is divided among the blocks is a fraction such as "
            f"{pattern.sparsity:g}. n:m leaves nothing to divide: every block has the same."
        )
    return pattern.sparsity


def split_windows(
    model: nn.Module, windows: LongTensor, held_out: float
) -> tuple[LongTensor, LongTensor]:
    """The windows [n, seqlen] to prune with, and the last ones, that share of them, to judge by: at
    least one of each. Weights that were fitted to a window look better on it than they are."""
    check_ready(model)
    check_rows(model, windows, "the calibration")
    if len(windows) < 2:
        raise SparselabError(
            "the calibration has one window: this allocation prunes with some and judges by others."
            " Pass two or more, such as sl.calibration(..., samples=64)."
        )
    judged = min(max(1, round(held_out * len(windows))), len(windows) - 1)
    return windows[:-judged], windows[-judged:]


class DenseReference:
    """How far a model, pruned in place, is from what it was when this was made, on some windows
    [n, seqlen]: the mean of KL(dense || pruned) over all tokens.

    The dense model's logits are not kept: those of a thousand tokens are 200 MB for a vocabulary of
    50 000. What its head received is, [n, seqlen, width] in the model's dtype; no allocation prunes
    the head, so that it makes the same logits of it, of a few windows at a time, for one more
    product than a forward pass has. Only where a model does more to its logits than its head does,
    they are kept themselves.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, windows: LongTensor):
        self.model, self.windows = model, windows
        self.batch = max(1, TOKENS // windows.shape[1])
        self.head = model.get_output_embeddings()
        received, logits = self._head_call(windows[:1])
        if not torch.allclose(self.head(received), logits, equal_nan=True):
            self.head = nn.Identity()
        self.kept = torch.cat(with_batch_halving(self._keep, self.batch))

    def _head_call(self, ids: LongTensor) -> tuple[Tensor, Tensor]:
        """What the model's head receives, [b, seqlen, width], and the model's logits."""
        seen: list[Tensor] = []
        head = {"": self.model.get_output_embeddings()}
        with watching(head, before=lambda name, args, kwargs: seen.append(args[0])):
            logits = self.model(ids.to(input_device(self.model)), use_cache=False).logits
        check_finite(self.model, logits, "predictions")
        return seen[0], logits

    def _keep(self, batch: int) -> list[Tensor]:
        """By batches of windows, what `head` makes the dense logits of."""
        whole = isinstance(self.head, nn.Identity)
        return [self._head_call(ids)[whole] for ids in self.windows.split(batch)]

    @torch.no_grad()
    def divergence(self, rows: Sequence[int] | None = None) -> float:
        """Of the model as it is now, on all windows or on those that are named: nats a token,
        infinite where its predictions are not finite."""
        chosen = torch.tensor(range(len(self.windows)) if rows is None else rows)

        def measure(batch: int) -> list[Tensor]:
            found = []
            for some in chosen.split(batch):
                dense = self.head(self.kept[some])
                found.append(window_divergences(self.model, self.windows[some], dense))
            return found

        mean = torch.cat(with_batch_halving(measure, self.batch)).double().mean().item()
        return mean if math.isfinite(mean) else math.inf
