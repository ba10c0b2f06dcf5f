"""Memory, time and loss of global, local and SparseLLM pruning (SparseLLM's figure 1, measured)."""

import copy
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from torch import Tensor, nn

from ... import viz
from ...data.calibration import calibration, tokens
from ...engine.finetuning import finetune
from ...engine.report import Report
from ...evaluation.perplexity import Perplexity, perplexity
from ...methods.registry import named_method
from ...models.architecture import family_of
from ...models.loading import load, tokenizer_of
from ...patterns import Pattern
from ...runtime.memory import peak_bytes, reset_peak
from ..profiles import Profile, title_of
from ..results import load_or_compute, name_of

GLOBAL = (  # magnitude's masks over all matrices, then the model's loss itself, by backward passes
    "global"
)
COSTS = (GLOBAL, "magnitude", "wanda", "sparsegpt", "sparsellm:published", "sparsellm")


def costs_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """Memory above the loaded model, seconds and perplexity, each run in a process of its own so
    that peaks do not mix."""
    keys = [
        {
            **profile.sweep().settings(),
            "steps": profile.steps,
            "method": method,
            "pattern": profile.sparsity,
            "seed": seed,
        }
        for method, seed in product(COSTS, profile.seeds[:1])
    ]

    def make(key: dict) -> list[dict]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            rows = process.submit(cost, profile, key["method"], key["seed"]).result()
        return [{name: value for name, value in row.items() if name not in key} for row in rows]

    return load_or_compute(file, keys, make, progress)


def cost(profile: Profile, name: str, seed: int) -> list[dict]:
    """One run, measured: rows as in a sweep, with the memory it took above the loaded model."""
    sweep = profile.sweep()
    model, tokenizer = load(profile.model)
    windows = calibration(
        tokenizer, profile.corpus, samples=profile.samples, seqlen=profile.seqlen, seed=seed
    )
    original = copy.deepcopy(model.state_dict())
    before = reset_peak(model.device)
    method = named_method(
        "magnitude:scope=global" if name == GLOBAL else name, family_of(model).name
    )
    report = sweep.prune(model, windows, method, Pattern.parse(profile.sparsity))
    if name == GLOBAL:
        _train(model, windows, profile, report, seed)
    extra = round((peak_bytes(model.device) - before) / 2**20, 1)
    columns = {
        text: {**sweep.extra_columns(model, report, text), "extra_mib": extra}
        for text in map(name_of, profile.texts)
    }
    pruned = _perplexities(model, profile)
    model.load_state_dict(original)
    dense = _perplexities(model, profile)
    return [
        {
            **sweep.row(seed, profile.sparsity, name, report, text, dense[text], pruned[text]),
            **columns[text],
        }
        for text in pruned
    ]


def _perplexities(model: nn.Module, profile: Profile) -> dict[str, Perplexity]:
    """By the text's name."""
    limit = profile.windows * profile.seqlen
    texts = {name_of(text): tokens(tokenizer_of(model), text)[:limit] for text in profile.texts}
    return {
        name: perplexity(model, ids, seqlen=profile.seqlen, progress=False)
        for name, ids in texts.items()
    }


def _train(model: nn.Module, windows: Tensor, profile: Profile, report: Report, seed: int) -> None:
    """Against the loss of the whole model at once; goes into the report."""
    started = time.perf_counter()
    finetune(
        model, windows, steps=profile.steps, batch=min(8, len(windows)), seed=seed, progress=False
    )
    report.seconds["total"] += time.perf_counter() - started
    report.settings["method"] += f" + finetune(steps={profile.steps})"


def draw_costs(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """Loss above dense against memory, one point a method (mean of the seeds), its seconds beside
    it."""
    rows = table[table.text == table.text.iloc[0]]
    means = (
        rows.groupby("method", sort=False)[["extra_mib", "excess", "seconds"]]
        .agg(["mean", "std"])
        .fillna(0)
    )
    with viz.style():
        canvas, axis = plt.subplots(figsize=(6.4, 4))
        for name, row in means.iterrows():
            colour, marker, _ = viz.style_of(name)
            axis.errorbar(
                row.extra_mib["mean"],
                row.excess["mean"],
                row.excess["std"],
                row.extra_mib["std"],
                color=colour,
                marker=marker,
                fillstyle=viz.fill_of(name),
                capsize=3,
                markersize=8,
                linestyle="none",
                label=viz.label_of(name),
            )
            axis.annotate(
                f"{row.seconds['mean']:.0f} s",
                (row.extra_mib["mean"], row.excess["mean"]),
                fontsize=8,
                xytext=(8, -3),
                textcoords="offset points",
            )
        axis.set(
            xlabel="memory above the loaded model (MiB)",
            ylabel=f"loss above dense on {rows.text.iloc[0]} (nats)",
        )
        axis.legend(fontsize=8)
        axis.set_title(f"{title_of(table)}, sparsity {table.pattern.iloc[0]}", fontsize=9)
    points = ", ".join(
        f"{viz.label_of(name)} {row.extra_mib['mean']:.0f} MiB, {row.excess['mean']:.3f} nats, "
        f"{row.seconds['mean']:.0f} s"
        for name, row in means.iterrows()
    )
    return (
        canvas,
        (
            f"memory above the loaded model, loss above dense and time at {table.pattern.iloc[0]},"
            f" {title_of(table)}: {points}."
        ),
    )
