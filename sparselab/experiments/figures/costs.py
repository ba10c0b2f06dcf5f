"""Memory, time and loss of global, local and SparseLLM pruning (SparseLLM's figure 1, measured)."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from torch import nn

from ...engine.finetuning import finetune
from ...engine.report import Report
from ...models.loading import load
from ...runtime.memory import peak_bytes, reset_peak
from ...viz import label_of
from ..profiles import Profile
from ..sweep import jobs_of
from .drawing import look_of, title_of

# Magnitude's masks over all matrices, then the model's loss itself, by backward passes.
GLOBAL = "global"
COSTS = (GLOBAL, "magnitude", "wanda", "sparsegpt", "sparsellm:published", "sparsellm")


def costs_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """Memory above the loaded model, seconds and perplexity, each run in a process of its own so
    that peaks do not mix."""

    def make(job: dict) -> list[dict]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(cost, profile, **job).result()

    jobs = jobs_of(profile.seeds[:1], [profile.sparsity], COSTS)
    key = {"window_limit": profile.windows, "steps": profile.steps}
    return profile.resume(file, jobs, make, progress, **key)


def cost(profile: Profile, seed: int, pattern: str, method: str) -> list[dict]:
    """One run, measured: rows as in a sweep, with the memory it took above the loaded model."""
    model, _ = load(profile.model)
    profile.calibration(model, seed)  # drawn before the measurement begins
    before = reset_peak(model.device)
    chosen = "magnitude:scope=global" if method == GLOBAL else method
    report = profile.prune(model, seed, pattern, chosen)
    if method == GLOBAL:
        _train(model, profile, report, seed)
    extra = round((peak_bytes(model.device) - before) / 2**20, 1)
    dense = profile.perplexities(load(profile.model)[0])
    rows = profile.evaluate(model, report, dense, seed=seed, pattern=pattern, method=method)
    return [{**row, "steps": profile.steps, "extra_mib": extra} for row in rows]


def _train(model: nn.Module, profile: Profile, report: Report, seed: int) -> None:
    """Against the loss of the whole model at once; goes into the report."""
    started, windows = time.perf_counter(), profile.calibration(model, seed)
    options = {"steps": profile.steps, "batch": min(8, len(windows)), "seed": seed}
    finetune(model, windows, **options, progress=False)
    report.seconds["total"] += time.perf_counter() - started
    report.settings["method"] += f" + finetune(steps={profile.steps})"


def draw_costs(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """Loss above dense against memory, one point a method (mean of the seeds), its seconds beside
    it."""
    rows = table[table.text == table.text.iloc[0]]
    methods = rows.groupby("method", sort=False)[["extra_mib", "excess", "seconds"]]
    means, scatter = methods.mean(), methods.std().fillna(0)
    canvas, axis = plt.subplots(figsize=(6.4, 4))
    points = []
    for name, (memory, loss, seconds) in means.iterrows():
        look = {**look_of(name), "linestyle": "none", "capsize": 3, "markersize": 8}
        axis.errorbar(memory, loss, scatter.excess[name], scatter.extra_mib[name], **look)
        place = {"xytext": (8, -3), "textcoords": "offset points"}
        axis.annotate(f"{seconds:.0f} s", (memory, loss), fontsize=8, **place)
        points.append(f"{label_of(name)} {memory:.0f} MiB, {loss:.3f} nats, {seconds:.0f} s")
    loss = f"loss above dense on {rows.text.iloc[0]} (nats)"
    axis.set(xlabel="memory above the loaded model (MiB)", ylabel=loss)
    axis.legend(fontsize=8)
    sparsity = table.pattern.iloc[0]
    axis.set_title(f"{title_of(table)}, sparsity {sparsity}", fontsize=9)
    return canvas, (
        f"memory above the loaded model, loss above dense and time at {sparsity},"
        f" {title_of(table)}: {', '.join(points)}."
    )
