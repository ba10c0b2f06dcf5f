"""Which safetensors files of a folder are the model's, by the rule of transformers, and what their
headers say."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..errors import SparselabError

INDEX = SAFE_WEIGHTS_INDEX_NAME
PICKLED = (
    "(pickled weights are not read, for they can run code). Convert it with save_pretrained of"
    " transformers, or choose another copy."
)
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def weight_files(folder: Path, name: str) -> dict[Path, dict[str, str]]:
    """The files that transformers reads: model.safetensors, else those that the index names. Others
    beside them belong to something else.

    Returns
    -------
    dict
        By file, the kind of numbers of each of its tensors, such as 'BF16'.

    Raises
    ------
    SparselabError
        Where there are none; where one is missing, outside the folder, or broken; where the index
        and the files disagree; where weights are stored in a form that must be decoded first.
    """
    if (folder / SAFE_WEIGHTS_NAME).exists():
        file = folder / SAFE_WEIGHTS_NAME
        files = {file: _header(file, name)}
    elif (folder / INDEX).exists():
        files = _indexed(folder, name)
    else:
        raise SparselabError(
            f"{name} holds no safetensors file of the name {SAFE_WEIGHTS_NAME}, nor {INDEX}"
            f" {PICKLED}"
        )
    for kinds in files.values():
        _refuse_encoded(kinds, name)
    return files


def _indexed(folder: Path, name: str) -> dict[Path, dict[str, str]]:
    """The files of the index, and each holds what the index says."""
    try:
        claimed = json.loads((folder / INDEX).read_text(encoding="utf8"))["weight_map"]
        paths = {file: folder / file for file in sorted({*claimed.values()})}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SparselabError(
            f"{name}: {INDEX} is broken ({error!r}). Download it again."
        ) from error
    for file, path in paths.items():
        if path.parent != folder:
            raise SparselabError(
                f"{name}: {INDEX} names {file}, which is not in the folder itself. Its weights are"
                " not read."
            )
    missing = [file for file, path in paths.items() if not path.exists()]
    if missing:
        raise SparselabError(
            f"{name}: {INDEX} names {', '.join(missing)}, and there is no such file: a shard is"
            " missing. Download the model again."
        )
    headers = {path: _header(path, name) for path in paths.values()}
    for key, file in claimed.items():
        if key not in headers[paths[file]]:
            raise SparselabError(
                f"{name}: {INDEX} says that {key} is in {file}, and it is not. Download the model"
                " again."
            )
    return headers


def _refuse_encoded(kinds: dict[str, str], name: str) -> None:
    """Weights of 8 bits or fewer are codes: without their scales they are other numbers."""
    for key, kind in kinds.items():
        if key.endswith("weight") and kind not in FLOATS:
            raise SparselabError(
                f"{name}: {key} is stored as {kind}, that is quantised, and only plain numbers can"
                " be pruned. Choose the copy of the model that is not quantised."
            )


def _header(file: Path, name: str) -> dict[str, str]:
    """The kind of numbers of each tensor in a safetensors file."""
    try:
        with safe_open(file, "pt") as opened:
            return {key: opened.get_slice(key).get_dtype() for key in opened.keys()}
    except PermissionError as error:
        raise SparselabError(
            f"{name}: {file.name} cannot be read: {error.strerror}. Change its permissions."
        ) from error
    except (SafetensorError, OSError) as error:
        raise SparselabError(
            f"{name}: {file.name} is broken ({error}). Download it again."
        ) from error


def tensors_in(file: Path) -> list[str]:
    """The names of the tensors in a safetensors file."""
    with safe_open(file, "pt") as opened:
        return list(opened.keys())
