"""The best weights under a given mask: conjugate gradients on all rows at once, from the Hessian
alone."""

import torch
from torch import Tensor

from ..runtime.transfer import Later


def refit(
    target: Tensor,
    start: Tensor,
    mask: Tensor,
    hessian: Tensor,
    *,
    steps: int = 50,
    tolerance: float = 1e-4,
) -> Tensor:
    """Minimise tr((W - T) H (W - T)^T) over all W that are zero outside the mask; no step makes it
    larger.

    Conjugate gradients on the kept weights, each row with its own step length, preconditioned by
    H's diagonal. One product [r, c] x [c, c] per step, where an exact solution by factorisation
    needs one factor per row. Sources: arXiv 2401.02938 (the problem), arXiv 2406.07831 (the
    gradients).

    Parameters
    ----------
    target, start : Tensor of shape (r, c), float32
        T, and the weights to begin with.
    mask : Tensor of shape (r, c), bool
        Where a weight may stand.
    hessian : Tensor of shape (c, c), float32
        H, positive definite.
    steps : int
        At most.
    tolerance : float
        It ends when a step lowers the squared error by less than this share of it.

    Returns
    -------
    Tensor of shape (r, c), float32
    """
    weight, tiny = start * mask, torch.finfo(start.dtype).tiny
    scale = mask / hessian.diagonal()  # 0 where pruned: the step stays in the mask
    residual = (target - weight) @ hessian  # [r, c], minus half the gradient
    error = (residual * (target - weight)).sum()
    direction = residual * scale
    power = (residual * direction).sum(1, keepdim=True)  # [r, 1], squared length of the gradient
    for _ in range(steps):
        image = direction @ hessian
        length = power / (direction * image).sum(1, keepdim=True).clamp(min=tiny)
        weight.addcmul_(direction, length)
        gain = (length * power).sum()
        gains = Later(gain > tolerance * error)  # False where NaN
        error = error - gain
        residual.addcmul_(image, -length)
        step = residual * scale
        new = (residual * step).sum(1, keepdim=True)
        direction = step.addcmul_(direction, new / power.clamp(min=tiny))
        power = new
        if not gains.read():  # last, so that a GPU has the next direction to work at meanwhile
            break
    return weight
