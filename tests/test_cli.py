"""The same from a shell, and the demo at a tiny size."""

import re
import subprocess
import sys
from contextlib import nullcontext

import pytest
from conftest import ROOT

import sparselab as sl
from sparselab.__main__ import ModelOptions, app, main
from sparselab.experiments.comparison import Setting, compare, figure
from sparselab.experiments.results import machine
from sparselab.experiments.tables import BEGIN, END, insert, markdown, rounded
from sparselab.runtime import distributed

SMALL = "--seqlen 64 --windows 4".split()
EXPERIMENT = "model methods sparsities seeds calibration samples seqlen texts windows spread"
OPTIONS = {
    "prune": "model dtype device seqlen text windows method sparsity calibration samples seed"
    " layers out stream offload dry-run",
    "plan": "model method samples seqlen device",
    "evaluate": "model dtype device seqlen text windows stream offload",
    "zeroshot": "tasks limit folder harness dtype device stream offload",
    "sweep": f"out {EXPERIMENT}",
    "figure": f"list page profile layers epochs block tables out formats {EXPERIMENT}",
    "demo": "out readme quick",
    "students": "out notebooks",
    "tables": "folder page",
    "verdicts": "page",
    "fetch": "",
    "books": "out",
    "doctor": "",
}


def test_prune_evaluate_and_reload(tmp_path, capsys):
    out = str(tmp_path / "pruned")
    options = "--method wanda --sparsity 2:4 --samples 4 --layers 0:2".split()
    assert main(["prune", *options, *SMALL, "--out", out]) == 0
    printed = capsys.readouterr().out
    for words in (
        "dense: opt-mini on demo: perplexity",
        "2:4 = 50 % zeros",
        "12 matrices in 2 of 8 blocks",
        "pruned: opt-mini on demo",
        f"saved in {out}",
    ):
        assert words in printed
    assert main(["evaluate", "--model", out, *SMALL]) == 0
    assert printed.split("pruned: opt-mini on demo: ")[1].splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["prune", "--sparsity", "70"], "Did you mean 0.7"),
        (["prune", "--method", "wnda"], "Did you mean 'wanda'"),
        (["evaluate", "--model", "opt-mimi"], "Did you mean 'opt-mini'"),
        (["prune", "--layers", "half", *SMALL], "FIRST:END"),
        (["evaluate", "--text", "wikitex2", *SMALL], "Did you mean 'wikitext2'"),
        (["prune", "--out", "."], "exists already"),
        (["prune", "--out", f"{__file__}/out"], "not a folder"),
        (["sweep", "--out", f"{__file__}/a.csv"], "not a folder"),
        (["sweep", "--out", "."], "is a folder"),
        (["prune", "--layers", "3:3"], "FIRST:END"),
        (["prune", "--layers", "0:99", *SMALL], "the blocks are 0 to 7"),
        (["prune", "--sparsity", "2:7", *SMALL], "does not divide"),
        (["evaluate", "--device", "gpu"], "unknown device"),
        (["evaluate", "--stream", "--device", "gpu", *SMALL], "unknown device"),
        (["evaluate", "--stream", "--offload", "moon", *SMALL], "offload='moon'"),
        (["evaluate", "--offload", "disk"], "belongs to --stream"),
        (
            ["prune", "--stream", "--out", "never", "--samples", "2", "--dtype", "bf16", *SMALL],
            "Did you mean 'bfloat16'",
        ),
        (
            ["prune", "--stream", "--out", "never", "--samples", "2", "--device", "gpu", *SMALL],
            "unknown device",
        ),
        (["tables", "--folder", "nowhere"], "no table"),
    ],
)
def test_bad_input_is_one_line_and_status_1(arguments, words, capsys):
    assert main(arguments) == 1
    printed = capsys.readouterr()
    error = printed.err.strip().splitlines()[-1]
    assert (
        error.startswith("sparselab: ") and words in error and "dense:" not in printed.out
    )  # before any work


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate --windows 0",
        "evaluate --windows -3",
        "evaluate --seqlen 0",
        "plan --samples -3",
        "prune --seed 1.5",
        "sweep --seeds a",
        "figure sparsity --seeds a",
        "figure sparsity --block x",
        "zeroshot --limit 0",
    ],
)
def test_numbers_that_make_no_sense_are_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())
    assert "whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("prun", 'Did you mean "prune"'),
        ("--version", "Unknown command"),
        ("prune --methd wanda", "Did you mean --method?"),
        ("prune --no-stream", "Unknown option: --no-stream"),
        ("sweep --block 3", "Unknown option: --block"),
        ("evaluate --windows", "--windows requires an argument"),
        ("plan wanda", "wanda"),
        ("books", "--out requires an argument"),
        ("demo --quick --readme README.md", "--readme, --quick"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line_and_status_2(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("sparselab: ") and words in printed.err


@pytest.mark.parametrize("command, options", OPTIONS.items())
def test_the_help_of_a_command_has_a_sentence_for_each_option(command, options, capsys):
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80 and "\033" not in printed
    row = r"^ +(?:\*  )?--([a-z-]+)(?: [A-Z0-9,]+)? {2,}([A-Z]\S*(?: \S+)+)"
    listed = [name for name, _ in re.findall(row, printed, re.MULTILINE)]
    assert listed == options.split()


def test_the_help_has_a_sentence_for_each_command(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    listed = re.findall(r"^    ([a-z]+) {2,}[A-Z]\S+ \S+", printed, re.MULTILINE)
    assert listed == list(OPTIONS)
    assert main(["--help"]) == 0 and capsys.readouterr().out == printed


def test_lists_defaults_and_repeated_options():
    def read(arguments):
        _, given, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
        given.apply_defaults()
        return given.arguments

    line = "figure sparsity --calibration c4 --sparsities 0.5,2:4 --seeds 0,1 --texts a,b"
    given = read(line.split())
    assert given["name"] == "sparsity" and given["profile"] is None and given["layers"] is None
    assert given["options"] == {
        "corpus": "c4",
        "patterns": ("0.5", "2:4"),
        "seeds": (0, 1),
        "texts": ("a", "b"),
    }
    given = read("prune --seed -1 --windows 2 --windows 3 --sparsity=2:4".split())
    assert (given["seed"], given["sparsity"], given["samples"]) == (-1, "2:4", 128)
    assert given["options"].windows == 3 and given["options"].model == "opt-mini"


def test_of_several_processes_each_has_its_own_device(monkeypatch, capsys):
    monkeypatch.setattr(sl, "plan", lambda *options: options[-1])
    monkeypatch.setattr(distributed, "group", lambda: nullcontext("cpu"))
    assert main("plan --device cuda".split()) == 0 and capsys.readouterr().out == "cpu\n"
    monkeypatch.setattr(ModelOptions, "load", lambda self: (self.device, None))
    monkeypatch.setattr(ModelOptions, "perplexity", lambda self, model, *_: model)
    assert main(["evaluate"]) == 0 and capsys.readouterr().out == "cpu\n"
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert main(["evaluate"]) == 0 and capsys.readouterr().out == ""


def test_an_interrupt_is_a_sentence_and_status_130(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sl, "plan", interrupt)
    assert main(["plan"]) == 130 and "interrupted" in capsys.readouterr().err


def test_the_markers_of_a_readme_must_be_there(tmp_path):
    for text in (None, "no markers", BEGIN.format("readme")):
        if text:
            (tmp_path / "README.md").write_text(text)
        with pytest.raises(sl.SparselabError, match="to put the text between"):
            insert(tmp_path / "README.md", "a table")
    (tmp_path / "README.md").write_text(f"a\n{BEGIN.format('readme')}\nold\n{END}\nb\n")
    insert(tmp_path / "README.md", "new")
    assert (tmp_path / "README.md").read_text() == f"a\n{BEGIN.format('readme')}\nnew\n{END}\nb\n"


def test_doctor_says_what_is_there_and_what_to_do(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("SPARSELAB_DATA", raising=False)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert (
        "[ok] torch 2.13" in printed
        and "[ok] model opt-mini" in printed
        and "[ok] text demo for evaluation" in printed
    )
    assert "[missing: set SPARSELAB_DATA" in printed
    monkeypatch.setenv("SPARSELAB_CACHE", str(tmp_path))
    assert main(["doctor"]) == 1
    assert (
        "[missing: python -m sparselab fetch] text demo for calibration" in capsys.readouterr().out
    )


def test_the_module_runs_as_a_command():
    result = subprocess.run(
        [sys.executable, "-m", "sparselab", "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0 and "doctor" in result.stdout


def test_a_small_comparison():
    table, masks = compare(
        Setting(samples=4, seqlen=64, windows=4),
        ("magnitude", sl.SparseGPT()),
        (0.5, "2:4"),
        prompt="The",
        progress=False,
    )
    assert table.method.tolist() == ["dense", "magnitude", "sparsegpt", "magnitude", "sparsegpt"]
    assert table.sparsity.round(3).tolist() == [0, 0.5, 0.5, 0.5, 0.5]
    assert set(masks) == {(m, s) for m in ("magnitude", "sparsegpt") for s in (0.5, "2:4")}
    assert (table.excess[1:] != 0).all() and table.writes.str.startswith("The").all()
    text = markdown(table)
    assert text.count("\n") == 8 and "demo, 4 x 64" in text and f"Made on {machine()}, " in text
    assert "| -0.25 ± 0.01 |" in markdown(table.tail(1).assign(excess=-0.25, excess_stderr=0.01))
    assert len(figure(table, masks, 0.5).axes) == 3


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (78.04, 2.83, "78 ± 3"),
        (0.804, 0.016, "0.80 ± 0.02"),
        (0.0016, 0.0021, "0.002 ± 0.002"),
        (3456.7, 123.4, "3457 ± 123"),
        (12.3, 0.0, "12.3 ± 0"),
        (float("inf"), float("nan"), "inf ± nan"),
    ],
)
def test_a_number_has_the_digits_that_its_error_leaves_it(value, error, expected):
    assert rounded(value, error) == expected


def test_the_dense_weights_come_back_between_runs():
    """Wanda at 50 % alone, and after magnitude at 90 %: the same number."""
    setting = Setting(samples=4, seqlen=64, windows=4)
    after, _ = compare(setting, ("magnitude",), (0.9,), progress=False)
    alone, _ = compare(setting, ("wanda",), (0.5,), progress=False)
    both, _ = compare(setting, ("magnitude", "wanda"), (0.9, 0.5), progress=False)
    assert both.perplexity[1] == pytest.approx(after.perplexity[1], rel=1e-6)
    assert both.perplexity[4] == pytest.approx(alone.perplexity[1], rel=1e-6)


def test_plan_stream_and_dry_run(tmp_path, capsys):
    assert main("plan --method wanda --samples 4 --seqlen 64".split()) == 0
    assert "statistics" in capsys.readouterr().out
    options = [*"prune --method wanda --samples 4 --layers 0:2".split(), *SMALL]
    assert main([*options, "--dry-run"]) == 0
    assert "dry run of block 0" in capsys.readouterr().out
    out = str(tmp_path / "streamed")
    assert main([*options, "--stream", "--out", out]) == 0
    assert "12 matrices in 2 of 8 blocks" in capsys.readouterr().out
    assert main(["evaluate", "--model", out, *SMALL]) == 0
    printed = capsys.readouterr().out
    assert main(["evaluate", "--model", out, *SMALL, "--stream", "--offload", "disk"]) == 0
    assert capsys.readouterr().out == printed and "perplexity" in printed
    assert main([*options, "--stream"]) == 1 and "say where" in capsys.readouterr().err


def test_sweep_and_its_tables(tmp_path, capsys):
    file = str(tmp_path / "opt-mini.csv")
    options = "--methods sparsegpt,wanda --sparsities 0.7 --samples 4".split()
    assert main(["sweep", *options, *SMALL, "--out", file]) == 0
    assert "share of SparseGPT's" in capsys.readouterr().out
    assert main(["tables", "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (
        "| sparsegpt | **" in printed
        and "calibration 4 x 64 tokens of the demo's web pages" in printed
    )
    assert (tmp_path / "tables.md").read_text() == printed


def test_students_edition(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["students", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.ipynb"))) == len(list((ROOT / "notebooks").glob("*.ipynb")))
