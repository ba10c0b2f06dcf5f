"""A model's safetensors files, read a block at a time: the model is never whole in memory."""

import hashlib
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from ..errors import SparselabError
from .architecture import family_of
from .hub import quiet
from .loading import (
    LOCAL,
    friendly_error,
    has_adapter,
    locate,
    naming_load_errors,
    read_config,
    read_model,
    read_tokenizer,
    remember_tokenizer,
)
from .packed import PACKED, sizes_of, stored_tensors
from .shards import FLOATS, weight_files

FETCHED = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]
PIECE = 2**16  # bytes
IN_MEMORY = "Load it with sl.load, and pass the model that it gives."


class Checkpoint:
    """Tensors of a model by their name in the model, from a folder or a Hub id. Everything that can
    be wrong with the files, but for the bits of the weights, is found at once: opening reads the
    headers only. Which files and tensors belong to the model is what transformers says."""

    def __init__(self, name: str | Path):
        self.name = str(name)
        location, options = locate(self.name)
        self.folder = Path(location) if Path(location).is_dir() else _fetched(name, options)
        self.config = read_config(self.name, self.folder, LOCAL)
        self._refuse_what_only_load_reads()
        files = weight_files(self.folder, self.name)
        # Where each tensor is: its file, and its name there.
        self.files = {key: (file, key) for file, kinds in files.items() for key in kinds}
        self.kinds = [*next(iter(files.values())).values()]  # of numbers, in the first file
        read_model(self.name, self.folder, LOCAL, device_map="meta")  # reads headers, no weight

    def _refuse_what_only_load_reads(self) -> None:
        if (self.folder / PACKED).exists():
            raise SparselabError(
                f"{self.name} is packed, and a packed file is not read block by block. {IN_MEMORY}"
            )
        if has_adapter(self.folder):
            raise SparselabError(
                f"{self.name} holds an adapter (adapter_config.json) beside the weights, which is"
                f" not read block by block. {IN_MEMORY}"
            )

    def skeleton(self, dtype: torch.dtype | str | None) -> PreTrainedModel:
        """The model without memory for its parameters (buffers are real), in evaluation mode."""
        model = empty_model(self.config, self._dtype(dtype))
        self._give_names_of_the_model(model)
        if self._has_other_head(model):
            self.config.tie_word_embeddings = False
            model = empty_model(self.config, self._dtype(dtype))
        model.sparselab_name = self.name
        with naming_load_errors(self.name):
            remember_tokenizer(model, read_tokenizer(self.name, self.folder, LOCAL))
            if (self.folder / GENERATION_CONFIG_NAME).exists():
                model.generation_config = GenerationConfig.from_pretrained(self.folder)
        return model.eval()

    def _give_names_of_the_model(self, model: PreTrainedModel) -> None:
        """Some checkpoints leave 'model.' out of all names."""
        prefix = family_of(model).blocks.split(".")[0] + "."
        wanted = model.state_dict()
        for key, place in [*self.files.items()]:
            if prefix + key in wanted:
                self.files[prefix + key] = place
        other = sorted(key for key in stored_tensors(model) if key not in self.files)
        if other:
            raise SparselabError(
                f"{self.name}: {other[0]} has another name in its files, which transformers"
                f" translates; they are not read block by block. {IN_MEMORY}"
            )

    def _has_other_head(self, model: PreTrainedModel) -> bool:
        """The files hold an output head that differs from the embeddings to which config.json ties
        it: transformers keeps both then, so both are kept here."""
        embeddings = model.get_input_embeddings().weight
        same = [
            key
            for key, value in model.named_parameters(remove_duplicate=False)
            if value is embeddings and key in self.files
        ]
        if len(same) == 1:
            return False
        first, *others = self.read(dict.fromkeys(same, embeddings), stored=True).values()
        return not all(torch.equal(first, other) for other in others)

    def _dtype(self, dtype: torch.dtype | str | None) -> torch.dtype:
        """'auto' and None: the one that config.json names, else that of the first tensor."""
        if dtype not in (None, "auto"):
            return dtype
        if self.config.dtype:
            return self.config.dtype
        return next((FLOATS[kind] for kind in self.kinds if kind in FLOATS), torch.float32)

    def digest(self) -> str:
        """Tells these weights from others under the same name: config.json, and a thousand pieces
        of each file, spread over all its matrices. To read 26 GB whole would take a minute."""
        digest = hashlib.sha256(self.config.to_json_string().encode())
        for file in sorted({file for file, _ in self.files.values()}):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            with open(file, "rb") as opened:
                for place in range(0, size, max(PIECE, size // 1000)):
                    opened.seek(place)
                    digest.update(opened.read(PIECE))
        return digest.hexdigest()[:16]

    def sizes(self) -> tuple[int, int]:
        """Bytes of the model's tensors as they are, and as `write_packed` would store them, one
        tensor read after the other."""
        tensors = stored_tensors(self.skeleton(None))
        return sizes_of(
            self.read({name: like}, stored=True)[name] for name, like in tensors.items()
        )

    def read(self, names: dict[str, Tensor], *, stored: bool = False) -> dict[str, Tensor]:
        """Tensors by name, each as large and of the dtype of the (memory-less) one given for it, on
        the CPU; `stored`: of the dtype that the file has, and in memory of their own, where a file
        would be read no sooner than it is used.
        """
        found: dict[str, Tensor] = {}
        for name, like in names.items():
            file, key = self.files[name]
            try:
                # Opened anew for each: the pages of a file that were read count as memory until it
                # is closed, and would be as many as those of the tensors.
                with safe_open(file, "pt") as opened:
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

    try:  # not quiet: the bars of a download that may take an hour are wanted
        # Only the folder itself: some repositories keep the weights once more in another one.
        folder = snapshot_download(
            str(name),
            allow_patterns=FETCHED,
            ignore_patterns="*/*",
            local_files_only=options["local_files_only"],
        )
    except Exception as error:
        raise friendly_error(name, error) from error
    return Path(folder)


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
