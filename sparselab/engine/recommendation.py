"""Which method to take, given a model, a machine and a time."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
from torch import nn
from transformers import PretrainedConfig

from ..errors import SparselabError
from ..methods import ADMM, Method, SparseGPT, Wanda
from ..methods.parameters import checked
from .planning import plan

LADDER: tuple[tuple[str, Method], ...] = (
    ("a mask, from forward passes alone", Wanda()),
    ("weights that make up for the error", SparseGPT()),
    ("errors and zeros by the loss's gradient, dense stream as target", ADMM.guided()),
    ("the same, and each block tuned by gradient", replace(ADMM.guided(), reconstruct=True)),
)


@dataclass
class Recommendation:
    """The method to take, and for each rung of the ladder what it does, its method, and the minutes
    that a run is expected to need."""

    method: Method
    rungs: list[tuple[str, Method, float]]

    def frame(self) -> pd.DataFrame:
        """One row a rung."""
        rows = [
            (what, str(method), minutes, method == self.method)
            for what, method, minutes in self.rungs
        ]
        return pd.DataFrame(rows, columns=["what it does", "method", "minutes", "recommended"])

    def __str__(self) -> str:
        table = self.frame().round({"minutes": 1}).drop(columns="method")
        return f"{table.to_string(index=False)}\nmethod={self.method}"

    __repr__ = __str__


@checked
def recommend(
    model: str | Path | nn.Module | PretrainedConfig,
    minutes: Annotated[float, "> 0"] | None = None,
    *,
    samples: Annotated[int, ">= 1"] = 128,
    seqlen: Annotated[int, ">= 2"] = 2048,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Recommendation:
    """The last rung of a ladder that is expected to be done in time, by the minutes of `sl.plan`;
    the first, where none is.

    In the committed tables each rung loses less than the one before at 70 to 90 % of zeros. Of the
    last one, which tunes by gradient, that is measured on opt-mini only: of eight cells (70 and
    90 %, four texts) it is ahead by more than two errors in four, and within them in the others.
    Neither memory nor the pattern is looked at.

    Parameters
    ----------
    model : str, Path, nn.Module or PretrainedConfig
        As for `sl.plan`; only its shape matters.
    minutes : float, optional
        For pruning, on this machine as busy as it is now. Default: as long as it takes.
    samples, seqlen, device, dtype
        As for `sl.plan`. For torch.float16 the last rung is left out, since it trains.

    Returns
    -------
    Recommendation
        ``sl.prune(model, calibration, method=sl.recommend(model, 10).method, sparsity=0.7)``.
    """
    rungs = []
    for what, method in LADDER:
        if method.reconstruct and dtype == torch.float16:
            continue  # small steps vanish in it
        costs = plan(model, method, samples, seqlen, device, dtype=dtype).seconds
        if not costs and minutes is not None:
            raise SparselabError(
                f"recommend(minutes={minutes:g}): how long a run takes on {device} is not known"
                " here, where there is none. Ask on that machine, or leave minutes= out."
            )
        rungs.append((what, method, sum(costs.values()) / 60 if costs else math.nan))
    fitting = [method for _, method, cost in rungs if minutes is None or cost <= minutes]
    return Recommendation(fitting[-1] if fitting else LADDER[0][1], rungs)
