"""The books of the README's tables, made anew: from a fake server, since no text is shipped and
none is fetched here."""

import hashlib
import lzma

import pytest

from sparselab import SparselabError
from sparselab.data import books

TEXT = (
    b"*** START OF THE BOOK ***\n\n"
    + b"It was a day like any other, and nobody in the house had slept. " * 4
    + b"\n\n[Illustration]\n\nThe end came soon, and it came quietly.\n\n*** END OF THE BOOK"
    b" ***\nlicence"
)


@pytest.fixture
def listed(monkeypatch, tmp_path):
    """Two books, one for each file."""
    monkeypatch.setenv("SPARSELAB_CACHE", str(tmp_path / "cache"))
    real = books.books()
    rows = [
        {
            **next(row for row in real if row["file"] == name),
            "sha256": hashlib.sha256(TEXT).hexdigest(),
        }
        for name in books.FILES
    ]
    monkeypatch.setattr(books, "books", lambda: rows)


def test_the_list_names_both_files_and_no_text():
    rows = books.books()
    assert {row["file"] for row in rows} == set(books.FILES) and len(rows) > 100


def test_the_books_are_cleaned_and_joined(listed, tmp_path):
    files = books.write_books(tmp_path / "out", fetch=lambda address: TEXT, progress=False)
    assert [file.name for file in files] == list(books.FILES.values())
    text = lzma.open(files[0], "rt").read()
    assert "It was a day" in text and "The end came soon" in text
    assert "Illustration" not in text and "licence" not in text


@pytest.mark.parametrize("fetch", ["other bytes", "no network"])
def test_what_is_wrong_is_a_sentence_and_nothing_half_written_stays(listed, tmp_path, fetch):
    def bad(address):
        if fetch == "no network":
            raise OSError("no route to host")
        return b"other"

    with pytest.raises(SparselabError):
        books.write_books(tmp_path / "out", fetch=bad, progress=False)
    assert not list((tmp_path / "out").glob("*"))
