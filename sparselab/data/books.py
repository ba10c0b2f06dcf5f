"""The books that opt-mini has read, and those held out: made anew from where ours came from, for
`make tables`.

No text is shipped. data/books.csv lists each book: title, author, its number at Project Gutenberg
where the list has one, the file that it belongs to, and the public repository, commit and path of
its source with the sha256 of its bytes.
"""

import csv
import hashlib
import http.client
import itertools
import lzma
import re
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

from tqdm.auto import tqdm

from ..errors import SparselabError
from ..runtime.files import ROOT, cache, made, write_whole

BOOKS = ROOT / "data" / "books.csv"
ADDRESS = (  # the paths in the list are quoted for addresses
    "https://raw.githubusercontent.com/{repository}/{commit}/{path}"
)
FILES = {"train": "books-train.txt.xz", "heldout": "books-heldout.txt.xz"}
# What of a source is not the book: what stands around it, notes of pictures and footnotes, marks of
# emphasis.
BEFORE = re.compile(r"^\*{3} ?START OF.*$", re.M)
AFTER = re.compile(r"^(\*{3} ?END OF|End of .*Project Gutenberg).*", re.M)
NOTE = re.compile(r"\[(Illustration|\d)[^\]]*\]")
DOTS, DASHES = re.compile(r"\.{4,}"), re.compile(r"-{3,}")
# Quotation marks and dashes in ASCII; the marks of emphasis and of the byte order go.
PLAIN = str.maketrans("“”‘’–", "\"\"''-", "_*\ufeff") | str.maketrans({"—": "--", "…": "..."})
SENTENCE = re.compile(r"""[.!?;:,]["')\]]*$|--["']*$""")
FIRST, SHORTEST = 180, 15  # characters of the paragraph that a book begins with, and of any other


def books() -> list[dict[str, str]]:
    """The list, in the order in which the books are joined."""
    with open(BOOKS, encoding="utf8", newline="") as opened:
        return list(csv.DictReader(opened))


def download(address: str) -> bytes:
    """What is at an address; an OSError where it cannot be had whole."""
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.read()
    except http.client.HTTPException as error:  # an answer that breaks off
        raise OSError(f"{type(error).__name__}: {error}") from error


def write_books(
    out: str | Path, *, fetch: Callable[[str], bytes] = download, progress: bool = True
) -> list[Path]:
    """Write books-train.txt.xz and books-heldout.txt.xz, 79 and 1.7 MB of text.

    They hold the same books as ours, in the same order, from the same source files (checked by
    sha256), cleaned by the rules of `clean`; they are not ours byte for byte. What is downloaded
    waits in the cache until both files are there, so that an interrupted run goes on.

    Parameters
    ----------
    out : str or Path
        The folder.
    fetch : callable
        What gives the bytes at an address.
    progress : bool
        Show a progress bar.

    Returns
    -------
    list of Path
        The two files.

    Raises
    ------
    SparselabError
        Where a book cannot be downloaded or is not the one that was expected, and where the folder
        cannot be written.
    """
    out = made(Path(out).expanduser(), "name another folder")
    sources = made(cache("books"))
    texts: dict[str, list[str]] = {name: [] for name in FILES}
    for book in tqdm(books(), desc="books", unit="book", disable=not progress):
        texts[book["file"]].append(clean(_source(book, sources, fetch)))
    files = [_write(out / FILES[name], parts) for name, parts in texts.items()]
    shutil.rmtree(sources, ignore_errors=True)
    return files


def _source(book: dict[str, str], folder: Path, fetch: Callable[[str], bytes]) -> str:
    """A book's source as text, from the folder or, the first time, from its address."""
    file = folder / f"{book['sha256']}.txt"
    if not file.exists():
        address = ADDRESS.format(**book)
        try:
            content = fetch(address)
        except (OSError, URLError) as error:
            raise SparselabError(
                f"{book['title']!r} could not be downloaded from {address} ({error}). Check the"
                " network and run the same command again: it goes on with this book."
            ) from error
        if hashlib.sha256(content).hexdigest() != book["sha256"]:
            raise SparselabError(
                f"what came from {address} is not the book that was expected, {book['title']!r}"
                " (sha256 differs). Look whether something between here and there answers in its"
                " place."
            )
        write_whole(file, content)
    return file.read_text(encoding="utf8")


def clean(source: str) -> str:
    """A book's prose: a paragraph a line, a blank line after each.

    What Project Gutenberg puts around a book goes, then everything before the first long paragraph
    (title pages, tables of contents), then headings, notes and other paragraphs that are short, in
    capitals or no sentence. Quotation marks and dashes become ASCII.
    """
    text = BEFORE.split(source.replace("\r\n", "\n"))[-1]
    text = text[: match.start()] if (match := AFTER.search(text)) else text
    paragraphs = [_plain(paragraph) for paragraph in re.split(r"\n\s*\n", text)]
    book = [*itertools.dropwhile(_is_front, paragraphs)] or paragraphs
    return "".join(f"{paragraph}\n\n" for paragraph in book if _is_prose(paragraph))


def _plain(paragraph: str) -> str:
    """One line, without marks."""
    text = NOTE.sub("", paragraph.translate(PLAIN))
    return " ".join(DASHES.sub("--", DOTS.sub("...", text)).split())


def _is_front(paragraph: str) -> bool:
    """Of a title page or a table of contents."""
    return len(paragraph) < FIRST or not _is_prose(paragraph)


def _is_prose(paragraph: str) -> bool:
    return (
        len(paragraph) >= SHORTEST
        and not paragraph.isupper()
        and paragraph[0] not in "[#=|"
        and SENTENCE.search(paragraph) is not None
    )


def _write(file: Path, parts: list[str]) -> Path:
    """An xz file that is there whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    try:
        with lzma.open(part, "wt", encoding="utf8", newline="\n") as opened:
            opened.writelines(parts)
        part.replace(file)
    except OSError as error:
        raise SparselabError(
            f"{file} could not be written ({error.strerror}). Make room, or name another folder."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return file
