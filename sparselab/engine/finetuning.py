"""After pruning: train the weights that are left. The zeros stay zeros."""

import math
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import LongTensor, Tensor, nn
from tqdm.auto import tqdm

from ..errors import SparselabError
from ..evaluation.perplexity import token_losses
from ..methods.parameters import checked
from ..models.architecture import linears_of, model_name
from ..models.validation import check_rows


@dataclass
class Training:
    """What a fine-tuning did: the loss of every step, in nats a token, and the share of zeros
    before and after."""

    losses: list[float] = field(default_factory=list)
    sparsity: tuple[float, float] = (0.0, 0.0)


@checked
def finetune(
    model: nn.Module,
    windows: LongTensor,
    *,
    steps: Annotated[int, ">= 1"] = 100,
    batch: Annotated[int, ">= 1"] = 8,
    rate: Annotated[float, "> 0"] = 1e-4,
    seed: int = 0,
    progress: bool = True,
) -> Training:
    """Train a pruned model in place, every weight that is zero in its linears kept at zero.

    AdamW with a linear warm-up over a tenth of the steps and a cosine decay to a tenth of `rate`.
    All parameters learn; the masks are those of the moment of the call, applied after each step, so
    that weight decay and momentum cannot revive a weight.

    Parameters
    ----------
    model : nn.Module
        A pruned model in memory.
    windows : LongTensor of shape (n, seqlen)
        Token ids to train on.
    steps, batch : int
        Steps, and windows in each, drawn anew.
    rate : float
        The highest learning rate.
    seed : int
        Of the draws.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Training
        The losses, in nats a token.
    """
    check_rows(model, windows, "the training text")
    masks = {linear.weight: linear.weight != 0 for linear in linears_of(model).values()}
    check_trainable(model)
    generator, result = torch.Generator().manual_seed(seed), Training()
    before, trained = zeros(masks), list(model.parameters())
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, steps))
    with (
        learning(model, trained),
        tqdm(range(steps), desc="fine-tuning", unit="step", disable=not progress) as bar,
    ):
        for _ in bar:
            ids = windows[torch.randint(len(windows), (batch,), generator=generator)].to(
                model.device
            )
            loss = token_losses(model(ids, use_cache=False).logits, ids).mean()
            value = loss.item()  # asked once: each time stops a GPU
            if not math.isfinite(value):
                raise diverged(f"the loss is {value}", len(result.losses), rate)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            keep_zeros(masks)
            result.losses.append(value)
            bar.set_postfix(loss=f"{value:.3f}")
    if not all(torch.isfinite(weight).all() for weight in trained):
        raise diverged("weights are not finite", steps, rate)
    result.sparsity = (before, zeros(masks))
    return result


def check_trainable(model: nn.Module) -> None:
    """A SparselabError for a model in float16."""
    if any(weight.dtype == torch.float16 for weight in model.parameters()):
        raise SparselabError(
            f"{model_name(model)} is in float16, in which small steps vanish. Load it with "
            "dtype=torch.float32 or torch.bfloat16."
        )


@contextmanager
def learning(model: nn.Module, trained: Iterable[nn.Parameter]):
    """Let these parameters of a model take gradients, and no others; at the end, however it comes,
    each is as it was in this, and none holds a gradient."""
    before, trained = {each: each.requires_grad for each in model.parameters()}, {*trained}
    try:
        for weight in before:
            weight.requires_grad_(weight in trained)
            weight.grad = None
        with torch.enable_grad():
            yield
    finally:
        for weight, want in before.items():
            weight.requires_grad_(want)
            weight.grad = None


LOST = "the model is of no use now. Load it again and"


def diverged(what: str, steps: int, rate: float, left: str = LOST) -> SparselabError:
    """What to raise of a training that is past help; left: what it leaves of the model."""
    return SparselabError(
        f"{what} after {steps} steps: the training diverged, and {left} take a rate below {rate:g}."
    )


def rate_share(step: int, steps: int) -> float:
    """Share of the full rate: up over a tenth of the steps, then down along a cosine to a tenth."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return (
        0.55
        + 0.45 * torch.cos(torch.tensor(torch.pi * (step - warm) / max(1, steps - warm))).item()
    )


@torch.no_grad()
def keep_zeros(masks: dict[Tensor, Tensor]) -> None:
    """Put the zeros back, weight by weight (or gradient by gradient); also where a weight is not
    finite, which a product would keep."""
    for weight, mask in masks.items():
        weight.masked_fill_(~mask, 0)


def zeros(masks: dict[Tensor, Tensor]) -> float:
    """Share of zeros in all masked weights together."""
    return sum(int((weight == 0).sum()) for weight in masks) / sum(
        weight.numel() for weight in masks
    )
