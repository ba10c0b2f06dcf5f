"""Checks of input that several entry points share; each failure is one sentence."""

import torch
from torch import Tensor, nn

from ..errors import SparselabError
from .architecture import Family, context_length, model_name


def check_windows(model: nn.Module, seqlen: int) -> None:
    """A window must fit the model's positions."""
    if seqlen < 2:
        raise SparselabError(
            f"seqlen={seqlen}: a window needs at least 2 tokens, one to read and one to predict."
        )
    if seqlen > context_length(model):
        raise SparselabError(
            f"seqlen={seqlen} is longer than the {context_length(model)} positions of "
            f"{model_name(model)}. Pass seqlen={context_length(model)} or less."
        )


def check_ids(model: nn.Module, ids: Tensor, what: str) -> None:
    """Token ids must be 64-bit integers inside the model's vocabulary."""
    if not isinstance(ids, Tensor) or ids.dtype != torch.long:
        raise SparselabError(
            f"{what} must be a LongTensor of token ids, such as sl.calibration or sl.tokens give."
            " Convert other integers with .long()."
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary):
        raise SparselabError(
            f"{what} holds token ids from {int(ids.min())} to {int(ids.max())}, but"
            f" {model_name(model)} knows 0 to {vocabulary - 1}: were they made by another model's"
            " tokenizer?"
        )


def check_rows(model: nn.Module, windows: Tensor, what: str) -> None:
    """Windows of token ids, [samples, seqlen], that fit the model."""
    check_ids(model, windows, what)
    if windows.ndim != 2 or not len(windows):
        raise SparselabError(
            f"{what} has shape {tuple(windows.shape)}: it must be [samples, seqlen] with at least"
            " one sample, as sl.calibration gives."
        )
    check_windows(model, windows.shape[1])


def check_finite(model: nn.Module, values: Tensor, what: str) -> None:
    """No NaN, no infinity in what a model says of a text."""
    broken = int((~torch.isfinite(values)).sum())
    if broken:
        raise SparselabError(
            f"{model_name(model)}: {broken} of {values.numel()} {what} are not finite. A weight is"
            " NaN or infinite, or the values overflow: load the model again, with"
            " dtype=torch.float32."
        )


def check_ready(model: nn.Module) -> None:
    """Evaluation mode in all parts: dropout would make every statistic random."""
    if any(module.training for module in model.modules()):
        raise SparselabError(
            f"{model_name(model)} is in training mode, where dropout makes every number random. "
            "Call model.eval() first."
        )


def check_not_shared(linears: dict[str, nn.Linear]) -> None:
    """A SparselabError where two of the matrices are one: it would be pruned twice, the second time
    as if it were dense."""
    seen: dict[int, str] = {}
    for name, linear in linears.items():
        if linear.weight.is_meta:
            continue
        other = seen.setdefault(linear.weight.data_ptr(), name)
        if other != name:
            raise SparselabError(
                f"{other} and {name} share one matrix, which cannot be pruned for both. Give each"
                " its own: linear.weight = nn.Parameter(linear.weight.clone())."
            )


def check_weights(linears: dict[str, nn.Linear]) -> None:
    """No NaN, no infinity, nothing still without memory."""
    for name, linear in linears.items():
        if linear.weight.is_meta:
            raise SparselabError(
                f"the weight of {name} is not in memory (device 'meta'). Load the model whole."
            )
        if not torch.isfinite(linear.weight).all():
            raise SparselabError(
                f"the weight of {name} holds NaN or infinite values: the checkpoint is broken. "
                "Load it again, with dtype=torch.float32 if it was converted to float16."
            )


def check_feed_forward(model: nn.Module, family: Family, linears: dict[str, nn.Linear]) -> None:
    """A joint method needs the whole feed-forward network or none of it, with the activation that
    it knows."""
    chosen = {kind for kind in family.ffn for name in linears if name.endswith(f".{kind}")}
    if chosen and chosen != {*family.ffn}:
        raise SparselabError(
            f"this method prunes {', '.join(family.ffn)} together: modules= names all of them, or"
            " none."
        )
    wanted = "silu" if len(family.ffn) == 3 else "relu"
    names = ("hidden_act", "hidden_activation", "activation_function")
    found = next(
        (value for name in names if (value := getattr(model.config, name, None))), "of another name"
    )
    if chosen and found != wanted:
        raise SparselabError(
            f"{model_name(model)} has the activation {found!r}; the sub-problems of this method are"
            f" solved for {wanted!r} in this family. Choose another method, such as 'admm'."
        )
