"""How far a model's predictions are from another's: Kullback-Leibler divergence, token by token."""

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from .placement import input_device


def token_divergences(logits: Tensor, dense: Tensor) -> Tensor:
    """KL(dense || model) of each token's prediction, in nats; logits, dense [b, seqlen, vocabulary]
    -> float32 [b, seqlen]. Differentiable in `logits`."""
    parts = []
    for ours, theirs in zip(logits, dense, strict=True):  # a window at a time: float32 is large
        target = F.log_softmax(theirs.detach().float(), -1).to(ours.device)
        found = F.log_softmax(ours.float(), -1)
        parts.append(F.kl_div(found, target, reduction="none", log_target=True).sum(-1))
    return torch.stack(parts)


def window_divergences(model: nn.Module, ids: LongTensor, dense: Tensor) -> Tensor:
    """The mean over each window, ids [b, seqlen], the dense model's logits [b, seqlen, vocabulary]
    -> float32 [b]."""
    logits = model(ids.to(input_device(model)), use_cache=False).logits
    return token_divergences(logits, dense).mean(1).cpu()
