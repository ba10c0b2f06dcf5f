"""SparseLLM's loop in one block, epoch by epoch (its paper's figure 3)."""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ...models.architecture import blocks_of, family_of
from ...viz import line_style
from ..profiles import LOOP, Profile
from ..subject import subject_of
from ..sweep import jobs_of
from .drawing import caption, draw_means, from_zero, look_of, plain_log, title_of, zeros_of

# SparseLLM's figure 3: block and sparsity, OPT-125m and LLaMA-2-13b.
FIGURE_3 = {"OPT": (3, "0.8"), "LLaMA": (6, "0.7")}
TERMS = {  # of the objective: look (no method's), and what it is about
    "alpha_term": (("#117733", "s", "--"), r"$\alpha$: before the activation"),
    "beta_term": (("#AA4499", "D", "-."), r"$\beta$: the output"),
    "gamma_term": (("#4477AA", "o", ":"), r"$\gamma$: the activation"),
}


def convergence_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """Penalty terms (per token) and true relative error of one block's feed-forward network after
    each epoch, the blocks before it pruned alike."""
    subject = subject_of(profile, file)
    model = subject.model
    block, sparsity = FIGURE_3[family_of(model).name]
    block = min(block if profile.block is None else profile.block, len(blocks_of(model)) - 1)
    experiment = replace(profile, layers=range(block + 1))

    def make(job: dict) -> list[dict]:
        with subject.pruned(experiment, job) as pruned:
            report = pruned.report
            row = experiment.row(**job, report=report, model=model, scored=pruned.scored)
        epochs = [epoch for epoch in report.epochs if epoch["layer"] == block]
        return [{**row, **epoch} for epoch in epochs if epoch["epoch"] < profile.epochs]

    # The last epoch ends with the step for p alone: its terms do not compare with the others.
    count = profile.epochs + 1
    methods = (f"sparsellm:published;epochs={count}", LOOP.format(count))
    jobs = jobs_of(profile.seeds, [sparsity], methods)
    return experiment.resume(file, jobs, make, progress)


def draw_convergence(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """The penalty terms of the published loop and their sum, and each loop's true error as a
    multiple of that after its first epoch, seed by seed: the targets differ (the dense block's
    output; the dense model's stream), and so errors do not compare.
    """
    first = table.groupby(["method", "seed"]).error.transform("first")
    table = table.assign(ratio=table.error / first, objective=table[[*TERMS]].sum(axis=1))
    groups = table.groupby(["method", "epoch"], sort=False)
    means = groups[["error", "ratio", "objective", *TERMS]].agg(["mean", "std"])
    canvas, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    left.set(title="the published loop's objective", ylabel="penalty a token", yscale="log")
    right.set(title="the error that it stands for", ylabel="error / that of the first epoch")
    ends, falls = [], ""
    for name, rows in means.groupby(level=0, sort=False):
        published, rows = "published" in name, rows.loc[name]
        if published:
            _draw_terms(left, rows)
            falls = f"; the published loop's objective {_from_to(rows.objective)}, its beta term"
            falls += f" {_from_to(rows.beta_term)}"
        look = look_of("sparsellm:published" if published else "sparsellm")
        draw_means(right, rows.ratio, **look, capsize=2)
        low, high = rows.error["mean"].iloc[[0, -1]]
        ends.append(f"{'published' if published else 'default'} {low:.3f} to {high:.3f}")
    for axis, place in ((left, "best"), (right, "lower left")):
        axis.set(xlabel="epoch")
        axis.legend(fontsize=8, loc=place)
        axis.xaxis.get_major_locator().set_params(integer=True)
    plain_log(left)
    from_zero(right)
    pattern = zeros_of(table.pattern.iloc[0])
    where = f"block {table.layer.iloc[0]}, {pattern}, {title_of(table)}"
    caption(canvas, where)
    return canvas, (
        f"SparseLLM's loop in {where}: relative output error, each against its own target, from the"
        f" first to the last epoch, {', '.join(ends)}{falls}."
    )


def _from_to(points: pd.DataFrame) -> str:
    first, last = points["mean"].iloc[[0, -1]]
    return f"{first:.2g} to {last:.2g}"


def _draw_terms(axis: plt.Axes, means: pd.DataFrame) -> None:
    draw_means(axis, means.objective, color="black", linewidth=3, capsize=2, label="their sum")
    for term, (look, label) in TERMS.items():
        draw_means(axis, means[term], label=label, markersize=5, capsize=2, **line_style(*look))
