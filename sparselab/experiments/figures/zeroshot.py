"""Zero-shot accuracy of the dense and the pruned model, task by task, judged item by item."""

import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from torch import nn
from transformers import PreTrainedTokenizerBase

from ...evaluation.tasks import TASKS, task_file
from ...evaluation.zeroshot import answers
from ...models.loading import revision, tokenizer_of
from ...viz import label_of
from ..profiles import Profile
from ..subject import LastPruned
from ..sweep import jobs_of
from .drawing import caption, look_of, title_of, zeros_of

NAMES = {
    "boolq": "BoolQ",
    "rte": "RTE",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "arc_easy": "ARC easy",
    "arc_challenge": "ARC challenge",
    "openbookqa": "OpenBookQA",
    "piqa": "PIQA",
    "lambada_openai": "LAMBADA",
}


def zeroshot_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """A row a method and task, with the verdict on every item, so that two methods can be compared
    item by item: see `answered`."""
    jobs = [
        {**job, "task": task}
        for job in jobs_of(profile.seeds[:1], [profile.sparsity], profile.answering)
        for task in profile.tasks
    ]
    with LastPruned(profile, file) as last:

        def make(job: dict) -> list[dict]:
            task = job["task"]
            pruning = {key: value for key, value in job.items() if key != "task"}
            pruned, model = last.pruned(pruning), last.subject.model
            row = profile.row(**pruning, report=pruned.report)
            row["revision"] = revision(model)
            asked = {"limit": profile.items, "progress": progress}
            return [{**row, **answered(pruned.scored, tokenizer_of(model), task, **asked)}]

        return profile.resume(file, jobs, make, progress, limit=str(profile.items))


def answered(
    model: nn.Module | Path | str,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    *,
    limit: int | None,
    progress: bool = True,
) -> dict:
    """The columns of one task: `right` and `right_norm` hold y or n for each item, in the order of
    the task's file; the second by the sums per character, empty where lm-eval has none."""
    started = time.perf_counter()
    found = answers(model, tokenizer, task, limit=limit, progress=progress)
    return {
        "task": task,
        "file": task_file(task).name,
        "limit": str(limit),
        "items": len(found),
        "chance": round((1 / found.loglikelihoods.map(len)).mean(), 6),
        "accuracy": round(found.correct.mean(), 6),
        "accuracy_stderr": round(found.correct.sem(), 6),
        "right": _letters(found.correct),
        "right_norm": _letters(found.correct_norm) if TASKS[task].norm else "",
        "task_seconds": round(time.perf_counter() - started, 1),
    }


def _letters(right: pd.Series) -> str:
    return "".join("y" if one else "n" for one in right)


def draw_zeroshot(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """A column for each task, the methods side by side, with standard errors; grey bars are what
    guessing gets."""
    tasks, methods = [*table.task.unique()], [*table.method.unique()]
    canvas, axis = plt.subplots(figsize=(10, 4))
    chance = table.groupby("task").chance.first()[tasks]
    many = chance < 1  # one choice only: nothing to guess among
    axis.bar(np.arange(len(tasks))[many], 100 * chance[many], 0.84, color="#dddddd", label="chance")
    for place, method in enumerate(methods):
        rows = table[table.method == method].set_index("task").loc[tasks]
        x = np.arange(len(tasks)) + 0.7 * ((place + 0.5) / len(methods) - 0.5)
        look = {**look_of(method), "linestyle": "none"}
        if method == "dense":
            look["marker"] = "_"
        axis.errorbar(x, 100 * rows.accuracy, 100 * rows.accuracy_stderr, **look, capsize=2)
    axis.set_xticks(range(len(tasks)), [NAMES.get(task, task) for task in tasks], rotation=20)
    axis.set(ylabel="right (%)", ylim=(0, 100))
    canvas.legend(loc="outside right upper", fontsize=8)
    caption(canvas, f"{title_of(table)}, {zeros_of(table.pattern.iloc[0])}")
    return canvas, _sentence(table)


def _sentence(table: pd.DataFrame) -> str:
    """Accuracy over all items together, and the differences between the best and the others,
    item by item."""
    means, errors = paired(table)
    best = means.drop("dense", errors="ignore").idxmax()
    words = [f"{label_of(name)} {100 * value:.1f} %" for name, value in means.items()]
    gaps = [
        f"{label_of(name)} {100 * (means[best] - means[name]):.1f} ± {100 * errors[name]:.1f}"
        for name in means.index
        if name not in (best, "dense")
    ]
    items = table.groupby("method")["items"].sum().iloc[0]
    return (
        f"zero-shot accuracy over {items} items of {table.task.nunique()} tasks,"
        f" {title_of(table)}, {zeros_of(table.pattern.iloc[0])}: {', '.join(words)};"
        f" {label_of(best)} ahead, in points: {', '.join(gaps)}."
    )


def right_answers(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Whether each method answers each item of all tasks right, 0. or 1., by method."""
    return {
        method: (np.array(list("".join(rows.right))) == "y").astype(float)
        for method, rows in table.groupby("method", sort=False)
    }


def paired(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The share of all items that each method answers right, and the standard error of its
    distance from the best pruned one, item by item."""
    right = right_answers(table)
    means = pd.Series({method: answers.mean() for method, answers in right.items()})
    best = means.drop("dense", errors="ignore").idxmax()
    errors = {method: distance(right[best], got)[1] for method, got in right.items()}
    return means, pd.Series(errors)


def distance(answers: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """By how much the first is more often right on the same items, and the standard error."""
    differences = answers - others
    return differences.mean(), differences.std(ddof=1) / len(differences) ** 0.5
