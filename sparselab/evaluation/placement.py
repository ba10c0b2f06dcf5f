"""Where a model takes its inputs, also where accelerate keeps its weights elsewhere."""

import torch
from torch import nn

from ..errors import SparselabError
from ..models.architecture import model_name


def input_device(model: nn.Module) -> torch.device:
    """The device that a model takes token ids on: where its embedding is, or, where a hook of
    accelerate brings the weights for each call, where that hook runs it.

    Raises a SparselabError where the weights are nowhere.
    """
    embedding = model.get_input_embeddings()
    absent = any(parameter.is_meta for parameter in model.parameters())
    if absent and not any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise SparselabError(
            f"the weights of {model_name(model)} are not in memory (device 'meta'), and no hook of"
            " accelerate brings them. Load the model whole."
        )
    if not embedding.weight.is_meta:
        return embedding.weight.device
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return torch.device("cpu" if device is None else device)
