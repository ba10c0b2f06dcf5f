"""Many prunings of one model as a table: every row says all that is needed to make it again."""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.calibration import calibration, tokens
from ..data.corpora import sha256_of
from ..engine.pruning import prune
from ..engine.report import Report
from ..evaluation.perplexity import Perplexity, perplexity
from ..methods.base import Method
from ..methods.registry import named_method
from ..models.architecture import dense_weights, family_of, restore
from ..models.loading import load
from ..patterns import Pattern
from .results import append, complete_lines, machine, name_of, read, read_from, rows_matching

METHODS = (
    "magnitude",
    "wanda",
    "sparsegpt",
    "dsnot:magnitude",
    "dsnot:wanda",
    "dsnot:sparsegpt",
    "dsnot:published",
    "swaps",
    "admm",
    "sparsellm:paper",
    "sparsellm:published",
    "sparsellm:repaired",
    "sparsellm",
)
PATTERNS = ("0.5", "0.6", "0.7", "0.8", "0.9", "2:4", "4:8", "3:4")


@dataclass(frozen=True)
class Sweep:
    """What all rows share: the model, the calibration, and the evaluation texts with their first so
    many windows."""

    model: str = "opt-mini"
    corpus: str = "demo"
    samples: int = 64
    seqlen: int = 256
    texts: tuple[str, ...] = ("demo",)
    windows: int = 64

    def run(
        self,
        file: Path,
        methods: Iterable[str],
        patterns: Iterable[str],
        seeds: Iterable[int] = (0,),
        *,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Add what is missing to a CSV file and return its rows of this sweep. A row is there when
        its pruning is done: an interrupted run goes on where it stopped."""
        jobs = list(product(seeds, patterns, methods))
        for _, pattern, name in jobs:  # what is wrong is said before the first job
            Pattern.parse(pattern), named_method(name, "OPT")
        there = self.mine(file)
        missing = {job: texts for job in jobs if (texts := self._missing(there, job))}
        if missing:
            self._add(file, missing, progress)
        return self.mine(file) if missing else there

    def _add(
        self, file: Path, missing: dict[tuple[int, str, str], set[str]], progress: bool
    ) -> None:
        """Prune by job, and add a row for each of its texts."""
        model, tokenizer = load(self.model)
        texts = {
            name_of(text): tokens(tokenizer, text)[: self.windows * self.seqlen]
            for text in self.texts
        }
        weights = dense_weights(model)
        dense = {
            text: perplexity(model, ids, seqlen=self.seqlen, progress=False)
            for text, ids in texts.items()
        }
        drawn = {}
        for (seed, pattern, name), wanted in tqdm(
            missing.items(), desc=f"sweep {self.model}", unit="run", disable=not progress
        ):
            if seed not in drawn:  # all runs of a seed share one calibration
                drawn[seed] = calibration(
                    tokenizer, self.corpus, samples=self.samples, seqlen=self.seqlen, seed=seed
                )
            restore(model, weights)
            method = named_method(name, family_of(model).name)
            report = self.prune(model, drawn[seed], method, Pattern.parse(pattern))
            rows = [
                {
                    **self.row(
                        seed,
                        pattern,
                        name,
                        report,
                        text,
                        dense[text],
                        perplexity(model, ids, seqlen=self.seqlen, progress=False),
                    ),
                    **self.extra_columns(model, report, text),
                }
                for text, ids in texts.items()
                if text in wanted
            ]
            append(file, rows)

    def prune(self, model: nn.Module, windows: Tensor, method: Method, pattern: Pattern) -> Report:
        """One pruning, in place."""
        return prune(model, windows, method=method, sparsity=pattern, progress=False)

    def extra_columns(self, model: nn.Module, report: Report, text: str) -> dict:
        """Columns beyond `row`'s, which tables written earlier lack; they can be gone on with (see
        `append`)."""
        return {
            "window_limit": self.windows,
            "text_sha256": sha256_of(self.path_of(text), "evaluation"),
            "calibration_sha256": sha256_of(self.corpus, "calibration"),
        }

    def path_of(self, text: str) -> str:
        """The text that is called so in the table."""
        return next(path for path in self.texts if name_of(path) == text)

    def mine(self, file: Path) -> pd.DataFrame:
        """The rows of a CSV file that are of this sweep: its settings, windows and texts; none
        where there is no file."""
        if not complete_lines(file):
            return pd.DataFrame()
        table = read(file)
        limit = (
            "window_limit" if "window_limit" in table else "windows"
        )  # all that earlier tables say of it
        same = rows_matching(table, {**self.settings(), limit: self.windows})
        same &= read_from(table, "calibration_sha256", self.corpus, "calibration")
        texts = [
            (table.text == name_of(text)) & read_from(table, "text_sha256", text, "evaluation")
            for text in self.texts
        ]
        return table[same & pd.concat(texts, axis=1).any(axis=1)]

    def _missing(self, there: pd.DataFrame, job: tuple[int, str, str]) -> set[str]:
        """The texts of which the rows that are there hold nothing for a job."""
        names = {*map(name_of, self.texts)}
        if there.empty:
            return names
        return names - {
            *there[
                rows_matching(there, dict(zip(("seed", "pattern", "method"), job, strict=True)))
            ].text
        }

    def settings(self) -> dict[str, str]:
        """What makes a row one of this sweep, as columns."""
        return {
            "model": self.model,
            "calibration": name_of(self.corpus),
            "samples": str(self.samples),
            "seqlen": str(self.seqlen),
        }

    def row(
        self,
        seed: int,
        pattern: str,
        name: str,
        report: Report,
        text: str,
        dense: Perplexity,
        ppl: Perplexity,
    ) -> dict:
        """A pruned model's perplexity on a text, with all that is needed to make it again."""
        excess, stderr = ppl.ratio(dense)
        return {
            **self.settings(),
            "seed": seed,
            "text": text,
            "windows": ppl.windows,
            "method": name,
            "pattern": pattern,
            "sparsity": round(report.sparsity, 6),
            "dense": round(float(dense), 4),
            "perplexity": round(float(ppl), 4),
            "stderr": round(ppl.stderr, 4),
            "excess": round(excess, 6),
            "excess_stderr": round(stderr, 6),
            "output_error": round(report.error, 6),
            "seconds": round(report.seconds["total"], 2),
            "peak_mib": report.peak_bytes // 2**20,
            "settings": report.settings["method"],
            "dtype": report.settings["dtype"],
            "device": report.settings["device"],
            "machine": machine(),
            "threads": torch.get_num_threads(),
            "date": datetime.date.today().isoformat(),
            **{f"{key}_version": value for key, value in report.settings["versions"].items()},
        }
