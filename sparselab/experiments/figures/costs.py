"""Memory, time and loss of global, local and SparseLLM pruning (SparseLLM's figure 1, measured)."""

import math
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from torch import nn

from ...engine.distillation import distill
from ...engine.finetuning import finetune
from ...engine.report import Report
from ...models.loading import find_device, load
from ...runtime.memory import peak_bytes, reset_peak
from ...viz import label_of
from ..profiles import Profile
from ..subject import subject_of
from ..sweep import jobs_of
from .drawing import caption, from_zero, look_of, text_of, title_of, zeros_of

# All matrices at once, by backward passes. Magnitude's masks, and then the text's own loss; or the
# strongest that the package has: SparseGPT's model, and then masks and weights against the dense
# model's predictions.
GLOBAL, ELSA = "global", "global:elsa"
COSTS = (
    GLOBAL,
    ELSA,
    "magnitude",
    "wanda",
    "dsnot:published",
    "dsnot:wanda",
    "sparsegpt",
    "sparsellm:published",
    "sparsellm:repaired",
    "sparsellm",
    "admm",
    "admm:guided",
)
ELSA_ROUNDS = 8  # how often the masks are chosen anew
STARTS = {GLOBAL: "magnitude:scope=global", ELSA: "sparsegpt"}


def costs_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """Memory above the loaded model, seconds and perplexity, each run in a process of its own so
    that peaks do not mix. From files, memory is all that the run takes, and nothing is trained: no
    block-by-block method trains the whole model."""

    def make(job: dict) -> list[dict]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(cost, profile, file, **job).result()

    methods = [method for method in COSTS if not (profile.stream and method in STARTS)]
    jobs = jobs_of(profile.seeds[:1], [profile.sparsity], methods)
    key = {"window_limit": profile.windows, "steps": profile.steps}
    return profile.resume(file, jobs, make, progress, **key)


def cost(profile: Profile, file: Path, seed: int, pattern: str, method: str) -> list[dict]:
    """One run, measured: rows as in a sweep, with the memory it took above the loaded model."""
    subject = subject_of(profile, file, anew=True)
    model, job = subject.model, {"seed": seed, "pattern": pattern, "method": method}
    profile.calibration(model, seed)  # drawn before the measurement begins
    device = find_device(None)
    before = reset_peak(device)
    with subject.pruned(profile, {**job, "method": STARTS.get(method, method)}) as pruned:
        report, scored = pruned.report, pruned.scored
        if method in STARTS:
            _train(model, profile, report, seed, method)
        extra = round((peak_bytes(device) - before) / 2**20, 1)
        again = subject.dense if profile.stream else load(profile.model)[0]
        dense = profile.perplexities(model, scored=again)
        rows = profile.evaluate(model, report, dense, scored=scored, **job)
    return [{**row, "steps": profile.steps, "extra_mib": extra} for row in rows]


def _train(model: nn.Module, profile: Profile, report: Report, seed: int, method: str) -> None:
    """Against the loss of the whole model at once; goes into the report."""
    started, windows = time.perf_counter(), profile.calibration(model, seed)
    options = {"steps": profile.steps, "batch": min(8, len(windows)), "seed": seed}
    if method == GLOBAL:
        finetune(model, windows, **options, progress=False)
        report.settings["method"] += f" + finetune(steps={profile.steps})"
    else:
        dense, _ = load(profile.model)
        every = max(1, profile.steps // ELSA_ROUNDS)
        distill(model, dense, windows, masks="elsa", every=every, **options, progress=False)
        report.settings["method"] += f" + distill(masks=elsa, steps={profile.steps}, every={every})"
    report.seconds["total"] += time.perf_counter() - started


def draw_costs(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """Loss above dense against memory, one point a method (mean of the seeds), its name and its
    seconds beside it: to the left of the half that takes less memory, above the last."""
    rows = table[table.text == table.text.iloc[0]]
    methods = rows.groupby("method", sort=False)[["extra_mib", "excess", "seconds"]]
    means, scatter = methods.mean(), methods.std().fillna(0)
    canvas, axis = plt.subplots(figsize=(7.4, 4))
    rank, points = means.extra_mib.rank(method="first"), []
    left_ones, last = rank <= len(rank) / 2, rank.idxmax()
    lines = pd.concat([_apart(means.excess[side]) for side in (left_ones, ~left_ones)])
    for name, (memory, loss, seconds) in means.iterrows():
        look = {**look_of(name), "linestyle": "none", "capsize": 3, "markersize": 8}
        axis.errorbar(memory, loss, scatter.excess[name], scatter.extra_mib[name], **look)
        side = {"ha": "right" if left_ones[name] else "left", "va": "center"}
        place = {"xytext": (-8 if left_ones[name] else 8, 0), "textcoords": "offset points"}
        if name == last:
            side, place["xytext"] = {"ha": "right", "va": "bottom"}, (8, 7)
        said = f"{label_of(name)}, {seconds:.0f} s"
        axis.annotate(said, (memory, lines[name]), fontsize=8, **place, **side)
        points.append(f"{label_of(name)} {memory:.0f} MiB, {loss:.3f} nats, {seconds:.0f} s")
    loss = f"loss above dense, {text_of(rows.text.iloc[0])} (nats)"
    axis.set(xlabel="memory above the loaded model (MiB)", ylabel=loss)
    axis.set_xlim(left=-0.15 * means.extra_mib.max())
    axis.xaxis.get_major_locator().set_params(steps=[1, 2, 5, 10])
    from_zero(axis)
    sparsity = zeros_of(table.pattern.iloc[0])
    caption(canvas, f"{title_of(table)}, {sparsity}")
    return canvas, (
        f"memory above the loaded model, loss above dense and time, {sparsity},"
        f" {title_of(table)}: {', '.join(points)}."
    )


def _apart(losses: pd.Series) -> pd.Series:
    """Where labels of one side stand: at their losses, or lower, a line below the one before."""
    line, lowest, places = 0.045 * losses.max(), math.inf, {}
    for name, loss in losses.sort_values(ascending=False).items():
        places[name] = lowest = min(loss, lowest - line)
    return pd.Series(places)
