"""How much goes into the papers' figures: three sizes of one experiment."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..evaluation.tasks import TASKS
from .results import rows_matching
from .sweep import METHODS, PATTERNS, Sweep

TABLES_ONLY = (  # in bench/*.csv, not in the figures' records
    "dsnot:published",
    "sparsellm:paper",
    "sparsellm:repaired",
)
LOOP = "sparsellm:epochs={};keep_best=False"


@dataclass(frozen=True)
class Profile(Sweep):
    """An experiment, and which methods, patterns and seeds its figures take in.

    sparsity: where a figure has only one. block: that of the convergence figure, None for the
    paper's. grid: values of alpha and beta (gamma = 1). sizes: numbers of calibration windows.
    epochs: of the SparseLLM loop that converges; counts: of those whose ends are compared. steps:
    of training against the global loss. answering: of the zero-shot tasks, `items` of each (None:
    all).
    """

    samples: int = 32
    windows: int = 32
    methods: tuple[str, ...] = tuple(name for name in METHODS if name not in TABLES_ONLY)
    patterns: tuple[str, ...] = PATTERNS
    seeds: tuple[int, ...] = (0, 1, 2)
    sparsity: str = "0.7"
    block: int | None = None
    grid: tuple[float, ...] = (0.1, 1.0, 10.0)
    sizes: tuple[int, ...] = (4, 8, 16, 32)
    epochs: int = 8
    counts: tuple[int, ...] = (1, 2, 4)
    steps: int = 60
    answering: tuple[str, ...] = ("dense", "wanda", "sparsegpt", "sparsellm", "admm:guided")
    tasks: tuple[str, ...] = tuple(TASKS)
    items: int | None = 200

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
        asked = table.method.isin(methods) & table.pattern.isin(patterns) & table.seed.isin(seeds)
        return table[asked]

    def matches(self, table: pd.DataFrame, **key) -> pd.Series:
        """As in a sweep; but a table that an early sweep wrote is refused, before the first job: it
        lacks columns that a figure's rows have."""
        rows_matching(table, self.columns())
        return super().matches(table, **key)


WHOLE_TEXT = 10**6  # windows: more than any text has
PROFILES = {
    "mini": Profile("opt-mini"),
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
        items=None,
        stream=True,
    ),
}
