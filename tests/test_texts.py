"""Texts by the papers' protocol, and sentences for what is missing or too short."""

import json
import math
import random

import pytest
import torch
from transformers import AutoTokenizer, GPT2TokenizerFast

import sparselab as sl
from sparselab import SparselabError
from sparselab.data import calibration, corpora, demo_corpus
from sparselab.models import embedded
from sparselab.runtime import files


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded.OPT_MINI, model_max_length=10**9)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A SPARSELAB_DATA folder with small texts of our own."""
    (tmp_path / "wikitext2-raw-test.txt").write_text("One sentence.\n\nAnother one. " * 30)
    (tmp_path / "wikitext2-raw-train.txt").write_text("The ship went out to sea. " * 50)
    (tmp_path / "ptb-test.txt").write_text(" the cat sat \n on the mat \n")
    (tmp_path / "ptb-valid.txt").write_text("a dog ran\n" * 40)
    lengths = (5, 80, 3, 200, 60)
    (tmp_path / "c4-demo.jsonl").write_text(
        "".join(json.dumps({"text": f"word{i} " * n}) + "\n" for i, n in enumerate(lengths))
    )
    monkeypatch.setenv("SPARSELAB_DATA", str(tmp_path))
    return tmp_path


def test_evaluation_text_is_one_string(tokenizer, folder):
    assert sl.tokens(tokenizer, "ptb").tolist() == tokenizer("the cat sat on the mat").input_ids
    text = (folder / "wikitext2-raw-test.txt").read_text()
    assert sl.tokens(tokenizer, "wikitext2").tolist() == tokenizer(text).input_ids
    assert sl.tokens(tokenizer, folder / "ptb-valid.txt").dtype == torch.long


def test_c4_is_cut_to_the_papers_length(tokenizer, folder):
    (folder / "c4-validation.jsonl").write_text(json.dumps({"text": "a b c d " * 200_000}) + "\n")
    assert len(sl.tokens(tokenizer, "c4")) == 256 * 2048


@pytest.mark.parametrize("count, seqlen", [(1, 16), (3, 16), (7, 5), (20, 5)])
def test_windows_to_evaluate_on_come_from_all_over_the_text(tokenizer, folder, count, seqlen):
    (folder / "long.txt").write_text("a b c d " * 25)
    ids = sl.tokens(tokenizer, folder / "long.txt")
    whole = [*ids.split(seqlen)][: len(ids) // seqlen]
    taken = sl.tokens(tokenizer, folder / "long.txt", windows=count, seqlen=seqlen)
    assert taken.shape == (count * seqlen,)
    # The middle of each of `count` equal shares, written out.
    middles = [math.floor((share + 0.5) * len(whole) / count) for share in range(count)]
    assert torch.equal(taken, torch.cat([whole[place] for place in middles]))
    assert len({*middles}) == count and max(middles) < len(whole)


def test_all_windows_are_the_text_without_its_rest(tokenizer, folder):
    (folder / "long.txt").write_text("a b c d " * 25)
    ids = sl.tokens(tokenizer, folder / "long.txt")
    every = sl.tokens(tokenizer, folder / "long.txt", windows=len(ids) // 7, seqlen=7)
    assert torch.equal(every, ids[: len(ids) // 7 * 7])


@pytest.mark.parametrize(
    "count, seqlen, words",
    [
        (99, 16, "windows=99 of 16 tokens.*Ask for 1 to"),
        (0, 16, "windows=0"),
        (-3, 16, "windows=-3"),
        (1, 4096, "less than a window of seqlen=4096"),
        (1, 0, "seqlen from 1"),
        (1, -2, "seqlen from 1"),
    ],
)
def test_windows_that_are_not_there_are_a_sentence(tokenizer, folder, count, seqlen, words):
    (folder / "long.txt").write_text("a b c d " * 25)
    with pytest.raises(SparselabError, match=words):
        sl.tokens(tokenizer, folder / "long.txt", windows=count, seqlen=seqlen)


def test_calibration_windows_are_the_papers_draws(tokenizer, folder):
    """The published draw, spelled out with the random module."""
    rows = [
        json.loads(line)["text"] for line in (folder / "c4-demo.jsonl").read_text().splitlines()
    ]
    random.seed(3)
    expected = []
    for _ in range(5):
        while True:
            ids = tokenizer(rows[random.randint(0, len(rows) - 1)]).input_ids
            if len(ids) > 64:
                break
        start = random.randint(0, len(ids) - 64 - 1)
        expected.append(ids[start : start + 64])
    assert sl.calibration(tokenizer, "c4", samples=5, seqlen=64, seed=3).tolist() == expected


@pytest.mark.parametrize("corpus", ["wikitext2", "ptb", "c4"])
def test_calibration_has_its_shape_and_follows_the_seed(tokenizer, folder, corpus):
    windows = sl.calibration(tokenizer, corpus, samples=7, seqlen=32, seed=1)
    assert windows.shape == (7, 32) and windows.dtype == torch.long
    assert torch.equal(windows, sl.calibration(tokenizer, corpus, samples=7, seqlen=32, seed=1))
    assert not torch.equal(windows, sl.calibration(tokenizer, corpus, samples=7, seqlen=32, seed=2))


def test_calibration_leaves_the_global_generator_alone(tokenizer, folder):
    random.seed(0)
    expected = random.random()
    random.seed(0)
    sl.calibration(tokenizer, "ptb", samples=2, seqlen=16)
    assert random.random() == expected


@pytest.mark.parametrize("corpus", ["wikitext2", "ptb", "c4"])
def test_too_short_a_text_is_a_sentence(tokenizer, folder, corpus):
    with pytest.raises(SparselabError, match="too short for a window of seqlen=2048"):
        sl.calibration(tokenizer, corpus, samples=1)


def test_an_empty_text_is_a_sentence(tokenizer, folder):
    (folder / "empty.txt").write_text("")
    with pytest.raises(SparselabError, match="too short"):
        sl.calibration(tokenizer, folder / "empty.txt", samples=1, seqlen=16)
    with pytest.raises(SparselabError, match="samples=0"):
        sl.calibration(tokenizer, "ptb", samples=0, seqlen=16)


def test_strange_line_separators_do_not_break_documents(tokenizer, folder):
    """U+2028 and U+0085 may stand inside a JSON string; blank lines are no documents."""
    rows = ["one\u2028two", "three\x85four", "five"]
    lines = [json.dumps({"text": row}, ensure_ascii=False) for row in rows]
    (folder / "c4-train.jsonl").write_text("\n\n".join(lines) + "\n", encoding="utf8")
    assert corpora.rows_of("c4", "calibration") == rows


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("c4-train.jsonl", b'{"text": "a"}\n{"tex', "line 2, is not a JSON"),
        ("c4-train.jsonl", b'{"a": 1}', "line 1, is not"),
        ("c4-train.jsonl", b'["\xe9"]', "UTF-8"),
        ("c4-train.jsonl", b"", "too short"),
        ("wikitext2-raw-train.txt", b"\xe9", "UTF-8"),
        ("a.txt", b"caf\xe9", "UTF-8"),
        ("a.txt.xz", b"not xz", "could not be read"),
    ],
)
def test_a_broken_file_is_a_sentence(tokenizer, folder, name, content, words):
    (folder / name).write_bytes(content)
    corpus = {"c4": "c4", "wi": "wikitext2"}.get(name[:2], folder / name)
    with pytest.raises(SparselabError, match=words):
        sl.calibration(tokenizer, corpus, samples=1, seqlen=16)


def test_unknown_and_absent_texts_get_a_sentence(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSELAB_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SparselabError, match="Did you mean 'wikitext2'"):
        sl.tokens(tokenizer, "wikitext")
    with pytest.raises(SparselabError, match=r"Set SPARSELAB_DATA.*wikitext2-raw-test.txt"):
        sl.tokens(tokenizer, "wikitext2")
    monkeypatch.setenv("SPARSELAB_CACHE", str(tmp_path))
    with pytest.raises(SparselabError, match="make setup"):
        sl.tokens(tokenizer, "demo")


def test_the_hub_is_asked_in_forms_that_datasets_5_loads(tokenizer, monkeypatch, tmp_path):
    """No script, no configuration that is gone; the rows are joined by the papers' rules."""
    asked = []

    def load_dataset(path, **options):
        asked.append((path, options))
        return {"text": ["one", "two"], "sentence": ["three", "four"]}

    monkeypatch.setenv("SPARSELAB_DATA", str(tmp_path))
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(corpora, "online", lambda: True)
    for corpus, text in (("wikitext2", "one\n\ntwo"), ("ptb", "three four"), ("c4", "one two")):
        assert sl.tokens(tokenizer, corpus).tolist() == tokenizer(text).input_ids
    assert [path for path, _ in asked] == ["Salesforce/wikitext", "parquet", "allenai/c4"]
    assert asked[0][1] == {"name": "wikitext-2-raw-v1", "split": "test"}
    assert asked[2][1]["data_files"] == {"rows": "en/c4-validation.00000-of-00008.json.gz"}
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(
        SparselabError, match=r"could not be read from the Hub \(ZeroDivisionError\)"
    ):
        sl.tokens(tokenizer, "ptb")


def test_the_demo_texts_are_the_expected_ones(tokenizer):
    demo = files.cache("demo")
    assert demo_corpus.fetch_demo() == demo  # checks sha256; downloads only what is not there
    assert len(corpora._read(demo / "c4_demo.jsonl")) == 300
    assert len(corpora._read(demo / "wiki_demo.txt")) == 30
    assert len(sl.tokens(tokenizer, "demo")) > 100_000


def test_a_changed_download_is_refused(tmp_path):
    with pytest.raises(SparselabError, match="sha256 differs"):
        demo_corpus._store(
            b"something else", tmp_path / "wiki_demo.txt", demo_corpus.DEMO_FILES["wiki_demo.txt"]
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.needs_data
def test_the_papers_token_and_window_counts(shared_data, monkeypatch):
    """OPT's tokenizer puts </s> before the text: 287,645 tokens of WikiText-2, the number that the
    papers' perplexities rest on; the remainder of the last window is dropped."""
    monkeypatch.setenv("SPARSELAB_DATA", str(shared_data))
    opt = GPT2TokenizerFast(
        vocab=str(shared_data / "opt-vocab.json"),
        merges=str(shared_data / "opt-merges.txt"),
        bos_token="</s>",
        eos_token="</s>",
        add_bos_token=True,
    )
    counts = {corpus: len(sl.tokens(opt, corpus)) for corpus in ("wikitext2", "ptb")}
    assert counts == {"wikitext2": 287_645, "ptb": 97_722}
    assert {corpus: count // 2048 for corpus, count in counts.items()} == {
        "wikitext2": 140,
        "ptb": 47,
    }
    assert sl.tokens(opt, "wikitext2")[0] == opt.bos_token_id == 2
    assert calibration.C4_EVALUATION_TOKENS // 2048 == 256
