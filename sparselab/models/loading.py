"""Load a model and its tokenizer, and know where the blocks and linears of its family are."""

import hashlib
import weakref
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import CONFIG_NAME

from ..errors import SparselabError, did_you_mean
from ..runtime.memory import is_out_of_memory
from .architecture import UNLIMITED, family_of, model_name
from .embedded import EMBEDDED, OPT_MINI, smollm2_folder
from .hub import online, quiet
from .packed import PACKED, read_packed
from .shards import PICKLED, weight_files


def revision(model: nn.Module) -> str:
    """Which weights these were: the Hub's commit, or the sha256 of the folder's safetensors files
    together."""
    commit = getattr(model.config, "_commit_hash", None)
    return commit or _weights_sha256(locate(model_name(model))[0])


@lru_cache
def _weights_sha256(folder: str) -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.safetensors")):
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


LOCAL = {"local_files_only": True, "trust_remote_code": False}  # None would ask on standard input
_tokenizers: "weakref.WeakKeyDictionary[nn.Module, PreTrainedTokenizerBase]" = (
    weakref.WeakKeyDictionary()
)


def tokenizer_of(model: nn.Module) -> PreTrainedTokenizerBase | None:
    """The tokenizer that `load` gave out with this model, if it did."""
    return _tokenizers.get(model)


def load(
    name: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer by name.

    Parameters
    ----------
    name : str or Path
        'opt-mini', 'smollm2-135m', a local folder, or a Hub id such as 'facebook/opt-125m'. OPT and
        LLaMA families, safetensors only, no remote code.
    dtype : torch.dtype or str, optional
        Default: float32 on a CPU, the checkpoint's own on a GPU.
    device : torch.device or str, optional
        Default: the GPU where there is one.

    Returns
    -------
    model : PreTrainedModel
        In evaluation mode.
    tokenizer : PreTrainedTokenizerBase

    Raises
    ------
    SparselabError
        In one sentence, where a model is missing, gated, out of reach, or of another family.
    """
    device, dtype = find_place(device, dtype)
    with naming_device_errors(name, device):
        torch.empty(0, device=device)  # what a driver refuses is not taken for a broken file
    folder, options = locate(str(name))
    config = read_config(name, folder, options)
    if (Path(folder) / PACKED).exists():
        with naming_load_errors(name):
            model = read_packed(Path(folder), config, dtype)
    else:
        if Path(folder).is_dir():
            weight_files(Path(folder), str(name))
        # Straight to a GPU, tensor by tensor: never whole in the host's memory.
        there = {} if device.type == "cpu" else {"device_map": {"": device}}
        model = read_model(name, folder, options, dtype=dtype, **there)
        _merge_adapter(model)
    with naming_load_errors(name):
        tokenizer = read_tokenizer(name, folder, options)
    model.sparselab_name = str(name)
    remember_tokenizer(model, tokenizer)
    with naming_device_errors(name, device):
        return model.to(device).eval(), tokenizer


def read_model(name: str | Path, folder: str | Path, options: dict, **how) -> PreTrainedModel:
    """What transformers makes of a folder or Hub id; of what it would only warn is an error here.

    Parameters
    ----------
    name : str or Path
        What the user calls the model.
    folder : str or Path
        Where the files are, or the Hub id.
    options, **how
        For `from_pretrained`. device_map='meta' reads the names of the tensors and no weight.

    Raises
    ------
    SparselabError
        Where the files lack a tensor, or hold one that config.json does not foresee.
    """
    with naming_load_errors(name):
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **how, **options
        )
    for key in sorted(found["missing_keys"])[:1]:
        raise SparselabError(
            f"{name}: its files hold no tensor {key}{_and_more(found['missing_keys'])}: they are"
            " not complete, or belong to another config.json. Download the model again."
        )
    for key in sorted(found["unexpected_keys"])[:1]:
        raise SparselabError(
            f"{name}: its files hold {key}{_and_more(found['unexpected_keys'])}, for which its"
            " config.json has no place: they would be left out. The two do not belong together:"
            " correct config.json, or download the model again."
        )
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False  # config.json may say so where two are stored
    return model


def _and_more(keys) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""


@contextmanager
def naming_load_errors(name: str | Path):
    """The libraries' exceptions, as one sentence; without their log."""
    with quiet():
        try:
            yield
        except Exception as error:
            raise friendly_error(name, error) from error


@contextmanager
def naming_device_errors(name: str | Path, device: torch.device):
    """What a device says to a model that is put there, as one sentence."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise friendly_error(name, error) from error
        raise SparselabError(
            f"{name} cannot be put on {device}: {_first_line(error)}. Look at the driver and at"
            " torch (python -m sparselab doctor), or take device='cpu'."
        ) from error


def has_adapter(folder: str | Path) -> bool:
    """Whether a LoRA adapter lies beside the weights; transformers applies it unasked."""
    return (Path(folder) / "adapter_config.json").exists()


def _merge_adapter(model: PreTrainedModel) -> None:
    """Add what an adapter has learnt to the weights, so that there are plain linears to prune and
    to save."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in [*model.named_modules()]:
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    model._hf_peft_config_loaded = False
    del model.peft_config
    model._weight_conversions = None  # or the adapter's names would be saved


def read_tokenizer(name: str | Path, folder: str | Path, options: dict) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id; a SparselabError where there are no files of one: for
    some families transformers then makes one that knows no word."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    if not tokenizer("The words of a text.", add_special_tokens=False).input_ids:
        raise SparselabError(
            f"{name} has no tokenizer: its files are missing, or empty. Add tokenizer.json (or"
            " vocab.json and merges.txt) of the model that it was made from."
        )
    return tokenizer


def remember_tokenizer(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """So that `save` writes it beside the model."""
    tokenizer.model_max_length = (
        UNLIMITED  # whole texts are tokenised at once and cut later: no length warning
    )
    _tokenizers[model] = tokenizer


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Its files, with the limit that it had before `remember_tokenizer` lifted it."""
    now = tokenizer.model_max_length
    if now == UNLIMITED:
        tokenizer.model_max_length = tokenizer.init_kwargs.get("model_max_length", now)
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.model_max_length = now


def find_device(device: torch.device | str | None, *, here: bool = True) -> torch.device:
    """A device by name, the GPU where there is one if None; a SparselabError where there is no such
    device `here`."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise SparselabError(
            f"unknown device {device!r}: 'cpu', 'cuda', or 'cuda:1' for the second GPU."
        ) from None
    count = torch.cuda.device_count()
    if here and found.type == "cuda" and (found.index or 0) >= count:
        raise SparselabError(
            f"device={str(device)!r} was asked for, but torch sees {count or 'no'} GPU here. Use "
            f"device={'cuda:0' if count else 'cpu'!r}."
        )
    return found


def find_dtype(dtype: torch.dtype | str | None) -> torch.dtype | str | None:
    """A dtype by name; None and 'auto' as they are."""
    if not isinstance(dtype, str) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise SparselabError(
            f"unknown dtype {dtype!r}.{did_you_mean(dtype, ['float32', 'bfloat16', 'float16'])}"
        )
    return found


def find_place(
    device: torch.device | str | None, dtype: torch.dtype | str | None
) -> tuple[torch.device, torch.dtype | str]:
    """Where a model goes, and in which dtype: float32 on a CPU if None, else 'auto', the
    checkpoint's own."""
    device = find_device(device)
    return device, find_dtype(dtype) or (torch.float32 if device.type == "cpu" else "auto")


def locate(name: str) -> tuple[str, dict]:
    """Where the files are: folder or Hub id, and options for from_pretrained."""
    name = str(Path(name).expanduser()) if name.startswith("~") else name
    if name == "opt-mini":
        return str(OPT_MINI), LOCAL
    if name == "smollm2-135m":
        return str(smollm2_folder()), LOCAL
    if Path(name).is_dir():
        return name, LOCAL
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise SparselabError(
            f"unknown model {name!r}: no folder of this name.{did_you_mean(name, EMBEDDED)} "
            "Other models go by their Hub id, owner/name, such as facebook/opt-125m."
        )
    return name, {**LOCAL, "local_files_only": not online()}


def read_config(name: str | Path, folder: str | Path, options: dict) -> PretrainedConfig:
    """config.json of a folder or Hub id, of a family that can be pruned."""
    if has_adapter(folder) and not (Path(folder) / CONFIG_NAME).exists():
        raise SparselabError(
            f"{name} is an adapter without its model. Merge the two (merge_and_unload of peft), and"
            " save the result."
        )
    with naming_load_errors(name):
        config = AutoConfig.from_pretrained(folder, **options)
    if getattr(config, "quantization_config", None):
        raise SparselabError(
            f"{name} is quantised (quantization_config in its config.json), and only plain numbers"
            " can be pruned. Choose the copy of the model that is not quantised."
        )
    _refuse_other_families(config, name)
    return config


def _refuse_other_families(config: PretrainedConfig, name: str | Path) -> None:
    """Build the model without memory and look at its structure, before any weight is read or
    downloaded."""
    try:
        with torch.device("meta"), quiet():
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        if type(config) in AutoModelForCausalLM._model_mapping:
            raise SparselabError(
                f"{name}: transformers cannot build the model that its config.json describes"
                f" ({_first_line(error)}). Correct config.json, or download it again."
            ) from error
        raise SparselabError(
            f"{name}: transformers knows no causal language model of type {config.model_type!r} "
            "without remote code. Choose a model of the OPT or LLaMA family."
        ) from error
    skeleton.sparselab_name = str(name)
    family_of(skeleton)


def _causes(error: BaseException | None) -> list[str]:
    names = []
    while error:
        names.append(type(error).__name__)
        error = error.__cause__ or error.__context__
    return names


def friendly_error(name: str | Path, error: Exception) -> SparselabError:
    """One sentence in place of the libraries' chain of exceptions."""
    causes = _causes(error)
    if isinstance(error, SparselabError):
        return error
    if "GatedRepoError" in causes:
        return SparselabError(
            f"{name} is gated: accept its licence on its page on huggingface.co, then log in with "
            "`hf auth login`."
        )
    if "RepositoryNotFoundError" in causes:
        return SparselabError(
            f"there is no model {name} on the Hub (or it is private). Check the spelling, or log in"
            " with `hf auth login`."
        )
    if {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectionError"} & set(
        causes
    ):
        return SparselabError(
            f"{name} is not on this machine and the Hub cannot be reached. Connect to the network, "
            f"pass a local folder, or use one of {', '.join(EMBEDDED)}."
        )
    if is_out_of_memory(error) or {"OutOfMemoryError", "MemoryError"} & {*causes}:
        return SparselabError(
            f"not enough memory to load {name}. Try dtype=torch.bfloat16, a smaller model, or"
            " its name for sl.prune and sl.perplexity, which read it block by block."
        )
    if "ignore_mismatched_sizes" in str(error):
        return SparselabError(
            f"{name}: weights in its files have other shapes than its config.json says. They do not"
            " belong together: download both again."
        )
    if isinstance(error, OSError) and error.errno and error.filename:
        return SparselabError(
            f"{name}: {error.filename} cannot be read: {error.strerror}. Mend that, or choose"
            " another copy."
        )
    if "trust_remote_code" in str(error):
        return SparselabError(
            f"{name} brings code of its own, which is not run here. Choose a model of the OPT or"
            " LLaMA family that transformers knows, or convert it with its own code first."
        )
    if "safetensors" in str(error):
        return SparselabError(f"{name} holds no safetensors file {PICKLED}")
    return SparselabError(
        f"{name} could not be loaded: {_first_line(error)} "
        "Check that the folder holds config.json, *.safetensors and the tokenizer's files."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
