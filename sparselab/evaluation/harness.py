"""Zero-shot tasks by lm-evaluation-harness itself, on the live model."""

import pandas as pd
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import SparselabError
from ..models.architecture import model_name
from ..models.validation import check_ready

# Metrics of a row, by the harness's names for them.
METRICS = {
    "accuracy": "acc",
    "stderr": "acc_stderr",
    "accuracy_norm": "acc_norm",
    "stderr_norm": "acc_norm_stderr",
    "perplexity": "perplexity",
    "perplexity_stderr": "perplexity_stderr",
}


def by_harness(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, tasks: list, limit: int | None
) -> pd.DataFrame:
    """The table of `zeroshot`, from lm-eval; tasks by name, or as dicts of its configuration."""
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise SparselabError(
            "harness=True needs lm-eval: pip install 'lm-eval>=0.4.13,<0.5'. Without it, the tasks"
            " are read from local files, by the same definition."
        ) from None
    check_ready(model)
    try:
        live = HFLM(pretrained=model, tokenizer=tokenizer)
        found = lm_eval.simple_evaluate(
            live, tasks=tasks, limit=limit, bootstrap_iters=1000, log_samples=False
        )
    except Exception as error:
        raise SparselabError(
            f"lm-eval could not do {', '.join(map(str, tasks))} ({type(error).__name__}: {error})."
            " It reads its data from the Hub; without network, use harness=False."
        ) from error
    rows = []
    for task, result in found["results"].items():
        row = {"model": model_name(model), "task": task}
        row["items"] = found["n-samples"][task]["effective"]
        for ours, theirs in METRICS.items():
            row[ours] = result.get(f"{theirs},none", float("nan"))
        row["chance"] = float("nan")
        version = found["versions"].get(task)
        row["source"] = f"lm-eval {lm_eval.__version__}, task version {version}"
        rows.append(row)
    return pd.DataFrame(rows)
