"""What the figures share: how much goes in, rows that carry the whole protocol, tables that are
resumed."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd
from torch import Tensor, nn

from ..data.calibration import tokens
from ..data.corpora import sha256_of
from ..engine.pruning import prune
from ..engine.report import Report
from ..methods.base import Method
from ..models.loading import revision, tokenizer_of
from ..models.packed import sizes
from ..patterns import Pattern
from .results import name_of
from .sweep import METHODS, PATTERNS, Sweep

TABLES_ONLY = (
    "dsnot:published",
    "sparsellm:paper",
    "sparsellm:repaired",
)  # in bench/*.csv, not in the figures' records
LOOP = "sparsellm:epochs={};keep_best=False"


@dataclass(frozen=True)
class Profile:
    """How much a figure takes in: model, calibration, evaluation, and which methods, patterns and
    seeds.

    layers: None for all, or 'first half' as in SparseLLM's tables. sparsity: where a figure has
    only one. block: that of the convergence figure, None for the paper's. grid: values of alpha and
    beta (gamma = 1). sizes: numbers of calibration windows. epochs: of the SparseLLM loop that
    converges; counts: of those whose ends are compared. steps: of training against the global loss.
    """

    model: str
    corpus: str = "demo"
    samples: int = 32
    seqlen: int = 256
    texts: tuple[str, ...] = ("demo",)
    windows: int = 32
    methods: tuple[str, ...] = METHODS
    patterns: tuple[str, ...] = PATTERNS
    seeds: tuple[int, ...] = (0, 1, 2)
    layers: str | None = None
    sparsity: str = "0.7"
    block: int | None = None
    grid: tuple[float, ...] = (0.1, 1.0, 10.0)
    sizes: tuple[int, ...] = (4, 8, 16, 32)
    epochs: int = 8
    counts: tuple[int, ...] = (1, 2, 4)
    steps: int = 60

    def sweep(self, samples: int | None = None) -> "Recorded":
        """The sweep of this profile, with another number of calibration windows if one is given."""
        return Recorded(
            self.model,
            self.corpus,
            samples or self.samples,
            self.seqlen,
            self.texts,
            self.windows,
            self.layers,
        )


WHOLE_TEXT = 10**6  # windows: more than any text has
PROFILES = {
    "mini": Profile("opt-mini", methods=tuple(name for name in METHODS if name not in TABLES_ONLY)),
    "small": Profile(
        "smollm2-135m",
        samples=16,
        seqlen=512,
        windows=24,
        sizes=(4, 8, 16),
        epochs=4,
        counts=(1, 2),
        steps=20,
        methods=("magnitude", "wanda", "sparsegpt", "sparsellm"),
        patterns=("0.5", "0.6", "0.7", "2:4"),
    ),
    "paper": Profile(
        "facebook/opt-125m",
        "c4",
        128,
        2048,
        ("wikitext2", "ptb", "c4"),
        WHOLE_TEXT,
        grid=(0.01, 0.1, 1.0, 5.0, 10.0, 100.0),
        sizes=(8, 16, 32, 64, 128, 256),
        epochs=10,
        counts=(1, 2, 4, 8),
        steps=200,
    ),
}


@dataclass(frozen=True)
class Recorded(Sweep):
    """A sweep whose rows say all of the protocol that a published number depends on."""

    layers: str | None = None

    def settings(self) -> dict[str, str]:
        return {
            **super().settings(),
            "window_limit": str(self.windows),
            "layers_pruned": self.layers or "all",
        }

    def prune(self, model: nn.Module, windows: Tensor, method: Method, pattern: Pattern) -> Report:
        return prune(
            model, windows, method=method, sparsity=pattern, layers=self.layers, progress=False
        )

    def extra_columns(self, model: nn.Module, report: Report, text: str) -> dict:
        """What a row has beside the sweep's own columns; bytes are those of the tensors on disk."""
        dense, packed = sizes(model)
        kinds = report.frame().groupby("kind", sort=False).sparsity.mean()
        return {
            "text_windows": _token_count(tokenizer_of(model), self.path_of(text)) // self.seqlen,
            **super().extra_columns(model, report, text),
            "revision": revision(model),
            "asked": Pattern.parse(report.settings["pattern"].split(" ")[0]).sparsity,
            "reached": ";".join(f"{kind}={share:.4f}" for kind, share in kinds.items()),
            "dense_bytes": dense,
            "packed_bytes": packed,
        }

    def table(
        self,
        file: Path,
        methods: Iterable[str],
        patterns: Iterable[str],
        seeds: Iterable[int],
        progress: bool,
    ) -> pd.DataFrame:
        """`run`, and of the file only the rows of this call."""
        file.parent.mkdir(parents=True, exist_ok=True)
        methods, patterns, seeds = list(methods), list(patterns), list(seeds)
        table = self.run(file, methods, patterns, seeds, progress=progress)
        return table[
            table.method.isin(methods) & table.pattern.isin(patterns) & table.seed.isin(seeds)
        ]


@lru_cache
def _token_count(tokenizer, text: str) -> int:
    return len(tokens(tokenizer, text))


def base(profile: Profile) -> dict:
    """What every row of a profile has."""
    return {
        "model": profile.model,
        "calibration": name_of(profile.corpus),
        "samples": profile.samples,
        "seqlen": profile.seqlen,
    }


def provenance(profile: Profile, report: Report, model: nn.Module) -> dict:
    """The protocol of a row that no sweep made."""
    settings = report.settings
    return {
        "sparsity": round(report.sparsity, 6),
        "calibration_sha256": sha256_of(profile.corpus, "calibration"),
        "revision": revision(model),
        "dtype": settings["dtype"],
        "device": settings["device"],
        "settings": settings["method"],
        "seconds": round(report.seconds["total"], 2),
        **{f"{name}_version": value for name, value in settings["versions"].items()},
    }


def title_of(table: pd.DataFrame) -> str:
    """Model and protocol in one line."""
    first = table.iloc[0]
    windows = f", evaluated on {table.windows.max()} windows" if "windows" in table else ""
    seeds = f", {table.seed.nunique()} seeds" if table.seed.nunique() > 1 else ""
    layers = {"all": "", "first half": ", first half of the layers"}.get(
        first.layers_pruned, f", {first.layers_pruned}"
    )
    samples = "/".join(map(str, sorted(table.samples.unique())))
    return (
        f"{Path(first.model).name}, calibration {samples} x {first.seqlen} tokens of"
        f" {first.calibration}{windows}{layers}{seeds}"
    )
