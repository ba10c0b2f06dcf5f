"""Drawings of what the other benchmarks recorded, and of what others published: nothing is run."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ... import viz
from ...evaluation.published import papers
from ...patterns import Pattern
from ...runtime.files import ROOT
from ..profiles import Profile
from ..results import read
from ..sweep import NotRecorded
from .drawing import caption, look_of, plain_log, text_of, words_of, zeros_of
from .zeroshot import NAMES

UNSEEN = "#999999"  # a published number that could not be looked up


def of_bench(name: str, command: str) -> Callable[[Profile, Path, bool], pd.DataFrame]:
    """The table that a benchmark wrote into bench/."""

    def table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
        recorded = ROOT / "bench" / name
        if not recorded.exists():
            raise NotRecorded(f"{recorded} is not there. `{command}` makes it.")
        return read(recorded)

    return table


def draw_divisions(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """Loss above dense by how the zeros were divided among the matrices, the solver the same; a
    panel for each text."""
    texts = table.text.unique()
    canvas, axes = plt.subplots(1, len(texts), figsize=(4.6 * len(texts), 3.2), squeeze=False)
    for axis, text in zip(axes[0], texts, strict=True):
        rows = table[table.text == text].sort_values("excess", ascending=False)
        axis.errorbar(rows.excess, range(len(rows)), xerr=rows.excess_stderr, fmt="ko", capsize=3)
        axis.set_yticks(range(len(rows)), rows.division)
        axis.set(xlabel=f"loss above dense, {text_of(text)} (nats)", xlim=(0, None))
    first = table.iloc[0]
    caption(canvas, f"{first.model}, {zeros_of(first.pattern)}, {first.method}")
    best = table.loc[table.groupby("text", sort=False).excess.idxmin()]
    words = [
        f"{row.division} on {text_of(row.text)} ({row.excess:.3f})" for row in best.itertuples()
    ]
    return canvas, (
        f"zeros divided in {table.division.nunique()} ways, {first.model},"
        f" {zeros_of(first.pattern)}; lowest loss above dense in nats: {', '.join(words)}."
    )


def draw_products(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """How many times as fast as the dense product a sparse one is, against the share of zeros; a
    panel for each matrix."""
    table = table.assign(speed=table.dense_us / table.sparse_us)
    panels = table.groupby(["model", "matrix", "kernel", "device"], sort=False)
    size = (4.2 * len(panels), 3.2)
    canvas, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True)
    for axis, ((model, matrix, kernel, device), rows) in zip(axes[0], panels, strict=True):
        for place, (tokens, part) in enumerate(rows.groupby("tokens")):
            look = {"color": f"{0.6 - 0.3 * place:.1f}", "marker": "os^"[place % 3]}
            axis.plot(100 * part.sparsity, part.speed, label=f"{tokens} tokens", **look)
        axis.axhline(1, color="black", linestyle=":")
        axis.set(xlabel="zeros (%)", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_title(f"{model}, {matrix}, {kernel} on {device}", fontsize=9)
    axes[0, 0].set_ylabel("dense time / sparse time")
    axes[0, 0].legend(fontsize=8)
    half, most = table[table.sparsity == 0.5].speed.max(), table.sparsity.max()
    top = table[table.sparsity == most].speed
    return canvas, (
        f"a sparse product against the dense one: at 50 % zeros at best {half:.2f} times as fast,"
        f" at {most:.0%} {top.min():.1f} to {top.max():.1f} times."
    )


def draw_finetuning(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """Perplexity before and after a little training with the zeros kept: on text like that of the
    training, and on text like that of the model."""
    canvas, axes = plt.subplots(1, 2, figsize=(9.4, 3.2), sharey=True)
    names = [
        "dense" if row.start == "dense" else f"{viz.label_of(row.start)}, {row.sparsity:.0%}"
        for row in table.itertuples()
    ]
    texts = (("demo", "trained on: Wikipedia"), ("books", "not trained on: books"))
    for axis, (text, title) in zip(axes, texts, strict=True):
        before, after = table[f"{text}_before"], table[f"{text}_after"]
        axis.hlines(range(len(table)), before, after, color="#999999")
        axis.plot(before, range(len(table)), "ko", fillstyle="none", label="pruned")
        axis.plot(after, range(len(table)), "ko", label="and trained")
        axis.set(xlabel="perplexity", title=title)
        plain_log(axis, "x")
    axes[0].set_yticks(range(len(table)), names)
    axes[1].legend(fontsize=8)
    first = table.iloc[0]
    words = [
        f"{name} {row.demo_before:.0f} to {row.demo_after:.0f}"
        for name, row in zip(names, table.itertuples(), strict=True)
    ]
    return canvas, (
        f"{first.model}, {first.steps} steps of {first.batch} x {first.seqlen} tokens with the"
        f" zeros kept: perplexity on Wikipedia {', '.join(words)}."
    )


def sizes_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """Published perplexities of OPT, dense and with 50 % zeros by SparseGPT, by its size."""
    table = papers()
    table = table[(table.metric == "perplexity") & (table.dataset == "wikitext2")]
    table = table[table.paper.str.startswith("SparseGPT ") & table.pattern.isin(("0", "0.5"))]
    both = table.pivot_table(index="model", columns="method", values="value", aggfunc="first")
    both = both[["dense", "sparsegpt"]].dropna().reset_index()
    size = both.model.str.extract(r"opt-([\d.]+)([mb])")
    billions = size[0].astype(float) * size[1].map({"m": 1e-3, "b": 1})
    return both.assign(billions=billions).dropna().sort_values("billions", ignore_index=True)


def draw_sizes(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """Perplexity of the dense model and of half of it, against the number of parameters."""
    canvas, axis = plt.subplots(figsize=(5.6, 3.4))
    for method in ("dense", "sparsegpt"):
        look = look_of(method)
        axis.plot(table.billions, table[method], **{**look, "marker": look["marker"] or "."})
    axis.set(xscale="log", xlabel="parameters (billions)", ylabel="perplexity on WikiText-2")
    axis.set_xticks(table.billions, [f"{size:g}" for size in table.billions])
    axis.xaxis.set_minor_locator(plt.NullLocator())
    caption(canvas, "OPT, 50 % zeros by SparseGPT, as published")
    axis.legend(fontsize=8)
    words = [f"{row.billions:g}b {row.dense:g} and {row.sparsegpt:g}" for row in table.itertuples()]
    return canvas, f"published perplexity of OPT, dense and with 50 % zeros: {', '.join(words)}."


def draw_published(table: pd.DataFrame) -> tuple[plt.Figure, str] | None:
    """Published numbers of one entry: a panel for each model and measure, methods side by side in
    each pattern. Filled: numbers that were read in the paper, its repository or a thread;
    hollow: in a text that quotes it; hollow and grey: nowhere that can be opened. None without any.
    """
    if table.empty:
        return None
    table = table.assign(pattern=table.pattern.fillna(""))  # times have none
    pruned = table[table.method != "dense"]
    keys = ["metric", "dataset", "model"]
    panels = list((pruned if len(pruned) else table).groupby(keys, sort=False))
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    size = (4.4 * across + 1.2, 2.8 * down)
    canvas, axes = plt.subplots(down, across, figsize=size, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    methods = [*pruned.method.unique()] or ["dense"]
    for axis, (key, rows) in zip(axes.flat, panels, strict=False):
        metric, dataset, model = key
        dense = table[(table[keys] == list(key)).all(axis=1) & (table.method == "dense")]
        if len(dense):
            axis.axhline(dense.value.iloc[0], color="black", linestyle=":")
        _published_panel(axis, rows, methods)
        if metric == "perplexity" and rows.value.max() > 3 * rows.value.min():
            plain_log(axis)
        where = f", {NAMES.get(dataset, text_of(dataset))}" if metric != "seconds" else ""
        axis.set_title(f"{model.split('/')[-1]}: {metric}{where}", fontsize=9)
    looks = [_published_look(method, "yes") for method in methods]
    marks = [plt.Line2D([], [], linestyle="none", **look) for look in looks]
    names = [viz.label_of(method) for method in methods]
    canvas.legend(marks, names, loc="outside right upper", fontsize=8)
    caption(
        canvas, "dotted: dense. Hollow: read in a text that quotes the paper. Grey: not looked up"
    )
    counts = {state: int((table.seen == state).sum()) for state in ("yes", "quoted", "no")}
    return canvas, (
        f"published numbers of {', '.join(table.paper.unique())}: {counts['yes']} were read where"
        f" they stand, {counts['quoted']} in a text that quotes them (hollow), {counts['no']} could"
        " not be looked up (grey)."
    )


def _published_look(method: str, seen: str) -> dict:
    colour, marker, _ = viz.style_of(method)
    colour = UNSEEN if seen == "no" else colour
    fill = viz.fill_of(method) if seen == "yes" else "none"
    return {"color": colour, "marker": marker or "_", "fillstyle": fill, "markersize": 6}


def _published_panel(axis: plt.Axes, rows: pd.DataFrame, methods: list[str]) -> None:
    patterns = sorted(rows.pattern.unique(), key=lambda name: Pattern.parse(name or "0").sparsity)
    for row in rows.itertuples():
        shift = 0.7 * ((methods.index(row.method) + 0.5) / len(methods) - 0.5)
        place = patterns.index(row.pattern) + shift
        look = _published_look(row.method, row.seen)
        axis.plot(place, row.value, linestyle="none", **look)
    axis.set_xticks(range(len(patterns)), [name and words_of(name) for name in patterns])
    axis.set_xlim(-0.5, len(patterns) - 0.5)
