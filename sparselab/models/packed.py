"""A pruned model in less room: the kept weights, and one bit a weight that says which they are.

A matrix with a share s of zeros takes 1 - s of its values and 1/16 of its 16-bit size (1/32 of 32
bits) for the bits: it pays from 6.25 % zeros on, and 2:4 takes 56.25 %. This is room on disk; to
compute faster takes kernels (see 2:4 on GPUs).
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from ..errors import SparselabError

PACKED = "model.packed.safetensors"  # a name that transformers does not take for a plain checkpoint
WEIGHTS = 2.0 ** torch.arange(8)  # of the bits in a byte, the first weight in the lowest


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Bits of the mask, uint8 [ceil(r c / 8)], and the kept values [n], of weight [r, c], row by
    row."""
    kept = weight.flatten() != 0
    bits = nn.functional.pad(kept, (0, -len(kept) % 8)).view(-1, 8)  # [bytes, 8]
    return (bits * WEIGHTS.to(weight.device)).sum(1).to(torch.uint8), weight.flatten()[kept]


def unpack(bits: Tensor, values: Tensor, shape: list[int]) -> Tensor:
    """The weight [r, c] that `pack` took apart."""
    count = torch.Size(shape).numel()
    kept = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).bool().flatten()[:count]
    if int(kept.sum()) != len(values):
        raise SparselabError(
            f"{PACKED} is broken: a weight of shape {list(shape)} has {len(values)} values for "
            f"{int(kept.sum())} places."
        )
    weight = values.new_zeros(count)
    weight[kept] = values
    return weight.view(*shape)


def write_packed(model: nn.Module, folder: Path) -> None:
    """All tensors of a model into one file; matrices that gain from it are packed."""
    tensors, shapes = {}, {}
    for name, value in stored_tensors(model).items():
        value = value.detach().cpu().contiguous()
        if gains(value):
            tensors[name + ".bits"], tensors[name + ".values"] = pack(value)
            shapes[name] = list(value.shape)
        else:
            tensors[name] = value
    save_file(tensors, folder / PACKED, metadata={"shapes": json.dumps(shapes)})


def gains(value: Tensor) -> bool:
    """Whether a tensor takes less room packed: a matrix whose zeros outweigh one bit a weight."""
    if value.ndim != 2:
        return False
    zeros = (value == 0).float().mean(dtype=torch.float64).item()
    return zeros > 1 / (8 * value.element_size())


def sizes(model: nn.Module) -> tuple[int, int]:
    """Bytes of a model's tensors on disk as they are, and as `write_packed` stores them; the files'
    headers not counted."""
    return sizes_of(stored_tensors(model).values())


def sizes_of(tensors: Iterable[Tensor]) -> tuple[int, int]:
    """The same of some tensors."""
    dense = packed = 0
    for value in tensors:
        size = value.numel() * value.element_size()
        dense += size
        if gains(value):
            size = value.count_nonzero().item() * value.element_size() + -(-value.numel() // 8)
        packed += size
    return dense, packed


def read_packed(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype | str
) -> PreTrainedModel:
    """The model, dense in memory, of a folder that holds a packed file."""
    with safe_open(folder / PACKED, "pt") as opened:
        shapes = json.loads(opened.metadata()["shapes"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    for name, shape in shapes.items():
        tensors[name] = unpack(tensors.pop(name + ".bits"), tensors.pop(name + ".values"), shape)
    first = next(iter(tensors.values()))
    model = AutoModelForCausalLM.from_config(
        config, dtype=first.dtype if dtype == "auto" else dtype
    )
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or {*missing} & {*stored_tensors(model)}:
        raise SparselabError(f"{folder / PACKED} does not belong to the config.json beside it.")
    if (folder / GENERATION_CONFIG_NAME).exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors by name, a shared one (a tied output head) once."""
    kept = model.state_dict()
    return {
        name: value
        for name, value in (*model.named_parameters(), *model.named_buffers())
        if name in kept
    }
