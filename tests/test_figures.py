"""The papers' figures at their smallest: complete rows, resumed where they stopped, drawn with a
description."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from conftest import ROOT

import sparselab as sl
from sparselab import SparselabError
from sparselab.__main__ import figure as command
from sparselab.__main__ import main
from sparselab.experiments import figures
from sparselab.experiments.figures import FIGURES, figure
from sparselab.experiments.figures.ablations import ABLATIONS
from sparselab.experiments.figures.weights import distribution
from sparselab.experiments.profiles import PROFILES, Profile
from sparselab.methods.registry import named_method
from sparselab.models.packed import sizes
from sparselab.models.saving import save

TINY = Profile(
    "opt-mini",
    samples=2,
    seqlen=32,
    windows=2,
    methods=("wanda", "sparsegpt"),
    patterns=("0.5", "2:4"),
    seeds=(0,),
    block=0,
    epochs=2,
    counts=(1, 2),
    grid=(0.1, 1.0),
    sizes=(2,),
    steps=2,
)
MINI = PROFILES["mini"]
SIXTY = replace(MINI, sparsity="0.6")
# What issue and papers ask of every row that holds a perplexity.
PROTOCOL = {
    "model",
    "revision",
    "calibration",
    "calibration_sha256",
    "text",
    "text_sha256",
    "seqlen",
    "windows",
    "text_windows",
    "samples",
    "layers_pruned",
    "asked",
    "reached",
    "sparsity",
    "dtype",
    "seed",
    "sparselab_version",
    "torch_version",
    "transformers_version",
    "seconds",
    "peak_mib",
    "dense_bytes",
    "packed_bytes",
    "perplexity",
    "stderr",
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def one_block(monkeypatch):
    """Sweeps that prune the first block only."""
    monkeypatch.setattr(
        "sparselab.experiments.experiment.prune",
        lambda model, windows, **options: sl.prune(model, windows, **{**options, "layers": [0]}),
    )


def drawn(canvas, alt, *words):
    assert isinstance(canvas, plt.Figure) and canvas.axes[0].lines and alt.endswith(".")
    for word in words:
        assert word in alt


def test_sparsity_rows_carry_the_whole_protocol_and_are_not_made_again(tmp_path, one_block):
    table, canvas, alt = figure("sparsity", profile=TINY, folder=tmp_path, progress=False)
    drawn(canvas, alt, "opt-mini, calibration 2 x 32 tokens of demo text", "evaluated on 2 windows")
    assert (
        len(table) == 4
        and set(table.columns) >= PROTOCOL
        and not table[sorted(PROTOCOL)].isna().any(axis=None)
    )
    row = table.iloc[0]
    assert (
        row.text_windows > row.windows == 2
        and row.layers_pruned == "all"
        and len(row.text_sha256) == 64
    )
    assert "fc1=0.50" in row.reached and row.asked == 0.5 and row.revision.startswith("sha256:")
    assert row.dense_bytes > row.packed_bytes > row.dense_bytes / 2
    stamp = (tmp_path / "sparsity-opt-mini.csv").stat().st_mtime_ns
    again, _, _ = figure("sparsity", profile=TINY, folder=tmp_path, progress=False)
    assert (tmp_path / "sparsity-opt-mini.csv").stat().st_mtime_ns == stamp and again.equals(table)
    wider, _, _ = figure(
        "sparsity",
        profile=TINY,
        folder=tmp_path,
        progress=False,
        methods=("wanda",),
        patterns=("0.5",),
        windows=3,
    )
    assert len(wider) == 1 and wider.windows.tolist() == [3]  # another protocol is another row


def test_half_the_layers_is_another_protocol(tmp_path):
    table, _, alt = figure(
        "sparsity",
        profile=TINY,
        folder=tmp_path,
        progress=False,
        methods=("magnitude",),
        patterns=("0.5",),
        layers="first half",
    )
    assert table.layers_pruned.tolist() == ["first half"] and "first half of the layers" in alt
    with pytest.raises(SparselabError, match="all layers"):
        figure("sparsity", profile=TINY, folder=tmp_path, layers="0:3")
    options = {"methods": ("magnitude",), "patterns": ("0.5",), "layers": range(2)}
    few, _, alt = figure("sparsity", profile=TINY, folder=tmp_path, progress=False, **options)
    assert few.layers_pruned.tolist() == ["blocks 0 to 1"] and "blocks 0 to 1" in alt
    ours = table.assign(text="wikitext2", model="facebook/opt-125m", method="wanda", pattern="0.8")
    with pytest.raises(SparselabError, match="layers pruned: first half here, all there"):
        sl.overlay(ours)


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations(name, tmp_path, one_block, monkeypatch):
    monkeypatch.setattr(figures.ablations, "DAMPS", (0.01, 0.1))
    monkeypatch.setattr(figures.ablations, "BLOCK_SIZES", (64, 128))
    monkeypatch.setattr(figures.ablations, "THRESHOLDS", (0.1, 1.0))
    monkeypatch.setattr(figures.ablations, "CYCLES", (1, 2))
    monkeypatch.setattr(figures.ablations, "STARTS", ("wanda",))
    monkeypatch.setattr(figures.ablations, "GROWING", ("expected", "wanda"))
    monkeypatch.setattr(figures.ablations, "DROPPING", ("wanda", "magnitude"))
    seeds = (0, 1) if name == "damp" else (0,)
    table, canvas, alt = figure(
        name, profile=replace(TINY, seeds=seeds), folder=tmp_path, progress=False
    )
    drawn(canvas, alt, "70 % zeros", "lowest", *(["2 seeds"] if name == "damp" else []))
    runs = ABLATIONS[name].runs(TINY)
    assert len(table) == len(seeds) * len(runs) and set(table.columns) >= PROTOCOL
    assert table.groupby(["series", "x"]).seed.nunique().eq(len(seeds)).all()
    assert {str(run.x) for run in runs} == set(table.x)


def test_ablations_of_the_papers_have_three_seeds():
    assert all(len(profile.seeds) >= 3 for profile in PROFILES.values())


@pytest.mark.parametrize(
    "name, profile, rows",
    [
        ("sparsity", MINI, 80),
        ("sparsity", replace(PROFILES["small"], patterns=("0.5", "0.7", "2:4")), 12),
        ("convergence", MINI, 48),
        ("weights", MINI, 1332),
        ("costs", MINI, 12),
        ("samples", MINI, 36),
        ("damp", MINI, 30),
        ("block-size", MINI, 15),
        ("alpha-beta", MINI, 27),
        ("epochs", MINI, 18),
        ("order", MINI, 27),
        ("criteria", SIXTY, 36),
        ("cycles", SIXTY, 18),
        ("threshold", SIXTY, 15),
        ("starts", SIXTY, 27),
    ],
)
def test_recorded_tables_are_done(name, profile, rows, monkeypatch):
    """What bench/figures holds is found: nothing is pruned, and nothing written."""
    monkeypatch.setattr("sparselab.experiments.experiment.prune", None)
    monkeypatch.setattr("sparselab.experiments.sweep.append", None)
    file = ROOT / "bench" / "figures" / f"{name}-{profile.model}.csv"
    assert len(FIGURES[name].table(profile, file, False)) == rows


def test_the_table_of_an_early_sweep_is_refused(tmp_path):
    """It lacks columns that a figure's rows have."""
    file = tmp_path / "sparsity-opt-mini.csv"
    row = {"model": "opt-mini", "calibration": "demo", "samples": 2, "seqlen": 32, "windows": 2}
    row |= {"text": "demo", "seed": 0, "method": "wanda", "pattern": "0.5"}
    pd.DataFrame([row]).to_csv(file, index=False)
    options = {"methods": ("wanda",), "patterns": ("0.5",), "folder": tmp_path, "progress": False}
    for methods in (("wanda",), ("wanda", "magnitude")):  # complete, and with a job to do
        options["methods"], before = methods, file.read_bytes()
        with pytest.raises(SparselabError, match="lacks the columns layers_pruned"):
            figure("sparsity", profile=TINY, **options)
        assert file.read_bytes() == before


def test_convergence(tmp_path):
    table, canvas, alt = figure("convergence", profile=TINY, folder=tmp_path, progress=False)
    drawn(canvas, alt, "block 0, 80 % zeros", "published")
    assert table.groupby("method").epoch.max().eq(1).all() and table.layer.eq(0).all()
    assert (table[["error", "alpha_term", "beta_term", "gamma_term"]] > 0).all(axis=None)
    assert table.calibration_sha256.str.len().eq(64).all()
    more, _, _ = figure(
        "convergence", profile=replace(TINY, seeds=(0, 1)), folder=tmp_path, progress=False
    )
    assert len(more) == 2 * len(table)
    assert more[more.seed == 0].error.tolist() == table.error.tolist()


def test_weights(tmp_path):
    table, canvas, alt = figure(
        "weights",
        profile=replace(TINY, methods=("magnitude", "wanda")),
        folder=tmp_path,
        progress=False,
    )
    drawn(canvas, alt, "magnitude 100.0%")
    kept = table[(table.quantity == "kept") & (table.method == "magnitude")]
    assert kept.y.mean() == pytest.approx(0.3, abs=1e-3) and kept.y.iloc[0] == 0
    sums = table.groupby(["method", "quantity"]).y.sum()
    assert sums["magnitude", "dense"] == pytest.approx(1, abs=1e-3)
    assert sums["magnitude", "pruned"] == pytest.approx(0.3, abs=1e-3)


def test_distribution_by_its_definition():
    dense = torch.arange(1, 41.0).view(4, 10)
    rows = pd.DataFrame(distribution({"a": dense}, {"a": dense * (dense > 20)}))
    kept = rows[rows.quantity == "kept"].y
    assert kept.tolist() == [0.0] * 10 + [1.0] * 10
    assert rows[rows.quantity == "pruned"].y.sum() == pytest.approx(0.5, abs=1e-6)


def test_costs_are_measured_in_processes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(figures.costs, "COSTS", ("global",))
    table, canvas, alt = figure("costs", profile=TINY, folder=tmp_path, progress=False)
    drawn(canvas, alt, "MiB", "global")
    row = table.iloc[0]
    assert (
        row.method == "global"
        and set(table.columns) >= PROTOCOL
        and "finetune(steps=2)" in row.settings
    )
    assert row.extra_mib > 3 * row.dense_bytes / 2**20 > 0  # gradients and AdamW's two moments


def test_the_bytes_are_those_that_are_written(tmp_path):
    model, tokenizer = sl.load("opt-mini")
    report = sl.prune(
        model,
        sl.calibration(tokenizer, "demo", samples=2, seqlen=32),
        method="magnitude",
        sparsity=0.9,
        progress=False,
    )
    dense, packed = sizes(model)
    for name, expected in (("dense", dense), ("packed", packed)):
        folder = save(model, report, tmp_path / name, packed=name == "packed")
        written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        assert expected < written < expected + 40_000  # the file's header


def test_the_names_of_methods_may_set_what_a_preset_leaves(tmp_path):
    method = named_method("sparsellm:published;epochs=8;alpha=0.5", "OPT")
    assert method == replace(sl.SparseLLM.published("OPT"), epochs=8, alpha=0.5)


def test_unknown_names_get_a_sentence(tmp_path):
    with pytest.raises(SparselabError, match="Did you mean 'sparsity'"):
        figure("sparsty", folder=tmp_path)
    with pytest.raises(SparselabError, match="Did you mean 'mini'"):
        figure("sparsity", profile="mimi", folder=tmp_path)


def test_from_a_shell(tmp_path, capsys):
    options = "--samples 2 --seqlen 32 --windows 2 --methods magnitude --sparsities 0.5".split()
    options += ["--tables", str(tmp_path), "--out", str(tmp_path)]
    assert main(["figure", "sparsity", *options]) == 0
    assert "magnitude" in capsys.readouterr().out
    assert (tmp_path / "sparsity-opt-mini.csv").exists() and list(tmp_path.glob("sparsity-*.png"))
    assert main(["figure", "sparsty", *options]) == 1
    helped = command.__doc__.replace("\n", " ")  # it names what entries share
    for name in ("sparsity", "convergence", "weights", "costs", "zeroshot", *ABLATIONS):
        assert f" {name}," in helped or f" {name}." in helped


RTE = "sentence1\tsentence2\tlabel\nThe cat sat.\tA cat sat.\t0\nThe dog ran.\tA cat sat.\t1\n"


@pytest.mark.parametrize("name", ["sparsity", "convergence", "weights", "costs", "zeroshot"])
def test_from_files_the_rows_are_those_of_memory(name, tmp_path, monkeypatch):
    """The paper's profile never has the model whole in memory; its rows are the same."""
    (tmp_path / "zeroshot").mkdir()
    (tmp_path / "zeroshot" / "rte-dev.tsv").write_text(RTE)
    monkeypatch.setenv("SPARSELAB_DATA", str(tmp_path))
    small = replace(
        TINY, methods=("wanda",), patterns=("0.5",), answering=("dense", "wanda"), tasks=("rte",)
    )
    tables = {}
    for stream in (False, True):
        costs = ("global", "wanda") if stream else ("wanda",)  # nothing is trained from files
        monkeypatch.setattr(figures.costs, "COSTS", costs)
        folder = tmp_path / str(stream)
        profile = replace(small, stream=stream)
        tables[stream], *_ = figure(name, profile=profile, folder=folder, progress=False)
        assert [file.suffix for file in folder.iterdir()] == [".csv"]  # and no pruned model
    assert PROFILES["paper"].stream
    changing = ["seconds", "task_seconds", "peak_mib", "extra_mib", "steps"]
    ours, theirs = (table.drop(columns=changing, errors="ignore") for table in tables.values())
    if "output_error" in ours:  # from files it is measured on some rows of each matrix
        assert (ours.pop("output_error") / theirs.pop("output_error") - 1).abs().max() < 0.01
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-5)


def test_a_streamed_job_goes_on_after_its_last_block(tmp_path, monkeypatch):
    """Killed between pruning and scoring: the finished model is scored, not made anew."""
    streamed = replace(TINY, methods=("wanda",), patterns=("0.5",), stream=True)

    def broken(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Profile, "evaluate", broken)
        with pytest.raises(KeyboardInterrupt):
            figure("sparsity", profile=streamed, folder=tmp_path, progress=False)
    assert len([*(tmp_path / "sparsity-opt-mini.pruned").iterdir()]) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Profile, "prune", broken)
        table, *_ = figure("sparsity", profile=streamed, folder=tmp_path, progress=False)
    assert len(table) == 1 and [*tmp_path.iterdir()] == [tmp_path / "sparsity-opt-mini.csv"]


def test_a_streamed_run_says_first_what_it_needs(tmp_path):
    jobs = [{"seed": 0, "pattern": p, "method": "wanda"} for p in ("0.5", "0.7")]
    words = replace(TINY, stream=True).outlook(jobs)
    assert "wanda: 2 runs of" in words and "GiB" in words and "together about" in words
