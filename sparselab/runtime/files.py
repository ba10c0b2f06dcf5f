"""Where sparselab's own files are, and where it puts what it fetches or makes: one rule for a
checkout and for a wheel.

What ships lies under ROOT, by its path in the repository (`ROOT / "data" / "opt-mini"`). ROOT is
the checkout itself, or, where a wheel was installed, the package's folder `_data`, into which
`setup.py` copies what the wheel needs. Nothing is ever written there from a wheel: that goes to
`cache` and `figure_tables`.
"""

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_dir
from safetensors import SafetensorError

from ..errors import SparselabError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

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
        with waiting_lock(file.parent):
            if not file.exists():  # another process may have been first
                write_whole(file, recorded.read_bytes())


def sha256(file: Path) -> str:
    """Of a file's bytes; empty where there is none."""
    if not file.exists():
        return ""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_json(file: str | Path, content: dict) -> None:
    """Write a file that is whole or not there at all."""
    write_whole(Path(file), json.dumps(content, indent=1).encode("utf8"))


def write_whole(file: Path, content: bytes) -> None:
    """Write a file, or replace one: at every moment it is the old or the new one, on disk."""
    part = file.with_name(file.name + ".unfinished")
    try:
        with open(part, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def make_durable(file: Path) -> None:
    """Wait until a file is on disk, and let others read it as the umask says: safetensors writes
    it for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())


def system_error(error: BaseException) -> OSError | None:
    """The system's error in an exception: itself, or the one that the words of safetensors or torch
    carry."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\((os error )?(\d+)\)$", str(error).strip())
    if number and (number[1] or os.strerror(int(number[2])) in str(error)):
        return OSError(int(number[2]), os.strerror(int(number[2])))
    return None


@contextmanager
def naming_file_errors(what: str, advice: str):
    """Run the body; where the system refuses to read or write, raise one sentence.

    Parameters
    ----------
    what : str
        The subject of the sentence, such as "the result cannot be written to /data/out".
    advice : str
        What to do. A full disk and a file that is too large have an advice of their own before it.

    Raises
    ------
    SparselabError
        In place of an `OSError`, of safetensors' error about one, or of a path that no system
        takes (a NUL in it).
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        found = system_error(error)
        if found and found.errno == errno.ENOMEM:
            raise  # not the disk's memory
        if found is None and "null byte" not in str(error):
            raise
        reason = found.strerror or str(found) if found else "its name holds a NUL character"
        if found and found.errno in (errno.ENOSPC, errno.EDQUOT):
            reason, advice = "the disk is full", f"Free some disk space. {advice}"
        if found and found.errno == errno.EFBIG:
            advice = f"Raise the limit of a file's size (ulimit -f). {advice}"
        raise SparselabError(f"{what}: {reason}. {advice}") from error


def check_room(folder: Path, needed: int, what: str) -> None:
    """A SparselabError where the disk of a folder, or of the first parent that is there, has less
    than `needed` bytes free."""
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if free < 1.05 * needed + 2**20:
        raise SparselabError(
            f"{what} needs {needed / 2**20:.0f} MiB, but {there} has {free / 2**20:.0f} MiB free."
            " Free some disk space or choose another folder."
        )


def lock_folder(folder: Path) -> int | None:
    """Hold a folder, made where it is missing, for this process alone, until `os.close` of the
    result or the end of the process, however it ends; None where another process holds it.

    The lock is on the folder itself and leaves no file. Windows has no such lock: there nobody
    is kept out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        return os.open(os.devnull, os.O_RDONLY)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(folder)):
            return handle
    except (BlockingIOError, FileNotFoundError):  # held, or finished and renamed meanwhile
        pass
    os.close(handle)
    return None


@contextmanager
def waiting_lock(folder: Path):
    """Run the body while no other process runs such a body for the folder. Windows has no such
    lock."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def put_in_place(part: Path, target: Path, *, replace: bool) -> None:
    """Give a finished folder its name. At every moment `target` is the old or the new one; where
    the system cannot exchange two names, the old one is for a moment `aside_of(target)`.

    Parameters
    ----------
    part : Path
        The finished folder. With `replace` the old one has this name afterwards, if there was one.
    target : Path
        The name that it gets.
    replace : bool
        Exchange it with what has that name; else a `SparselabError` where there is something.
    """
    flags = RENAME_EXCHANGE if replace and os.path.lexists(target) else RENAME_NOREPLACE
    if _renameat2(part, target, flags):
        return
    if flags == RENAME_NOREPLACE:  # the system has no such call: the check and the renaming are two
        if os.path.lexists(target):
            raise SparselabError(
                f"{target} appeared meanwhile and is left alone. Move it away and repeat the call."
            )
        part.rename(target)
        return
    aside = aside_of(target)
    target.rename(aside)
    try:
        part.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    aside.rename(part)


def aside_of(target: Path) -> Path:
    """Where a folder waits that is being replaced."""
    return target.with_name(f".{target.name}.old")


RENAME_NOREPLACE, RENAME_EXCHANGE, AT_FDCWD = 1, 2, -100  # of Linux's renameat2


def _renameat2(old: Path, new: Path, flags: int) -> bool:
    """Linux's renaming that never replaces, or that exchanges two names; False where the system or
    the file system has none, or where it refuses."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return call(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) == 0
