"""A folder of OPT-125m's exact shape: random weights, the true tokenizer. python -m tools.opt125m
FOLDER

To see that no notebook depends on opt-mini's sizes: SPARSELAB_MODEL=FOLDER python -m
tools.execute_notebooks --copies ... The tokenizer's files, opt-vocab.json and opt-merges.txt, lie
in the folder that SPARSELAB_DATA names.
"""

import os
import sys
from pathlib import Path

import torch
from transformers import GPT2TokenizerFast, OPTConfig, OPTForCausalLM


def main(folder: Path) -> None:
    """Write model and tokenizer."""
    data = Path(os.environ.get("SPARSELAB_DATA", "../shared/data"))
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    tokenizer = GPT2TokenizerFast(
        vocab=str(data / "opt-vocab.json"), merges=str(data / "opt-merges.txt"), **special
    )
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=50272,
        hidden_size=768,
        ffn_dim=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=2048,
        word_embed_proj_dim=768,
    )
    OPTForCausalLM(config).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
