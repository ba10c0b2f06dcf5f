"""Many prunings of one model as a table: every row says all that is needed to make it again."""
import ast
import datetime
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from io import BytesIO
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .demo import dense_weights, machine, restore
from .engine import prune
from .errors import SparselabError
from .evaluate import Perplexity, perplexity
from .methods import Method, find_method
from .models import family_of, load
from .patterns import Pattern
from .report import Report
from .texts import CORPORA, calibration, sha256_of, tokens

METHODS = ("magnitude", "wanda", "sparsegpt", "dsnot:magnitude", "dsnot:wanda", "dsnot:sparsegpt", "dsnot:published",
           "swaps", "admm", "sparsellm:paper", "sparsellm:published", "sparsellm:repaired", "sparsellm")
PATTERNS = ("0.5", "0.6", "0.7", "0.8", "0.9", "2:4", "4:8", "3:4")


@dataclass(frozen=True)
class Sweep:
    """What all rows share: the model, the calibration, and the evaluation texts with their first so many windows."""

    model: str = "opt-mini"
    corpus: str = "demo"
    samples: int = 64
    seqlen: int = 256
    texts: tuple[str, ...] = ("demo",)
    windows: int = 64

    def run(self, file: Path, methods: Iterable[str], patterns: Iterable[str], seeds: Iterable[int] = (0,), *,
            progress: bool = True) -> pd.DataFrame:
        """Add what is missing to a CSV file and return its rows of this sweep. A row is there when its pruning is done: a
        broken run goes on where it stopped."""
        jobs = list(product(seeds, patterns, methods))
        for _, pattern, name in jobs:                                        # what is wrong is said before the first job
            Pattern.parse(pattern), named_method(name, "OPT")
        there = self.mine(file)
        missing = {job: texts for job in jobs if (texts := self._missing(there, job))}
        if missing:
            self._add(file, missing, progress)
        return self.mine(file) if missing else there

    def _add(self, file: Path, missing: dict[tuple[int, str, str], set[str]], progress: bool) -> None:
        """Prune by job, and add a row for each of its texts."""
        model, tokenizer = load(self.model)
        texts = {name_of(text): tokens(tokenizer, text)[:self.windows * self.seqlen] for text in self.texts}
        weights = dense_weights(model)
        dense = {text: perplexity(model, ids, seqlen=self.seqlen, progress=False) for text, ids in texts.items()}
        drawn = {}
        for (seed, pattern, name), wanted in tqdm(missing.items(), desc=f"sweep {self.model}", unit="run",
                                                  disable=not progress):
            if seed not in drawn:                                            # all runs of a seed share one calibration
                drawn[seed] = calibration(tokenizer, self.corpus, samples=self.samples, seqlen=self.seqlen, seed=seed)
            restore(model, weights)
            method = named_method(name, family_of(model).name)
            report = self.prune(model, drawn[seed], method, Pattern.parse(pattern))
            rows = [{**self.row(seed, pattern, name, report, text, dense[text],
                                perplexity(model, ids, seqlen=self.seqlen, progress=False)),
                     **self.more(model, report, text)} for text, ids in texts.items() if text in wanted]
            append(file, rows)

    def prune(self, model: nn.Module, windows: Tensor, method: Method, pattern: Pattern) -> Report:
        """One pruning, in place."""
        return prune(model, windows, method=method, sparsity=pattern, progress=False)

    def more(self, model: nn.Module, report: Report, text: str) -> dict:
        """Columns beyond `row`'s, which tables written earlier lack; they can be gone on with (see `append`)."""
        return {"window_limit": self.windows, "text_sha256": sha256_of(self.path_of(text), "evaluation"),
                "calibration_sha256": sha256_of(self.corpus, "calibration")}

    def path_of(self, text: str) -> str:
        """The text that is called so in the table."""
        return next(path for path in self.texts if name_of(path) == text)

    def mine(self, file: Path) -> pd.DataFrame:
        """The rows of a CSV file that are of this sweep: its settings, windows and texts; none where there is no file."""
        if not whole_lines(file):
            return pd.DataFrame()
        table = read(file)
        limit = "window_limit" if "window_limit" in table else "windows"     # all that earlier tables say of it
        same = matching(table, {**self.settings(), limit: self.windows})
        same &= _read_from(table, "calibration_sha256", self.corpus, "calibration")
        texts = [(table.text == name_of(text)) & _read_from(table, "text_sha256", text, "evaluation")
                 for text in self.texts]
        return table[same & pd.concat(texts, axis=1).any(axis=1)]

    def _missing(self, there: pd.DataFrame, job: tuple[int, str, str]) -> set[str]:
        """The texts of which the rows that are there hold nothing for a job."""
        names = {*map(name_of, self.texts)}
        if there.empty:
            return names
        return names - {*there[matching(there, dict(zip(("seed", "pattern", "method"), job, strict=True)))].text}

    def settings(self) -> dict[str, str]:
        """What makes a row one of this sweep, as columns."""
        return {"model": self.model, "calibration": name_of(self.corpus), "samples": str(self.samples),
                "seqlen": str(self.seqlen)}

    def row(self, seed: int, pattern: str, name: str, report: Report, text: str, dense: Perplexity, ppl: Perplexity) -> dict:
        """A pruned model's perplexity on a text, with all that is needed to make it again."""
        excess, stderr = ppl.ratio(dense)
        return {**self.settings(), "seed": seed, "text": text, "windows": ppl.windows, "method": name, "pattern": pattern,
                "sparsity": round(report.sparsity, 6), "dense": round(float(dense), 4), "perplexity": round(float(ppl), 4),
                "stderr": round(ppl.stderr, 4), "excess": round(excess, 6), "excess_stderr": round(stderr, 6),
                "output_error": round(report.error, 6), "seconds": round(report.seconds["total"], 2),
                "peak_mib": report.peak_bytes // 2**20, "settings": report.settings["method"],
                "dtype": report.settings["dtype"], "device": report.settings["device"],
                "machine": machine(),
                "threads": torch.get_num_threads(), "date": datetime.date.today().isoformat(),
                **{f"{key}_version": value for key, value in report.settings["versions"].items()}}


def name_of(text: str) -> str:
    """What a text is called in tables."""
    return Path(text).name


def whole_lines(file: Path) -> bytes:
    """What a CSV file holds, without a last line that a killed run left unfinished; nothing where there is no file."""
    content = file.read_bytes() if file.exists() else b""
    return content[:content.rfind(b"\n") + 1]


def read(file: Path) -> pd.DataFrame:
    """A sweep's CSV; patterns are words, also where all of them look like numbers."""
    try:
        return pd.read_csv(BytesIO(whole_lines(file)), dtype={"pattern": str})
    except ValueError as error:
        raise SparselabError(f"{file} is not a whole table: {str(error).strip()}. Mend that line, or move the file away."
                             ) from error


def _read_from(table: pd.DataFrame, column: str, text: str, use: str) -> pd.Series | bool:
    """Where a table's sha256 is that of a text file; all rows, where there is no such column or file to compare."""
    if column not in table or text in CORPORA or not Path(text).is_file():
        return True
    return table[column] == sha256_of(text, use)


def matching(table: pd.DataFrame, key: dict) -> pd.Series:
    """Where a table's rows carry the key, compared as text."""
    if not {*key} <= {*table}:
        raise SparselabError(f"this table lacks the columns {', '.join(sorted({*key} - {*table}))}: it is of something "
                             "else. Choose another file.")
    return (table[list(key)].astype(str) == pd.Series({name: str(value) for name, value in key.items()})).all(axis=1)


def append(file: Path, rows: list[dict]) -> None:
    """Add rows to a CSV file; if it is there, its columns are kept, and the rows must have them."""
    table, lines = pd.DataFrame(rows), whole_lines(file)
    columns = [*pd.read_csv(BytesIO(lines), nrows=0)] if lines else [*table]
    if not {*columns} <= {*table}:
        raise SparselabError(f"{file} was written with other columns than these rows have. Move it away, or choose another "
                             "file.")
    if file.exists():
        os.truncate(file, len(lines))
    table[columns].to_csv(file, mode="a", header=not lines, index=False)


def named_method(name: str, family: str) -> Method:
    """'dsnot:magnitude' is the method with that start, 'sparsellm:published' that preset, a bare name its defaults;
    'wanda:refit=True;targets=dense-model' sets hyper-parameters, and 'sparsellm:published;epochs=8' those of the preset."""
    method, _, variant = name.partition(":")
    base = find_method(method)
    preset, _, rest = variant.partition(";")
    if preset in base.presets:
        base, variant = getattr(type(base), preset)(family), rest
    if not variant:
        return base
    pairs = [pair.partition("=") for pair in variant.split(";")] if "=" in variant else [("initial", "=", variant)]
    settings = {key: _value(text) for key, _, text in pairs}
    known = {field.name for field in fields(base)}
    if not known >= {*settings}:
        raise SparselabError(f"{name!r}: {method} has no {', '.join({*settings} - known)}; it has "
                             f"{', '.join(sorted(known))}.")
    return replace(base, **settings)


def _value(text: str) -> object:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
