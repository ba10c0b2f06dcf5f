"""What a lesson claims: an error where notebooks are tested, a sentence for a reader who changed
something."""

import pytest

from sparselab import course


def test_a_false_claim_fails_the_cell(monkeypatch):
    monkeypatch.setenv("SPARSELAB_STATIC", "1")
    monkeypatch.delenv("SPARSELAB_MODEL", raising=False)
    course.claim(2 > 1, "two is more than one")
    with pytest.raises(AssertionError, match="one is more than two"):
        course.claim(1 > 2, "one is more than two")


@pytest.mark.parametrize(
    "name, value", [("SPARSELAB_STATIC", "0"), ("SPARSELAB_MODEL", "facebook/opt-125m")]
)
def test_a_reader_with_another_model_or_setting_reads_on(monkeypatch, capsys, name, value):
    monkeypatch.setenv("SPARSELAB_STATIC", "1")
    monkeypatch.setenv(name, value)
    course.claim(False, "Wanda wins")
    assert "does not hold: Wanda wins" in capsys.readouterr().out
