"""Perplexity by the papers' definition, with its standard error."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from ..errors import SparselabError
from ..models.validation import check_finite, check_ids, check_windows
from .forward import Texts, opened
from .placement import input_device


class Perplexity(float):
    """A perplexity that carries its standard error, the number of windows, and each window's mean
    loss in nats."""

    losses: Tensor  # float32 [windows]
    seqlen: int

    def __new__(cls, losses: Tensor, seqlen: int):
        losses = losses.detach().float().cpu()
        mean = losses.double().mean().item()
        self = super().__new__(cls, math.inf if mean >= 700 else math.exp(mean))
        self.losses, self.seqlen = losses, seqlen
        return self

    @property
    def windows(self) -> int:
        """How many windows it is the mean of."""
        return len(self.losses)

    @property
    def stderr(self) -> float:
        """Standard error over windows, carried through the exponential (delta method); NaN for a
        single window."""
        return float(self) * self.losses.double().std().item() / math.sqrt(self.windows)

    def ratio(self, other: "Perplexity") -> tuple[float, float]:
        """How much worse one model is than another on the same windows.

        Parameters
        ----------
        other : Perplexity
            Of the other model, such as the dense one.

        Returns
        -------
        difference, stderr : float
            log(self / other) in nats a token, and its standard error. Windows are paired, which is
            far sharper than two separate errors.

        Raises
        ------
        SparselabError
            If the two were measured on windows of another number or length.
        """
        if (self.losses.shape, self.seqlen) != (other.losses.shape, other.seqlen):
            raise SparselabError(
                f"ratio compares two models on the same windows, not {self.windows} of"
                f" {self.seqlen} tokens with {other.windows} of {other.seqlen}."
            )
        difference = (self.losses - other.losses).double()
        return difference.mean().item(), difference.std().item() / math.sqrt(len(difference))

    def __reduce__(self):
        return Perplexity, (self.losses, self.seqlen)

    def __str__(self) -> str:
        return f"{float(self):.2f}"

    def __repr__(self) -> str:
        return (
            f"{float(self):.2f} ± {self.stderr:.2f} ({self.windows} windows of {self.seqlen}"
            " tokens)"
        )


@torch.no_grad()
def perplexity(
    model: nn.Module | str | Path,
    tokens: LongTensor,
    *,
    seqlen: int = 2048,
    progress: bool = True,
    offload: str = "auto",
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
) -> Perplexity:
    """Perplexity of a text in windows that do not overlap; the remainder is dropped.

    Each window is scored with its seqlen - 1 inner predictions; the result is exp of the mean over
    windows. The loss is computed in float32 whatever the model's dtype.

    Parameters
    ----------
    model : nn.Module, str or Path
        What `sl.load` gave; or the name of a model (a folder, a Hub id), which is then read from
        its files block by block and never whole in memory: about three blocks, the activations of
        all windows, and one batch's logits.
    tokens : LongTensor of shape (n,)
        See `sl.tokens`.
    seqlen : int
        Tokens in a window.
    progress : bool
        Show a progress bar.
    offload : {'auto', 'device', 'cpu', 'disk'}
        Where the activations wait between two blocks of a model in files, as for `sl.prune`.
    dtype, device : torch.dtype, torch.device or str, optional
        For a model that is given by name; they mean what they mean to `sl.load`.

    Returns
    -------
    Perplexity
        A number (exp of nats a token) with `stderr`, `windows` and the `losses` of the windows.

    Raises
    ------
    SparselabError
        If the text is shorter than one window, or a loss is not finite; for a model in files, if
        one is missing, or if it cannot be run block by block. What can be wrong with the text is
        found before a weight is read.
    """
    with opened(model, offload, dtype, device) as forward:
        check_windows(forward.model, seqlen)
        check_ids(forward.model, tokens, "the evaluation text")
        if tokens.ndim != 1 or len(tokens) < seqlen:
            raise SparselabError(
                f"the evaluation text has shape {tuple(tokens.shape)}: perplexity needs one row of"
                f" at least seqlen={seqlen} tokens. Use a longer text or a shorter seqlen."
            )
        windows = tokens[: len(tokens) // seqlen * seqlen].view(-1, seqlen)
        texts = Texts("perplexity", "window", len(windows), seqlen, windows.split)
        parts = forward.scores(texts, lambda model, ids, _: window_losses(model, ids), progress)
        losses = torch.cat(parts)
        check_finite(forward.model, losses, "windows' losses")
    return Perplexity(losses, seqlen)


def window_losses(model: nn.Module, ids: LongTensor) -> Tensor:
    """Mean next-token loss of each window, ids [b, seqlen] -> float32 [b]."""
    ids = ids.to(input_device(model))
    logits = model(ids, use_cache=False).logits  # [b, seqlen, vocabulary]
    return token_losses(logits, ids).mean(1).cpu()


def token_losses(logits: Tensor, ids: LongTensor) -> Tensor:
    """Loss of each next token, logits [b, seqlen, vocabulary], ids [b, seqlen] -> float32 [b,
    seqlen - 1]."""
    targets = ids[:, 1:].to(logits.device)
    losses = []
    for row, target in zip(logits, targets, strict=True):  # a window at a time: memory
        losses.append(F.cross_entropy(row[:-1].float(), target, reduction="none"))
    return torch.stack(losses)
