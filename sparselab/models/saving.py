"""A pruned model as a folder that transformers loads."""

import glob
import os
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from ..errors import SparselabError
from ..runtime.files import (
    aside_of,
    check_room,
    lock_folder,
    make_durable,
    naming_file_errors,
    put_in_place,
)
from ..runtime.memory import naming_memory_errors
from .architecture import model_name
from .hub import quiet
from .loading import tokenizer_of, write_tokenizer
from .packed import write_packed

REPORT_FILE = "sparselab-report.json"


class Savable(Protocol):
    """What a run says of itself, `sl.Report`; models only know that it writes a file."""

    def save(self, file: Path) -> None:
        """Write it as JSON."""


def save(
    model: nn.Module,
    report: Savable,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
    packed: bool = False,
) -> Path:
    """Write the pruned model, its tokenizer and the report into a folder that transformers and
    `load` read.

    Everything goes to a folder beside the target first and is renamed at the end: an interrupted or
    failed save leaves nothing half-written.

    Parameters
    ----------
    model : nn.Module
        What `sl.prune` pruned.
    report : Report
        What it returned.
    folder : str or Path
        Where to; it must not exist yet, unless `overwrite`.
    tokenizer : PreTrainedTokenizerBase, optional
        Default: the one that `load` gave out with the model.
    overwrite : bool
        Replace a folder that is there.
    packed : bool
        Store only the kept weights and a bit mask: smaller from 6.25 % zeros on (16 bits). `load`
        reads it, transformers does not.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    SparselabError
        Where the folder exists, or the disk is too small, before anything is written.
    """
    folder = Path(folder).expanduser().absolute()
    advice = "Nothing was left there; choose another folder."
    with (
        naming_memory_errors(f"save {model_name(model)}", "Free some memory and repeat the call."),
        naming_file_errors(f"{model_name(model)} cannot be saved in {folder}", advice),
    ):
        _remove_leftovers(folder)
        before = _listing(folder)
        if before is not None and not overwrite:
            raise SparselabError(
                f"{folder} exists already. Choose another folder, or pass overwrite=True to replace"
                " it."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        check_room_for(model, folder.parent)
        part, handle = _locked_part(folder)
        try:
            part.chmod(0o755)
            _write_weights(model, part, packed)
            write_beside_weights(model, report, part, tokenizer or tokenizer_of(model))
            for file in part.glob("*.safetensors"):
                make_durable(file)
            if _listing(folder) != before:
                raise SparselabError(
                    f"{folder} changed while the model was being written: nothing was replaced."
                    " Choose another folder."
                )
            put_in_place(part, folder, replace=before is not None)
        finally:
            _remove(part)  # what is left of a failed save, or the folder that was replaced
            os.close(handle)
    return folder


def check_room_for(model: nn.Module, folder: Path) -> None:
    """A SparselabError where a model's weights do not fit on the disk of a folder."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    check_room(folder, size, f"saving {model_name(model)}")


def write_beside_weights(
    model: PreTrainedModel, report: Savable, folder: Path, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """All of a model's folder but its weights, which are stored in three ways: config.json,
    the settings of generation, the tokenizer's files, the report."""
    with quiet():
        model.config.save_pretrained(folder)
        # Not save_pretrained: it refuses settings that older models have, such as a temperature
        # where nothing is drawn.
        model.generation_config.to_json_file(folder / GENERATION_CONFIG_NAME)
        if tokenizer is not None:
            write_tokenizer(tokenizer, folder)
    report.save(folder / REPORT_FILE)


def _write_weights(model: PreTrainedModel, folder: Path, packed: bool) -> None:
    if packed:
        write_packed(model, folder)
        return
    settings, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with quiet():
            model.save_pretrained(folder)
    finally:
        model.generation_config = settings


def _locked_part(folder: Path) -> tuple[Path, int]:
    """A new folder beside the target, and its lock: another save to the same target, which cleans
    up, may come between the two."""
    while True:
        part = Path(tempfile.mkdtemp(prefix=_part_prefix(folder), dir=folder.parent))
        handle = lock_folder(part)
        if handle is not None:
            return part, handle


def _part_prefix(folder: Path) -> str:
    return f".{folder.name}.part-"


def _remove_leftovers(folder: Path) -> None:
    """Of saves to this folder that were killed; those that go on hold a lock. An old folder that
    one of them had put aside gets its name back."""
    aside = aside_of(folder)
    if os.path.lexists(aside):
        if os.path.lexists(folder):
            _remove(aside)
        else:
            aside.rename(folder)
    for part in folder.parent.glob(glob.escape(_part_prefix(folder)) + "*"):
        handle = lock_folder(part) if part.is_dir() else None
        if handle is not None:
            _remove(part)
            os.close(handle)


def _listing(folder: Path) -> list[str] | None:
    """What a folder holds; None where there is nothing of that name."""
    if not os.path.lexists(folder):
        return None
    if not folder.is_dir() or folder.is_symlink():
        return []
    return sorted(os.listdir(folder))


def _remove(path: Path) -> None:
    """A folder with all that is in it, or a file, or a link; what a link points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
