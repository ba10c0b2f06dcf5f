"""Zero-shot accuracy of two embedded models, dense and pruned, with the verdict on every item:
python bench/zeroshot.py

Writes bench/zeroshot.csv, one row a model, method, pattern and task; what is there already is not
done again, so a broken run goes on. SPARSELAB_DATA names the folder that holds zeroshot/. The items
themselves are not recorded, only whether the model was right: y or n, in the order of the task's
file.
"""

import argparse
import datetime
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

import sparselab as sl
from sparselab.experiments.figures.zeroshot import answered
from sparselab.experiments.results import append, read, rows_matching
from sparselab.methods.registry import named_method
from sparselab.models.architecture import family_of
from sparselab.runtime.files import DISTRIBUTION

TASK_NAMES = ("piqa", "arc_easy", "winogrande")
# Model, calibration windows, their length, and what is measured: what fits into half an hour on one
# core.
MODELS = [
    ("smollm2-135m", 8, 512, [("dense", "0"), ("wanda", "0.5"), ("sparsegpt", "0.5")]),
    (
        "opt-mini",
        64,
        256,
        [("dense", "0"), ("wanda", "0.7"), ("sparsegpt", "0.7"), ("sparsellm", "0.7")],
    ),
]


def main() -> None:
    """Do what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument(
        "--limit", type=int, default=200, help="the first so many items of each task (default: 200)"
    )
    parser.add_argument("--most", type=int, help="stop after so many models; the next call goes on")
    args = parser.parse_args()
    jobs = [
        (*setting, method, pattern)
        for *setting, states in MODELS
        for method, pattern in states
        if len(done(args.out, setting[0], method, pattern, args.limit)) < len(TASK_NAMES)
    ]
    for job in tqdm(jobs[: args.most], unit="model"):
        measure(*job, limit=args.limit, out=args.out)


def done(out: Path, name: str, method: str, pattern: str, limit: int) -> set[str]:
    """The tasks that are recorded for one model."""
    if not out.exists():
        return set()
    table = read(out)
    return {
        *table[
            rows_matching(
                table, {"model": name, "method": method, "pattern": pattern, "limit": limit}
            )
        ].task
    }


def measure(
    name: str, samples: int, seqlen: int, method: str, pattern: str, *, limit: int, out: Path
) -> None:
    """Prune one model and ask it all tasks that are not yet recorded."""
    model, tokenizer = sl.load(name)
    sparsity = 0.0
    if method != "dense":
        windows = sl.calibration(tokenizer, "demo", samples=samples, seqlen=seqlen)
        report = sl.prune(
            model, windows, method=named_method(method, family_of(model).name), sparsity=pattern
        )
        sparsity = report.sparsity
    for task in [
        task for task in TASK_NAMES if task not in done(out, name, method, pattern, limit)
    ]:
        found = answered(model, tokenizer, task, limit=limit)
        found["stderr"], found["seconds"] = found["accuracy_stderr"], found["task_seconds"]
        row = {
            "model": name,
            "calibration": "demo",
            "samples": samples,
            "seqlen": seqlen,
            "seed": 0,
            "method": method,
            "pattern": pattern,
            "sparsity": round(sparsity, 6),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "date": datetime.date.today().isoformat(),
            "sparselab_version": version(DISTRIBUTION),
            **{f"{package}_version": version(package) for package in ("torch", "transformers")},
        }
        append(out, [row | found])


if __name__ == "__main__":
    main()
