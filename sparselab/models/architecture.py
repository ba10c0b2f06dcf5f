"""What the engine must know of an architecture: blocks, linears, which of them share inputs."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import SparselabError

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
)  # their weights have three dimensions and more without any expert
UNLIMITED = int(1e30)  # what transformers takes for a tokenizer without a limit


@dataclass(frozen=True)
class Family:
    """Where a family of models keeps its linears: the path of its blocks, and the linears of a
    block in groups that receive the same input, in the order in which they run. `ffn` names those
    of the feed-forward network. `residual` names, for the linears that write to the residual
    stream, the module that receives it as it is before ('' the block).
    """

    name: str
    blocks: str
    groups: tuple[tuple[str, ...], ...]
    ffn: tuple[str, ...]
    residual: dict[str, str]


_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
FAMILIES = (
    Family(
        "OPT",
        "model.decoder.layers",
        (_ATTENTION, ("self_attn.out_proj",), ("fc1",), ("fc2",)),
        ("fc1", "fc2"),
        {"self_attn.out_proj": "", "fc2": "final_layer_norm"},
    ),
    Family(
        "LLaMA",
        "model.layers",
        (_ATTENTION, ("self_attn.o_proj",), ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)),
        ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        {"self_attn.o_proj": "", "mlp.down_proj": "post_attention_layernorm"},
    ),
)


def family_of(model: nn.Module) -> Family:
    """The family whose blocks and linears are exactly those of the model: found by structure, not
    by name."""
    for family in FAMILIES:
        try:
            blocks = operator.attrgetter(family.blocks)(model)
        except AttributeError:
            continue
        wanted = {name for group in family.groups for name in group}
        if len(blocks) and all(
            _linears(block) == wanted and not _experts(block) for block in blocks
        ):
            return family
    if _experts(model):
        raise SparselabError(
            f"{model_name(model)} is a mixture of experts: its experts are fused matrices that"
            " these methods do not cover. Choose a dense model of the OPT or LLaMA family."
        )
    raise SparselabError(
        f"{model_name(model)} ({type(model).__name__}) is not built like the OPT or LLaMA family, "
        "whose blocks these methods know. Choose a model of one of them, such as facebook/opt-125m."
    )


def _linears(block: nn.Module) -> set[str]:
    return {name for name, module in block.named_modules() if isinstance(module, nn.Linear)}


def _experts(module: nn.Module) -> bool:
    if any(".experts." in name for name, _ in module.named_parameters()):
        return True
    for part in module.modules():
        fused = any(p.ndim > 2 for p in part.parameters(recurse=False))
        if fused and not isinstance(part, CONVOLUTIONS):
            return True
    return False


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks, in order."""
    return operator.attrgetter(family_of(model).blocks)(model)


@contextmanager
def replaced_blocks(model: nn.Module, path: str, blocks: list[nn.Module]) -> Iterator[None]:
    """Within it, the model runs through these blocks in place of its own, which are at `path`."""
    above, _, name = path.rpartition(".")
    parent, own = model.get_submodule(above), model.get_submodule(path)
    setattr(parent, name, nn.ModuleList(blocks))
    try:
        yield
    finally:
        setattr(parent, name, own)


def linears_of(model: nn.Module, layers: list[int] | None = None) -> dict[str, nn.Linear]:
    """Every linear that pruning touches, by its name in the model: 'model.layers.0.mlp.up_proj'."""
    family, blocks = family_of(model), blocks_of(model)
    names = [name for group in family.groups for name in group]
    found = {}
    for layer in range(len(blocks)) if layers is None else layers:
        for name in names:
            found[f"{family.blocks}.{layer}.{name}"] = blocks[layer].get_submodule(name)
    return found


def model_name(model: nn.Module) -> str:
    """The name that the model was loaded by."""
    config = getattr(model, "config", None)
    return (
        getattr(model, "sparselab_name", None)
        or getattr(config, "_name_or_path", "")
        or type(model).__name__
    )


def context_length(model: nn.Module) -> int:
    """The longest input, in tokens, that the model has positions for."""
    return model.config.max_position_embeddings


def dense_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of what `restore` will give back, all that pruning may touch: weights by their
    linear's name, biases and norms of the blocks by their own."""
    linears, prefix = linears_of(model), family_of(model).blocks + "."
    found = {name: linear.weight.detach().clone() for name, linear in linears.items()}
    for name, weight in model.named_parameters():
        if name.startswith(prefix) and name.removesuffix(".weight") not in linears:
            found[name] = weight.detach().clone()
    return found


def restore(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give the blocks their dense parameters back; a linear's name stands for its weight."""
    known = dict(model.named_parameters())
    for name, value in weights.items():
        known[name if name in known else f"{name}.weight"].data.copy_(value)
