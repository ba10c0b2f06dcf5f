"""Reports round-trip, and saving leaves nothing half-written."""

import errno
import json
from collections import namedtuple

import pytest
import torch
from conftest import tiny_opt
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import sparselab as sl
from sparselab import Report, SparselabError
from sparselab.models import saving as module


@pytest.fixture
def pruned(windows):
    """A tiny pruned OPT and its report."""
    model = tiny_opt()
    return model, sl.prune(
        model, windows, method=sl.SparseGPT(damp=0.1), sparsity="3:4", progress=False
    )


def test_the_report_says_everything(pruned):
    _, report = pruned
    text = str(report)
    for words in (
        "3:4 = 75 % zeros",
        "sparsegpt(block=128, damp=0.1)",
        "6 x 32 tokens",
        "12 matrices in 2 of 2 blocks",
        "75.00% zeros",
        "float32, cpu",
        "error before",
        "error after",
        "damp",
        "tries",
        "seconds",
        "peak",
        "0.self_attn.q_proj",
        "1.fc2",
        "peak memory",
        "dense perplexity on 1 calibration windows",
    ):
        assert words in text, words
    assert "<table" in report._repr_html_() and report._repr_html_().count("<tr") == 13
    assert {row.damp for row in report.rows} == {0.1} and {row.tries for row in report.rows} == {1}
    assert all(0 < row.error_after < row.error_before < 1 for row in report.rows)
    assert set(report.seconds) == {
        "check",
        "capture",
        "collect",
        "solve",
        "error",
        "replay",
        "total",
    }
    assert len(report.frame()) == 12 and report.frame().sparsity.eq(0.75).all()


def test_json_round_trip(pruned, tmp_path):
    _, report = pruned
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["versions"][
        "torch"
    ] == str(torch.__version__)


def test_saved_models_load_again_in_transformers_and_here(pruned, tmp_path, windows):
    model, report = pruned
    tokenizer = sl.load("opt-mini")[1]
    folder = sl.save(model, report, tmp_path / "out", tokenizer=tokenizer)
    again = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert torch.equal(sl.load(folder)[0](windows).logits, model(windows).logits)
    assert Report.load(folder / "sparselab-report.json") == report
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_tokenizer_of_load_is_saved_along(tmp_path):
    model, _ = sl.load("opt-mini")
    sl.save(model, Report({}), tmp_path / "out")
    assert len(sl.load(tmp_path / "out")[1]) == 4096


@pytest.mark.parametrize("packed", [False, True])
def test_what_belongs_to_a_model_is_saved_along(tmp_path, packed):
    """The ends of a chat model's answers, and its tokenizer's limit, which `load` lifts."""
    model, tokenizer = sl.load("opt-mini")
    lifted = tokenizer.model_max_length
    model.generation_config.eos_token_id = [2, 7, 9]
    folder = sl.save(model, Report({}), tmp_path / "out", packed=packed)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [2, 7, 9]
    assert sl.load(folder)[0].generation_config.eos_token_id == [2, 7, 9]
    assert (
        AutoTokenizer.from_pretrained(folder).model_max_length
        == 256
        < tokenizer.model_max_length
        == lifted
    )


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_or_link_is_replaced_without_leftovers(pruned, tmp_path, kind):
    (tmp_path / "there").write_text("")
    if kind == "link":
        (tmp_path / "out").symlink_to(tmp_path / "there")
    else:
        (tmp_path / "out").write_text("")
    sl.save(*pruned, tmp_path / "out", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "there"]


def test_an_existing_folder_is_not_overwritten_unasked(pruned, tmp_path):
    model, report = pruned
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(SparselabError, match="exists already.*overwrite=True"):
        sl.save(model, report, tmp_path / "out")
    assert (tmp_path / "out" / "precious").read_text() == "mine"
    sl.save(model, report, tmp_path / "out", overwrite=True)
    assert (
        not (tmp_path / "out" / "precious").exists()
        and (tmp_path / "out" / "model.safetensors").exists()
    )
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_too_little_disk_is_said_before_anything_is_written(pruned, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(SparselabError, match="Free some disk space"):
        sl.save(*pruned, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_leaves_nothing(pruned, tmp_path, monkeypatch, error):
    model, report = pruned

    def fail(folder, **_):
        (folder / "model.safetensors").write_text("half of it")
        raise error

    monkeypatch.setattr(model, "save_pretrained", fail)
    with pytest.raises(SparselabError, match="disk is full. .* Nothing was left"):
        sl.save(model, report, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failed_overwrite_keeps_the_old_folder(pruned, tmp_path, monkeypatch):
    model, report = pruned
    sl.save(model, report, tmp_path / "out")
    monkeypatch.setattr(model, "save_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sl.save(model, report, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").exists() and [
        p.name for p in tmp_path.iterdir()
    ] == ["out"]
