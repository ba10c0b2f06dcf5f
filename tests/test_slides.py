"""A deck for each lesson, from its own pictures."""

import re

import nbformat
import pytest

from tools import lessons, slides

LESSONS = lessons()


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_deck(lesson):
    deck = slides.deck(nbformat.read(lesson, as_version=4))
    assert 3 <= len(deck) <= slides.MOST and deck[0]["text"].startswith("- ")
    assert all(slide["alt"] for slide in deck if slide["picture"])
    assert any(slide["picture"] for slide in deck)
    titles = [slide["title"] for slide in deck]
    assert len({*titles}) == len(titles)


def test_the_decks_need_no_network(tmp_path):
    slides.main(["--out", str(tmp_path / "slides")])
    for lesson in LESSONS:
        page = (tmp_path / "slides" / f"{lesson.stem}.html").read_text(encoding="utf8")
        for tag in re.findall(r"<(?:script|img|link)\b[^>]*>", page):
            source = re.search(r'(?:src|href)="([^"]*)"', tag)
            assert not source or not source[1].startswith(("http", "//")), tag
            if source and tag.startswith("<img"):
                assert (tmp_path / "slides" / source[1]).exists()
        assert page.count("<section") >= 3
