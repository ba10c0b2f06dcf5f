"""What a model writes."""

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.tokenising import encode
from ..errors import SparselabError
from ..models.architecture import context_length, model_name
from ..models.validation import check_ids, check_ready
from .placement import input_device


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
        The beginning. An end of sequence that the tokenizer appends to it is left out.
    tokens : int
        How many to add at most.

    Returns
    -------
    str
        The prompt and its continuation.

    Raises
    ------
    SparselabError
        If the prompt has no tokens, or the text would be longer than the model's context.
    """
    check_ready(model)
    ids = encode(tokenizer, prompt)
    check_ids(model, ids, "the prompt")
    if not len(ids):
        raise SparselabError(f"the prompt {prompt!r} has no tokens, so there is nothing to go on.")
    if not 1 <= tokens <= context_length(model) - len(ids):
        raise SparselabError(
            f"tokens={tokens} after a prompt of {len(ids)} tokens: at least one, and together they"
            f" must fit the {context_length(model)} positions of {model_name(model)}."
        )
    ids = ids[None].to(input_device(model))  # [1, n]
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
    )
    return tokenizer.decode(output[0], skip_special_tokens=True)
