"""An experiment: which model is pruned on which text and evaluated on which, and a row of its
results."""

import datetime
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from torch import LongTensor, nn

from ..data.calibration import calibration, tokens
from ..data.corpora import sha256_of
from ..engine.pruning import prune
from ..engine.report import Report
from ..evaluation.perplexity import Perplexity, perplexity
from ..methods.base import Method
from ..models.checkpoint import Checkpoint
from ..models.loading import revision, tokenizer_of
from ..models.packed import sizes
from ..patterns import Pattern
from ..runtime.memory import reset_peak
from .results import complete_lines, machine, name_of, read, read_from, rows_matching

UNPRUNED = Report(  # what a pruning that does nothing would say
    {"method": "dense", "dtype": "", "device": "", "versions": {}}, seconds={"total": 0.0}
)
_calibration, _tokens = lru_cache(maxsize=8)(calibration), lru_cache(maxsize=8)(tokens)


@dataclass(frozen=True)
class Experiment:
    """What all rows of a table share. A job is the rest: a seed, a pattern and a method.

    Parameters
    ----------
    model : str
        What `sl.load` takes.
    corpus : str
        The calibration text.
    samples, seqlen : int
        Calibration windows, and tokens in a window, also of the evaluation texts.
    texts : tuple of str
        The evaluation texts.
    windows : int
        So many windows of each evaluation text.
    spread : bool
        Take them from all over the text, as `sl.tokens` does. Default: the first ones, by which the
        recorded tables were made.
    layers : str or range, optional
        The blocks to prune, such as 'first half', as in SparseLLM's tables. Default: all.
    stream : bool
        Prune from files to files and score block by block: the model is never whole in memory. The
        rows are the same.
    """

    model: str = "opt-mini"
    corpus: str = "demo"
    samples: int = 64
    seqlen: int = 256
    texts: tuple[str, ...] = ("demo",)
    windows: int = 64
    spread: bool = False
    layers: str | range | None = None
    stream: bool = False

    def calibration(self, model: nn.Module, seed: int) -> LongTensor:
        """The calibration windows [samples, seqlen]; drawn once for all jobs of a seed."""
        size = {"samples": self.samples, "seqlen": self.seqlen}
        return _calibration(tokenizer_of(model), self.corpus, **size, seed=seed)

    def prune(
        self,
        model: nn.Module,
        seed: int,
        pattern: float | str,
        method: str | Method,
        progress: bool = False,
        out: Path | None = None,
    ) -> Report:
        """Do one job, in place; from files to the folder `out` where the experiment streams, and
        then the model need have no weights."""
        windows = self.calibration(model, seed)
        reset_peak(torch.device("cpu"))  # what an earlier job held is not of this row
        return prune(
            self.model if self.stream else model,
            windows,
            method=method,
            sparsity=pattern,
            layers=self.layers,
            progress=progress,
            out=out,
        )

    def named_texts(self) -> dict[str, str]:
        """The evaluation texts by what tables call them."""
        return {name_of(text): text for text in self.texts}

    def perplexities(
        self,
        model: nn.Module,
        *,
        scored: nn.Module | Path | str | None = None,
        progress: bool = False,
    ) -> dict[str, Perplexity]:
        """A model's perplexity on each evaluation text, by what tables call the text.

        scored: what is scored in its place, such as a folder with the same model pruned.
        """
        scored, found = model if scored is None else scored, {}
        for name, text in self.named_texts().items():
            if self.spread:
                size = {"windows": self.windows, "seqlen": self.seqlen}
                ids = _tokens(tokenizer_of(model), text, **size)
            else:
                ids = _tokens(tokenizer_of(model), text)[: self.windows * self.seqlen]
            found[name] = perplexity(scored, ids, seqlen=self.seqlen, progress=progress)
        return found

    def columns(self) -> dict:
        """What every row begins with, and is found by."""
        blocks = self.layers
        if isinstance(blocks, range):
            blocks = f"blocks {blocks[0]} to {blocks[-1]}"
        return {
            "model": self.model,
            "calibration": name_of(self.corpus),
            "samples": self.samples,
            "seqlen": self.seqlen,
            "layers_pruned": blocks or "all",
        }

    def row(
        self,
        seed: int,
        pattern: str,
        method: str,
        report: Report,
        text: str | None = None,
        dense: Perplexity | None = None,
        pruned: Perplexity | None = None,
        *,
        model: nn.Module | None = None,
        scored: nn.Module | Path | None = None,
    ) -> dict:
        """What came of a job, with all that is needed to do it again.

        Parameters
        ----------
        seed, pattern, method : int, str, str
            The job.
        report : Report
            What `prune` gave.
        text, dense, pruned : str, Perplexity, Perplexity, optional
            An evaluation text as tables call it, and the perplexities on it.
        model : nn.Module, optional
            The pruned model, for which weights it had and how many bytes it takes.
        scored : nn.Module or Path, optional
            Where the pruned weights are, if not in that model.
        """
        row = {**self.columns(), "seed": seed, "method": method, "pattern": pattern}
        if text is not None:
            row |= self._evaluation(text, dense, pruned)
        row |= _run(report) | {"calibration_sha256": sha256_of(self.corpus, "calibration")}
        if model is not None:
            row |= _weights(model, report, pattern, scored)
        return row

    def _evaluation(self, text: str, dense: Perplexity, pruned: Perplexity) -> dict:
        excess, stderr = pruned.ratio(dense)
        row = {
            "text": text,
            "text_sha256": sha256_of(self.named_texts()[text], "evaluation"),
            "window_limit": self.windows,
            "windows": pruned.windows,
            "dense": round(float(dense), 4),
            "perplexity": round(float(pruned), 4),
            "stderr": round(pruned.stderr, 4),
            "excess": round(excess, 6),
            "excess_stderr": round(stderr, 6),
        }
        return row | {"places": "everywhere"} if self.spread else row

    def evaluate(
        self,
        model: nn.Module,
        report: Report,
        dense: dict[str, Perplexity],
        *,
        scored: nn.Module | Path | None = None,
        **job,
    ) -> list[dict]:
        """A row for each evaluation text. model: as the job left it, or, where `scored` is the
        folder that the job wrote, its structure; dense: what `perplexities` said of it before."""
        rows, weights = [], _weights(model, report, job["pattern"], scored)  # looked at once
        for text, pruned in self.perplexities(model, scored=scored).items():
            row = self.row(**job, report=report, text=text, dense=dense[text], pruned=pruned)
            ids = _tokens(tokenizer_of(model), self.named_texts()[text])
            rows.append(row | weights | {"text_windows": len(ids) // self.seqlen})
        return rows

    def matches(self, table: pd.DataFrame, **key) -> pd.Series:
        """Where a table's rows are of this experiment and carry the key. What earlier sweeps did
        not write was the same for all: they pruned all layers."""
        key = {**self.columns(), **key}
        if "layers_pruned" not in table and self.layers is None:
            del key["layers_pruned"]
        if "window_limit" not in table and "window_limit" in key:
            key["windows"] = key.pop("window_limit")  # all that they say of it
        if self.spread or "places" in table:  # a table without it has the first windows
            key["places"] = "everywhere" if self.spread else "first"
        same_text = read_from(table, "calibration_sha256", self.corpus, "calibration")
        return rows_matching(table, key) & same_text

    def rows_in(self, file: Path, **key) -> pd.DataFrame:
        """The rows of a CSV file that match; none where there is no file."""
        if not complete_lines(file):
            return pd.DataFrame()
        table = read(file)
        return table[self.matches(table, **key)]


def _run(report: Report) -> dict:
    """The columns of one run: what was pruned how well, at what cost, by what, where and when."""
    versions = report.settings["versions"]
    return {
        "sparsity": round(report.sparsity, 6),
        "output_error": round(report.error, 6),
        "seconds": round(report.seconds["total"], 2),
        "peak_mib": report.peak_bytes // 2**20,
        "settings": report.settings["method"],
        "dtype": report.settings["dtype"],
        "device": report.settings["device"],
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        **{f"{name}_version": version for name, version in versions.items()},
    }


def _weights(
    model: nn.Module, report: Report, pattern: str, scored: nn.Module | Path | None = None
) -> dict:
    """The columns of the pruned weights; bytes are those of the tensors on disk."""
    in_files = isinstance(scored, Path)
    dense, packed = Checkpoint(scored).sizes() if in_files else sizes(model)
    kinds = report.frame().groupby("kind", sort=False).sparsity.mean()
    return {
        "revision": revision(model),
        "reached": ";".join(f"{kind}={share:.4f}" for kind, share in kinds.items()),
        "dense_bytes": dense,
        "packed_bytes": packed,
        "asked": Pattern.parse(pattern).sparsity,
    }
