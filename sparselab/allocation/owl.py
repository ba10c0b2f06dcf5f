"""By outliers: blocks with more of them among their Wanda scores keep more weights."""

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
from torch import LongTensor, Tensor, nn

from ..errors import SparselabError
from ..methods.parameters import checked
from ..models.architecture import blocks_of
from .scores import as_fraction, block_scores, input_norms


@checked
def owl(
    model: nn.Module,
    windows: LongTensor,
    sparsity: float,
    *,
    threshold: Annotated[float, "> 0"] = 5.0,
    spread: Annotated[float, "> 0"] = 0.08,
) -> dict[int, float]:
    """Sparsity of each block by OWL: blocks with more outliers among their Wanda scores keep more
    weights.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    windows : LongTensor of shape (n, seqlen)
        Token ids, as `sl.calibration` gives.
    sparsity : float
        The mean over the blocks, which are of one size; it is exact.
    threshold : float
        An outlier is a score above so many times the block's mean score (M in the paper).
    spread : float
        How far a block may be from the mean (lambda).

    Returns
    -------
    dict of int to float
        What `sl.prune` takes as ``sparsity``.

    Raises
    ------
    SparselabError
        Where an argument is of another kind or out of its bounds, or a block would leave 0 to 1.

    Notes
    -----
    Source: Yin et al., arXiv 2310.05175, defaults M = 5 and lambda = 0.08. Their code stretches the
    outlier shares to a range of 2 lambda and centres the result on their mean, so that a block may
    end up nearly 2 lambda off; here the farthest block is lambda off.
    """
    target = as_fraction(sparsity)
    if not spread <= min(target, 1 - target):
        raise SparselabError(
            f"owl(sparsity={sparsity}, spread={spread}): sparsity - spread and sparsity + spread"
            " must lie in 0 to 1."
        )
    norms = input_norms(model, windows)
    outliers = []
    for block in range(len(blocks_of(model))):
        scores = block_scores(model, block, norms)
        outliers.append(outlier_share(scores.values(), threshold))
    return dict(enumerate(owl_shares(outliers, target, spread)))


def outlier_share(scores: Iterable[Tensor], threshold: float) -> float:
    """Share of the entries of a block's score matrices, taken together, that exceed threshold times
    their mean."""
    scores = torch.cat([matrix.flatten() for matrix in scores])
    return (scores > threshold * scores.mean(dtype=torch.float64)).double().mean().item()


def owl_shares(outliers: Sequence[float], target: float, spread: float) -> list[float]:
    """s_l = s - t (D_l - mean D), with t such that the farthest block is `spread` away; the target
    where all D are equal."""
    mean = sum(outliers) / len(outliers)
    farthest = max(abs(share - mean) for share in outliers)
    if farthest <= 1e-12:
        return [target] * len(outliers)
    return [target - spread * (share - mean) / farthest for share in outliers]
