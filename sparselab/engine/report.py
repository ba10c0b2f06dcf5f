"""What a pruning run did, matrix by matrix; and a pruned model on disk."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from ..patterns import Pattern, describe_allocation
from ..runtime.files import write_json


@dataclass
class MatrixRow:
    """One pruned matrix. Errors are ||T X - W' X|| / ||T X|| over `error_tokens` calibration
    tokens, where T is the dense weight or what `targets` made of it: `error_before` with the mask
    alone on T, `error_after` with the weights that the method left, before a reconstruction. With
    `fisher` tokens count in them as they count for the method, so that they do not compare with
    those of other methods; windows that a reconstruction holds out are left out."""

    name: str
    layer: int
    kind: str
    shape: tuple[int, int]
    sparsity: float
    error_before: float
    error_after: float
    error_tokens: int
    damp: float | None
    tries: int
    seconds: float
    peak_bytes: int

    @classmethod
    def of(cls, row: dict) -> "MatrixRow":
        """From what JSON keeps of one."""
        return cls(**{**row, "shape": tuple(row["shape"])})


@dataclass
class Report:
    """Settings and results of one `prune` call. A table in Jupyter and in a terminal; `frame()` for
    pandas."""

    settings: dict
    rows: list[MatrixRow] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # by phase; "total" is the whole call
    peak_bytes: int = 0
    epochs: list[dict] = field(
        default_factory=list
    )  # SparseLLM: error and penalty terms per block and epoch
    # By block and unit: the error at the start and as kept, the mean squared error over the mean
    # square of the targets, on the held-out windows (on all, where none is); passes done, and the
    # one whose state was kept (0: as pruned); seconds.
    reconstructions: list[dict] = field(default_factory=list)

    @property
    def sparsity(self) -> float:
        """Share of zeros in all pruned matrices together."""
        sizes = [row.shape[0] * row.shape[1] for row in self.rows]
        return sum(row.sparsity * size for row, size in zip(self.rows, sizes, strict=True)) / max(
            sum(sizes), 1
        )

    @property
    def error(self) -> float:
        """Mean relative output error of the matrices, as the method left them."""
        return sum(row.error_after for row in self.rows) / max(len(self.rows), 1)

    def describe_shares(self, shares: dict[str, Pattern], sizes: dict[str, int]) -> None:
        """Say in the settings how many zeros each matrix was asked for; sizes: weights by name."""
        self.settings["pattern"] = describe_allocation(shares, sizes)
        self.settings["shares"] = {
            name: f"{share.n}:{share.m}" if share.m else share.sparsity
            for name, share in shares.items()
        }

    def frame(self) -> pd.DataFrame:
        """One row per matrix."""
        return pd.DataFrame([asdict(row) for row in self.rows])

    def save(self, file: str | Path) -> None:
        """Write as JSON, in one rename."""
        write_json(file, asdict(self))

    @classmethod
    def load(cls, file: str | Path) -> "Report":
        """Read what `save` wrote."""
        content = json.loads(Path(file).read_text())
        return cls(rows=[*map(MatrixRow.of, content.pop("rows"))], **content)

    def title(self) -> str:
        """One line: model, method, pattern, calibration, result."""
        s = self.settings
        trial = (
            f"dry run of block {s['dry_run']}, seconds extrapolated to all: "
            if "dry_run" in s
            else ""
        )
        text = (
            f"{trial}{s['model']} ({s['dtype']}, {s['device']}), {s['method']}, sparsity"
            f" {s['pattern']}; calibration {s['samples']} x {s['seqlen']} tokens; {len(self.rows)}"
            f" matrices in {len(s['layers'])} of {s['blocks']} blocks: {self.sparsity:.2%} zeros,"
            f" mean relative output error {self.error:.3f}"
        )
        return (
            text
            if s["dense_perplexity"] is None
            else text + f"; dense perplexity on {s['gate_windows']} calibration windows"
            f" {s['dense_perplexity']:.2f}"
        )

    def footer(self) -> str:
        """Seconds by phase and peak memory."""
        phases = ", ".join(f"{name} {value:.2f} s" for name, value in self.seconds.items())
        return f"{phases}; peak memory {self.peak_bytes / 2**20:.0f} MiB"

    def _table(self) -> pd.DataFrame:
        frame = self.frame().drop(columns=["layer", "kind", "error_tokens"], errors="ignore")
        frame["name"] = [f"{row.layer}.{row.kind}" for row in self.rows]
        frame["shape"] = [f"{r} x {c}" for r, c in frame["shape"]]
        frame["damp"] = ["" if damp is None else f"{damp:g}" for damp in frame["damp"]]
        frame["peak_bytes"] = [f"{value / 2**20:.0f} MiB" for value in frame["peak_bytes"]]
        frame["seconds"] = [f"{value:.3f} s" for value in frame["seconds"]]
        return frame.round({"sparsity": 4, "error_before": 4, "error_after": 4}).rename(
            columns={
                "peak_bytes": "peak",
                "error_before": "error before",
                "error_after": "error after",
            }
        )

    def __str__(self) -> str:
        if not self.rows:
            return self.title()
        return (
            f"{self.title()}\n{self._table().to_string(index=False, max_rows=14)}\n{self.footer()}"
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        table = self._table().to_html(index=False, border=0) if self.rows else ""
        return (
            f"<p>{self.title()}</p><div style='max-height:22em;overflow:auto'>{table}</div>"
            f"<p>{self.footer()}</p>"
        )
