"""The model that a notebook runs on, and the inputs of one of its matrices."""

import os

import torch
from torch import Tensor, nn

from ..errors import SparselabError
from ..models.architecture import family_of
from ..models.hooks import watching
from ..models.loading import load


def notebook_model(default: str, *, family: str | None = None) -> str:
    """The notebook's model: SPARSELAB_MODEL where it is set, else its default. family: 'opt' or
    'llama', for a notebook that is about that family; a model of another is named, and the default
    is used instead."""
    name = os.environ.get("SPARSELAB_MODEL", default)
    if family is None or name == default:
        return name
    found = family_of(load(name)[0]).name.lower()
    if found == family.lower():
        return name
    print(
        f"SPARSELAB_MODEL is of the {found} family, this notebook is about {family}: it stays with"
        f" {default}."
    )
    return default


@torch.no_grad()
def inputs_of(model: nn.Module, windows: Tensor, linear: nn.Linear) -> Tensor:
    """The inputs X [c, N] that a matrix receives when the model reads windows [samples, seqlen]; N
    = samples x seqlen."""
    parts = []  # [seqlen, c] each

    def keep(name: str, args: tuple, kwargs: dict) -> None:
        parts.append(args[0].flatten(0, -2))

    with watching({"": linear}, before=keep):
        for window in windows.to(linear.weight.device):
            model(window[None])
    if not parts:
        raise SparselabError(
            "this matrix was never called: it is not part of the model, or of a block that is"
            " skipped."
        )
    return torch.cat(parts).T.float()
