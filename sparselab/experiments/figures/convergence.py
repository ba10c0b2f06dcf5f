"""SparseLLM's loop in one block, epoch by epoch (its paper's figure 3)."""

from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ... import viz
from ...data.calibration import calibration
from ...engine.pruning import prune
from ...methods.registry import named_method
from ...models.architecture import blocks_of, dense_weights, family_of, restore
from ...models.loading import load
from ..profiles import LOOP, Profile, base, provenance, title_of
from ..results import load_or_compute

FIGURE_3 = {
    "OPT": (3, "0.8"),
    "LLaMA": (6, "0.7"),
}  # SparseLLM's figure 3: block and sparsity, OPT-125m and LLaMA-2-13b


def convergence_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """Penalty terms (per token) and true relative error of one block's feed-forward network after
    each epoch, the blocks before it pruned alike."""
    model, tokenizer = load(profile.model)
    family = family_of(model).name
    block, sparsity = FIGURE_3[family]
    block = min(block if profile.block is None else profile.block, len(blocks_of(model)) - 1)
    weights = dense_weights(model)

    def make(key: dict) -> list[dict]:
        restore(model, weights)
        windows = calibration(
            tokenizer,
            profile.corpus,
            samples=profile.samples,
            seqlen=profile.seqlen,
            seed=key["seed"],
        )
        report = prune(
            model,
            windows,
            method=named_method(key["method"], family),
            sparsity=sparsity,
            progress=False,
            layers=range(block + 1),
        )
        return [
            {**row, **provenance(profile, report, model)}
            for row in report.epochs
            if row["layer"] == block and row["epoch"] < profile.epochs
        ]

    count = (
        profile.epochs + 1
    )  # the last epoch ends with the step for p alone: its terms do not compare with the others
    methods = (f"sparsellm:published;epochs={count}", LOOP.format(count))
    keys = [
        {
            **base(profile),
            "layers_pruned": f"blocks 0 to {block}",
            "pattern": sparsity,
            "method": method,
            "seed": seed,
        }
        for method, seed in product(methods, profile.seeds)
    ]
    return load_or_compute(file, keys, make, progress)


def draw_convergence(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """The penalty terms of the published loop, and each loop's true error as a multiple of that
    after its first epoch, seed by seed: the targets differ (the dense block's output; the dense
    model's stream), and so errors do not compare.
    """
    first = table.iloc[0]
    scaled = table.assign(
        ratio=table.error / table.groupby(["method", "seed"]).error.transform("first")
    )
    means = scaled.groupby(["method", "epoch"], sort=False)[
        ["error", "ratio", "alpha_term", "beta_term", "gamma_term"]
    ].agg(["mean", "std"])
    with viz.style():
        canvas, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
        published = means.loc[next(name for name in table.method.unique() if "published" in name)]
        for term, line in (("alpha_term", "--"), ("beta_term", "-"), ("gamma_term", ":")):
            left.errorbar(
                published.index,
                published[term]["mean"],
                published[term]["std"].fillna(0),
                linestyle=line,
                color=viz.STYLES["sparsellm"][0],
                marker="v",
                capsize=2,
                label=f"{term.split('_')[0]} term",
            )
        left.set(
            xlabel="epoch",
            ylabel="penalty a token",
            yscale="log",
            title="the published loop's objective",
        )
        for name, rows in means.groupby(level=0, sort=False):
            short = "sparsellm:published" if "published" in name else "sparsellm"
            colour, marker, line = viz.style_of(short)
            ratio = rows.loc[name].ratio
            right.errorbar(
                ratio.index,
                ratio["mean"],
                ratio["std"].fillna(0),
                color=colour,
                marker=marker,
                linestyle=line,
                capsize=2,
                label=viz.label_of(short),
            )
        right.set(
            xlabel="epoch",
            ylabel="error / that of the first epoch",
            title="the error that it stands for",
        )
        for axis in (left, right):
            axis.legend(fontsize=8)
            axis.xaxis.get_major_locator().set_params(integer=True)
        canvas.suptitle(f"block {first.layer} at {first.pattern}, {title_of(table)}", fontsize=10)
    ends = [
        f"{'published' if 'published' in name else 'default'} {rows.error['mean'].iloc[0]:.3f} to "
        f"{rows.error['mean'].iloc[-1]:.3f}"
        for name, rows in means.groupby(level=0, sort=False)
    ]
    return (
        canvas,
        (
            f"SparseLLM's loop in block {first.layer} at {first.pattern}, {title_of(table)}:"
            " relative output error, each against its own target, from the first to the last"
            f" epoch, {', '.join(ends)}."
        ),
    )
