"""Where sparselab's own files are, and where it puts what it fetches or makes: one rule for a
checkout and for a wheel.

What ships lies under ROOT, by its path in the repository (`ROOT / "data" / "opt-mini"`). ROOT is
the checkout itself, or, where a wheel was installed, the package's folder `_data`, into which
`setup.py` copies what the wheel needs. Nothing is ever written there from a wheel: that goes to
`cache` and `figure_tables`.
"""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

from platformdirs import user_cache_dir

from ..errors import SparselabError

DISTRIBUTION = (  # what pip calls the package; `sparselab` on PyPI is another project
    "sparselab-pruning"
)
PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (PACKAGE / "_data").is_dir()  # from a wheel; a checkout never has this folder
ROOT = PACKAGE / "_data" if INSTALLED else PACKAGE.parent


def cache(name: str) -> Path:
    """The folder `name` for what is fetched or made once; it need not exist yet.

    It lies in the folder that SPARSELAB_CACHE names, else in a checkout's data/cache, else in the
    user's cache folder (on Linux ~/.cache/sparselab).
    """
    chosen = os.environ.get("SPARSELAB_CACHE")
    if chosen:
        return Path(chosen).expanduser() / name
    return (Path(user_cache_dir("sparselab")) if INSTALLED else ROOT / "data" / "cache") / name


def made(
    folder: Path, instead: str = "set SPARSELAB_CACHE to a folder that you may write to"
) -> Path:
    """The folder, made where it is missing and fit to write in; else a SparselabError that says
    what to do instead."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SparselabError(
            f"the folder {folder} cannot be made ({error.strerror}): {instead}."
        ) from error
    if not os.access(folder, os.W_OK):
        raise SparselabError(f"the folder {folder} cannot be written to: {instead}.")
    return folder


def of_checkout(name: str, what: str) -> Path:
    """A file or folder of the repository that no wheel has; a SparselabError that says what needs
    it where it is absent."""
    path = PACKAGE.parent / name
    if INSTALLED or not path.exists():
        raise SparselabError(
            f"{what} needs {name} of a checkout of the repository, and this sparselab is not"
            " installed from one. Clone the repository, and call `pip install -e .` in it."
        )
    return path


def figure_tables() -> Path:
    """Where the figures' tables are kept unless told otherwise: bench/figures of a checkout; from a
    wheel the folder sparselab-figures where one works."""
    return Path("sparselab-figures") if INSTALLED else ROOT / "bench" / "figures"


def start_table(file: Path) -> None:
    """Begin one of `figure_tables` with the rows that were recorded for it and ship with the
    package, if it is not there."""
    recorded = ROOT / "bench" / "figures" / file.name
    if recorded.exists() and not file.exists():
        made(file.parent, "name another folder for the tables")
        part = file.with_name(f"{file.name}.part-{os.getpid()}")
        shutil.copyfile(recorded, part)  # the modes of site-packages may forbid writing: not copied
        part.replace(file)


def sha256(file: Path) -> str:
    """Of a file's bytes; empty where there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""


def write_json(file: str | Path, content: dict) -> None:
    """Write a file that is whole or not there at all."""
    file = Path(file)
    part = file.with_name(file.name + ".unfinished")
    part.write_text(json.dumps(content, indent=1))
    part.replace(file)


def is_disk_full(error: Exception) -> bool:
    """The system's error, or safetensors' own with the system's words in it."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(
        error
    )
