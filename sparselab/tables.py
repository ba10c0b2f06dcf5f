"""What recorded sweeps say, as Markdown: for the README and for bench/tables.md, both written by `make tables`."""
from pathlib import Path

import pandas as pd

from .patterns import Pattern
from .sweep import read

BASE = "sparsegpt"
RECORDED = {"opt-mini.csv": "All methods and patterns", "ablation.csv": "What each idea is worth on its own",
            "few-tokens.csv": "An eighth of the calibration tokens", "smollm2.csv": "A model of the LLaMA family"}
SETTING = ["model", "calibration", "samples", "seqlen", "text", "windows"]   # what a table must not mix
SEEDS = "seeds.csv"                                                          # few cells, three seeds: what claims rest on


def claims(table: pd.DataFrame, base: str = BASE) -> pd.DataFrame:
    """Excess log-perplexity over dense as a share of the base method's, by model, text and pattern; mean over seeds."""
    keys = ["model", "text", "pattern"]
    excess = table.groupby([*keys, "method"], sort=False).excess.mean().unstack("method")
    return excess.div(excess[base], axis=0)


def page(folder: Path, texts: int | None = None) -> str:
    """The tables of a folder of sweeps, those there are: the first so many texts of each (None: all), then the seeds."""
    files = {folder / name: title for name, title in RECORDED.items() if (folder / name).exists()}
    parts = ["\n\n".join([f"### {title}", *by_text(file)[:texts]]) for file, title in files.items()]
    seeds = folder / SEEDS
    return "\n\n".join([*parts, f"### Three calibration seeds\n\n{by_seed(seeds)}"] if seeds.exists() else parts)


def by_text(file: Path) -> list[str]:
    """For each text of a sweep the perplexities by method and pattern, the lowest of a pattern bold, in brackets the excess
    log-perplexity as a share of SparseGPT's."""
    table = read(file)
    return [f"{_caption(rows)}; in brackets the excess log-perplexity over dense as a share of SparseGPT's\n\n{_cells(rows)}"
            for _, rows in table.groupby(SETTING, sort=False)]


def by_seed(file: Path) -> str:
    """Mean, lowest and highest share of SparseGPT's excess over the calibration seeds, by setting and pattern."""
    table = read(file)
    keys = [*SETTING, "pattern"]
    excess = table.groupby([*keys, "seed", "method"], sort=False).excess.mean().unstack("method")
    shares = excess.div(excess[BASE], axis=0).drop(columns=BASE)
    methods = [method for method in table.method.unique() if method in shares]
    lines = ["Excess log-perplexity over dense as a share of SparseGPT's with the same calibration; mean, and lowest to "
             "highest of the seeds", "",
             f"| model | calibration | text | pattern | seeds | {' | '.join(methods)} |", "|---" * (len(methods) + 5) + "|"]
    for (model, calibration, samples, seqlen, text, windows, pattern), rows in shares.groupby(keys, sort=False):
        cells = [_spread(rows[method]) for method in methods]
        setting = f"{samples} x {seqlen} of {calibration} | {text}, {windows} windows"
        lines.append(f"| {model} | {setting} | {pattern} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: pd.Series) -> str:
    values = values.dropna()
    return f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})" if len(values) else ""


def _caption(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return (f"**{first.model}**, perplexity on {first.text} (first {first.windows} windows of {first.seqlen} tokens; "
            f"dense {first.dense:.1f}); calibration {first.samples} x {first.seqlen} tokens of {first.calibration}")


def _cells(rows: pd.DataFrame) -> str:
    means = rows.groupby(["method", "pattern"], sort=False)[["perplexity", "excess"]].mean()
    patterns = sorted(rows.pattern.unique(), key=lambda pattern: Pattern.parse(pattern).sparsity)
    lines = [f"| method | {' | '.join(patterns)} |", "|---" * (len(patterns) + 1) + "|"]
    for method in rows.method.unique():
        cells = [_cell(means, method, pattern) for pattern in patterns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(means: pd.DataFrame, method: str, pattern: str) -> str:
    if (method, pattern) not in means.index:
        return ""
    value, excess = means.loc[(method, pattern)]
    base = means.excess.get((BASE, pattern), float("nan"))
    bold = "**" if value == means.perplexity.xs(pattern, level="pattern").min() else ""
    share = f" ({excess / base:.2f})" if base > 0.02 else ""                 # of next to nothing no share is meant
    return f"{bold}{value:.1f}{bold}{share}"
