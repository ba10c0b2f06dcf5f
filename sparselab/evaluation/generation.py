"""What a model writes."""

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import SparselabError
from ..models.architecture import context_length, model_name
from ..models.validation import check_ready


@torch.no_grad()
def write(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: str, *, tokens: int = 25
) -> str:
    """How the model goes on with a prompt, always taking the likeliest token (greedy, so that runs
    can be compared).

    Parameters
    ----------
    model, tokenizer
        What `sl.load` gave.
    prompt : str
        The beginning.
    tokens : int
        How many to add at most.

    Returns
    -------
    str
        The prompt and its continuation.
    """
    check_ready(model)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    length = inputs.input_ids.shape[1]
    if not 1 <= tokens <= context_length(model) - length:
        raise SparselabError(
            f"tokens={tokens} after a prompt of {length} tokens: at least one, and together they"
            f" must fit the {context_length(model)} positions of {model_name(model)}."
        )
    output = model.generate(
        **inputs,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
    )
    return tokenizer.decode(output[0], skip_special_tokens=True)
