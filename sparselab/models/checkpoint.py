"""A model's safetensors files, read a block at a time: the model is never whole in memory."""

import hashlib
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..errors import SparselabError
from .architecture import family_of
from .hub import quiet
from .loading import (
    INDEX,
    LOCAL,
    friendly_error,
    locate,
    read_config,
    read_tokenizer,
    remember_tokenizer,
    weight_map,
)
from .packed import PACKED, stored_tensors

FETCHED = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]
PIECE = 2**16  # bytes
LEFT_OUT = "rotary_emb.inv_freq"  # old LLaMA checkpoints carry what is computed now


class Checkpoint:
    """Tensors of a model by their name in the model, from a folder or a Hub id. Everything that can
    be wrong with the files, but for the bits of the weights, is found at once: opening reads the
    headers only."""

    def __init__(self, name: str | Path):
        self.name = str(name)
        location, options = locate(self.name)
        self.folder = Path(location) if Path(location).is_dir() else _fetched(name, options)
        self.config = read_config(self.name, self.folder, LOCAL)
        self.files = {
            key: file for key, file in _index(self.folder, self.name).items() if LEFT_OUT not in key
        }

    def skeleton(self, dtype: torch.dtype | str | None) -> PreTrainedModel:
        """The model without memory for its parameters (buffers are real), in evaluation mode."""
        model = empty_model(self.config, self._dtype(dtype))
        model.sparselab_name = self.name
        with quiet():
            try:
                remember_tokenizer(model, read_tokenizer(self.name, self.folder, LOCAL))
            except Exception as error:
                raise friendly_error(self.name, error) from error
        prefix = family_of(model).blocks.split(".")[0] + "."  # some checkpoints leave 'model.' out
        self.files |= {
            prefix + key: file
            for key, file in self.files.items()
            if prefix + key in model.state_dict()
        }
        missing = sorted(key for key in stored_tensors(model) if key not in self.files)
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise SparselabError(
                f"{self.name}: its files hold no tensor {missing[0]}{more}: they are not complete,"
                " or belong to another config.json. Download the model again."
            )
        return model.eval()

    def _dtype(self, dtype: torch.dtype | str | None) -> torch.dtype:
        found = self.config.dtype if dtype in (None, "auto") else dtype
        return found or torch.float32

    def digest(self) -> str:
        """Tells these weights from others under the same name: config.json, and a thousand pieces
        of each file, spread over all its matrices. To read 26 GB whole would take a minute."""
        digest = hashlib.sha256(self.config.to_json_string().encode())
        for file in sorted({*self.files.values()}):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            with open(file, "rb") as opened:
                for place in range(0, size, max(PIECE, size // 1000)):
                    opened.seek(place)
                    digest.update(opened.read(PIECE))
        return digest.hexdigest()[:16]

    def read(self, names: dict[str, Tensor], *, stored: bool = False) -> dict[str, Tensor]:
        """Tensors by name, each as large and of the dtype of the (memory-less) one given for it, on
        the CPU; `stored`: of the dtype that the file has, and in memory of their own, where a file
        would be read no sooner than it is used.
        """
        found: dict[str, Tensor] = {}
        for file in dict.fromkeys(self.files[name] for name in names):
            try:
                with safe_open(file, "pt") as opened:
                    inside = set(opened.keys())
                    for name, like in names.items():
                        if self.files[name] == file:
                            key = name if name in inside else name.split(".", 1)[1]
                            tensor = opened.get_tensor(key)
                            found[name] = tensor.clone() if stored else tensor.to(like.dtype)
            except SafetensorError as error:
                raise SparselabError(
                    f"{self.name}: {file.name} is broken ({error}). Download it again."
                ) from error
        for name, tensor in found.items():
            if tensor.shape != names[name].shape:
                raise SparselabError(
                    f"{self.name}: {name} is {list(tensor.shape)} in its file and "
                    f"{list(names[name].shape)} by config.json: they do not belong together."
                )
        return found


def _fetched(name: str | Path, options: dict) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=FETCHED, **options))
    except Exception as error:
        raise friendly_error(name, error) from error


def config_of(name: str) -> PretrainedConfig:
    """A model's configuration, by its name alone."""
    location, options = locate(name)
    return read_config(name, location, options)


def empty_model(config: PretrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A model without memory for its parameters; its buffers are real."""
    with init_empty_weights(), quiet():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    return model


def _index(folder: Path, name: str) -> dict[str, Path]:
    """Which file holds which tensor, checked against the files' own headers."""
    if (folder / PACKED).exists():
        raise SparselabError(
            f"{name} is packed, and a packed file is not read block by block. Prune it in memory,"
            " with the model that sl.load gives, or write that model unpacked with sl.save first."
        )
    if (folder / INDEX).exists():
        try:
            claimed = weight_map(folder)
            files = sorted({folder / file for file in claimed.values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SparselabError(
                f"{name}: {INDEX} is broken ({error!r}). Download it again."
            ) from error
    else:
        claimed, files = None, sorted(folder.glob("*.safetensors"))
    if not files:
        raise SparselabError(
            f"{name} holds no safetensors file (pickled weights are not read, for they can run"
            " code). Convert it with save_pretrained of transformers, or choose another copy."
        )
    found = {key: file for file in files for key in _keys(file, name)}
    for key, file in (claimed or {}).items():
        if found.get(key) != folder / file:
            raise SparselabError(
                f"{name}: {INDEX} says that {key} is in {file}, and it is not. Download the model"
                " again."
            )
    return found


def _keys(file: Path, name: str) -> list[str]:
    if not file.exists():
        raise SparselabError(f"{name}: {file.name} is missing. Download the model again.")
    try:
        return load_header(file)
    except (SafetensorError, OSError) as error:
        raise SparselabError(
            f"{name}: {file.name} is broken ({error}). Download it again."
        ) from error


def load_header(file: Path) -> list[str]:
    """The names of the tensors in a safetensors file."""
    with safe_open(file, "pt") as opened:
        return list(opened.keys())
