"""What both allocations read of a model: the Wanda scores of a block and the mean loss."""

import torch
from torch import LongTensor, Tensor, nn

from ..errors import SparselabError
from ..evaluation.perplexity import window_losses
from ..methods.wanda import wanda_scores
from ..models.architecture import linears_of
from ..models.hooks import watching
from ..models.validation import check_ready, check_rows
from ..patterns import Pattern


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
