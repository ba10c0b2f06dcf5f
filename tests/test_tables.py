"""Tables of recorded sweeps: means and shares by hand."""

import pandas as pd
import pytest

from sparselab.experiments.tables import RECORDED, SEEDS, by_seed, by_text, significant, written
from sparselab.runtime.files import ROOT

SETTING = {
    "model": "opt-mini",
    "calibration": "demo",
    "samples": 2,
    "seqlen": 32,
    "windows": 2,
    "dense": 10.0,
    "machine": "x86_64 AVX2",
    "threads": 1,
    "torch_version": "2.13.0",
    "date": "2026-11-29",
}
NAMES = ("seed", "method", "pattern", "perplexity", "excess")
ROWS = [
    {**SETTING, "text": text, **dict(zip(NAMES, values, strict=True))}
    for text in ("demo", "ptb")
    for values in (
        (0, "sparsegpt", "0.7", 20.0, 0.4),
        (0, "admm", "0.7", 12.0, 0.2),
        (1, "sparsegpt", "0.7", 30.0, 0.5),
        (1, "admm", "0.7", 14.0, 0.1),
        (0, "sparsegpt", "0.5", 10.0, 0.01),
        (0, "admm", "0.5", 11.0, 0.1),
    )
]


@pytest.fixture
def folder(tmp_path):
    for name in ("opt-mini.csv", "seeds.csv"):
        pd.DataFrame(ROWS).to_csv(tmp_path / name, index=False)
    return tmp_path


def test_every_table_that_the_page_names_is_recorded():
    assert all((ROOT / "bench" / name).exists() for name in (*RECORDED, SEEDS))


def test_cells_hold_means_shares_and_the_lowest(folder):
    text = by_text(folder / "opt-mini.csv")[0]
    assert (
        "| method | 0.5 | 0.7 |" in text
        and "the demo's Wikipedia articles (first 2 windows of 32 tokens; dense 10.0)" in text
    )
    assert (
        "| sparsegpt | **10.0** | 25.0 (1.0) |" in text
    )  # no share of an excess of next to nothing
    assert "| admm | 11.0 | **13.0** (0.33) |" in text  # (0.2 + 0.1) / (0.4 + 0.5)


def test_a_table_says_where_it_was_made(folder):
    assert (
        "made on x86_64 AVX2, 1 thread, torch 2.13.0, 2026-11-29"
        in by_text(folder / "opt-mini.csv")[0]
    )


@pytest.mark.parametrize(
    "value, digits, text",
    [
        (1655.7, 3, "1660"),
        (40.003, 3, "40.0"),
        (0.1946, 2, "0.19"),
        (7.08, 2, "7.1"),
        (99.96, 3, "100.0"),
        (-0.034, 2, "-0.034"),
        (0, 2, "0"),
    ],
)
def test_numbers_are_printed_with_the_digits_that_survive(value, digits, text):
    assert significant(value, digits) == text


def test_seeds_are_compared_one_by_one(folder):
    lines = by_seed(folder / "seeds.csv").splitlines()
    setting = (
        "opt-mini | 2 x 32 of the demo's web pages | the demo's Wikipedia articles, 2 windows | 0.7"
    )
    assert f"| {setting} | 2 | 0.35 (0.20 to 0.50) |" in lines


def test_settings_are_not_mixed(folder):
    for name in ("opt-mini.csv", "seeds.csv"):
        table = pd.read_csv(folder / name)
        pd.concat([table, table.assign(samples=32, perplexity=99.0, excess=9.0)]).to_csv(
            folder / name, index=False
        )
    test_cells_hold_means_shares_and_the_lowest(folder)
    test_seeds_are_compared_one_by_one(folder)
    assert len(
        by_text(folder / "opt-mini.csv")
    ) == 4 and "| 32 x 32 of the demo's web pages |" in by_seed(folder / "seeds.csv")


def test_a_page_of_one_text_each_and_of_all(folder):
    first = written(folder, texts=1)
    assert "on ptb" in written(folder) and "on ptb" not in first
    assert (
        "### All methods and patterns" in first
        and "few tokens" not in first
        and by_seed(folder / "seeds.csv") in first
    )
