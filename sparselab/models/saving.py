"""A pruned model as a folder that transformers loads."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import SparselabError
from ..runtime.files import is_disk_full
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
    if folder.exists() and not overwrite:
        raise SparselabError(
            f"{folder} exists already. Choose another folder, or pass overwrite=True to replace it."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    free = shutil.disk_usage(folder.parent).free
    if free < needed * 1.05 + 2**20:
        raise SparselabError(
            f"saving {model_name(model)} needs {needed / 2**20:.0f} MiB, but {folder.parent} has "
            f"{free / 2**20:.0f} MiB free. Free some disk space or choose another folder."
        )
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=folder.parent))
    try:
        part.chmod(0o755)
        _write(model, report, part, tokenizer or tokenizer_of(model), packed)
        _swap(part, folder)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise SparselabError(
            f"the disk of {folder.parent} became full while saving; nothing was left there. Free"
            " some disk space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _write(model, report: Savable, folder: Path, tokenizer, packed: bool) -> None:
    try:
        with quiet():
            if packed:
                model.config.save_pretrained(folder)
                model.generation_config.save_pretrained(folder)
                write_packed(model, folder)
            else:
                model.save_pretrained(folder)
    except Exception as error:  # safetensors wraps the system's error in one of its own
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, str(error)) from error
        raise
    if tokenizer is not None:
        write_tokenizer(tokenizer, folder)
    report.save(folder / REPORT_FILE)


def _swap(part: Path, folder: Path) -> None:
    """Put the finished folder in its place; an older one goes only when the new one stands."""
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    if old.is_file() or old.is_symlink():  # what a link points to stays
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)
