"""The papers' figures, one call each: a table that is kept as CSV and goes on where it was broken off, and its drawing.

A figure's rows carry the whole protocol: what was read (sha256), how it was cut, which layers, what sparsity was asked and
reached for each kind of matrix, how long it took, what it weighs. The notebooks and `python -m sparselab figure` share this.
"""
import copy
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, product
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import viz
from .demo import dense_weights, restore
from .engine import prune
from .errors import SparselabError, nearest
from .evaluate import Perplexity, perplexity
from .memory import peak_bytes, reset_peak
from .methods import Method
from .models import ROOT, blocks_of, family_of, linears_of, load, revision, tokenizer_of
from .packing import sizes
from .patterns import Pattern
from .report import Report
from .sweep import METHODS, PATTERNS, Sweep, append, named_method
from .texts import calibration, sha256_of, tokens
from .training import finetune

FOLDER = ROOT / "bench" / "figures"
FIGURE_3 = {"OPT": (3, "0.8"), "LLaMA": (6, "0.7")}      # SparseLLM's figure 3: block and sparsity, OPT-125m and LLaMA-2-13b
DAMPS = (0.0001, 0.001, 0.01, 0.1, 1.0)
BLOCK_SIZES = (16, 64, 128, 256, 1024)
LOOP = "sparsellm:epochs={};keep_best=False"
GLOBAL = "global"               # magnitude's masks over all matrices, then the model's loss itself, by backward passes
COSTS = (GLOBAL, "magnitude", "wanda", "sparsegpt", "sparsellm:published", "sparsellm")


@dataclass(frozen=True)
class Profile:
    """How much a figure takes in: model, calibration, evaluation, and which methods, patterns and seeds.

    layers: None for all, or 'first half' as in SparseLLM's tables. sparsity: where a figure has only one. block: that of
    the convergence figure, None for the paper's. grid: values of alpha and beta (gamma = 1). sizes: numbers of calibration
    windows. epochs: of the SparseLLM loop. steps: of training against the global loss.
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
    sizes: tuple[int, ...] = (4, 8, 16, 32, 64)
    epochs: int = 8
    steps: int = 60

    def sweep(self, samples: int | None = None) -> "Recorded":
        """The sweep of this profile, with another number of calibration windows if one is given."""
        return Recorded(self.model, self.corpus, samples or self.samples, self.seqlen, self.texts, self.windows, self.layers)


WHOLE_TEXT = 10**6              # windows: more than any text has
PROFILES = {
    "mini": Profile("opt-mini"),
    "small": Profile("smollm2-135m", samples=16, seqlen=512, windows=24, sizes=(4, 8, 16), epochs=4, steps=20,
                     methods=("magnitude", "wanda", "sparsegpt", "sparsellm"), patterns=("0.5", "0.6", "0.7", "2:4")),
    "paper": Profile("facebook/opt-125m", "c4", 128, 2048, ("wikitext2", "ptb", "c4"), WHOLE_TEXT,
                     grid=(0.01, 0.1, 1.0, 5.0, 10.0, 100.0), sizes=(8, 16, 32, 64, 128, 256), epochs=10, steps=200),
}


@dataclass(frozen=True)
class Recorded(Sweep):
    """A sweep whose rows say all of the protocol that a published number depends on."""

    layers: str | None = None

    def settings(self) -> dict[str, str]:
        return {**super().settings(), "window_limit": str(self.windows), "layers_pruned": self.layers or "all"}

    def prune(self, model: nn.Module, windows: Tensor, method: Method, pattern: Pattern) -> Report:
        return prune(model, windows, method=method, sparsity=pattern, layers=self.layers, progress=False)

    def more(self, model: nn.Module, report: Report, text: str) -> dict:
        """What a row has beside the sweep's own columns; bytes are those of the tensors on disk."""
        path = next(path for path in self.texts if _name(path) == text)
        dense, packed = sizes(model)
        kinds = report.frame().groupby("kind", sort=False).sparsity.mean()
        return {"text_windows": _count(tokenizer_of(model), path) // self.seqlen,
                "text_sha256": sha256_of(path, "evaluation"), "calibration_sha256": sha256_of(self.corpus, "calibration"),
                "revision": revision(model), "asked": Pattern.parse(report.settings["pattern"].split(" ")[0]).sparsity,
                "reached": ";".join(f"{kind}={share:.4f}" for kind, share in kinds.items()),
                "dense_bytes": dense, "packed_bytes": packed}

    def table(self, file: Path, methods: Iterable[str], patterns: Iterable[str], seeds: Iterable[int], progress: bool
              ) -> pd.DataFrame:
        """`run`, and of the file only the rows of this call."""
        file.parent.mkdir(parents=True, exist_ok=True)
        methods, patterns, seeds = list(methods), list(patterns), list(seeds)
        table = self.run(file, methods, patterns, seeds, progress=progress)
        mine = _matching(table, self.settings()) & table.text.isin([*map(_name, self.texts)])
        return table[mine & table.method.isin(methods) & table.pattern.isin(patterns) & table.seed.isin(seeds)]


@lru_cache
def _count(tokenizer, text: str) -> int:
    return len(tokens(tokenizer, text))


def _matching(table: pd.DataFrame, key: dict) -> pd.Series:
    """Where a table's rows carry the key, compared as text."""
    return (table[list(key)].astype(str) == pd.Series({name: str(value) for name, value in key.items()})).all(axis=1)


def resumed(file: Path, keys: list[dict], make: Callable[[dict], list[dict]], progress: bool) -> pd.DataFrame:
    """The rows of a CSV file that carry one of the keys; what is missing is made, a key at a time, and added."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for key in tqdm(keys, desc=file.stem, unit="run", disable=not progress):
        if not file.exists() or not _matching(pd.read_csv(file, dtype=str), key).any():
            append(file, [{**key, **row} for row in make(key)])
    table, text = pd.read_csv(file, dtype={"pattern": str}), pd.read_csv(file, dtype=str)
    return table[pd.concat([_matching(text, key) for key in keys], axis=1).any(axis=1)]


# --- sparsity: perplexity against sparsity and n:m, all methods ------------------------------------------------------

def sparsity_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """All methods at all patterns, the first seed."""
    return profile.sweep().table(file, profile.methods, profile.patterns, profile.seeds[:1], progress)


def draw_sparsity(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """A row of panels for each text: curves over the fractions, points for n:m; the dense model dotted."""
    texts = table.text.unique()
    with viz.style():
        canvas, axes = plt.subplots(len(texts), 2, figsize=(10, 3.6 * len(texts)), squeeze=False, sharey="row",
                                    width_ratios=[1.6, 1])
        for (curves, points), text in zip(axes, texts, strict=True):
            rows = table[table.text == text]
            grouped = rows.pattern.str.contains(":")
            for axis, xlabel in ((curves, "zeros (%)"), (points, "zeros in n:m")):
                axis.axhline(rows.dense.iloc[0], color="black", linestyle=":", label="dense")
                axis.set(xlabel=xlabel, yscale="log")
            _curves(curves, rows[~grouped])
            _points(points, rows[grouped])
            curves.set(ylabel=f"perplexity on {text}")
        shown = axes[0, 0] if not table.pattern.str.contains(":").all() else axes[0, 1]
        canvas.legend(*shown.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        canvas.suptitle(_title(table), fontsize=10)
    best = table.loc[table.groupby(["text", "pattern"], sort=False).perplexity.idxmin()]
    lowest = ", ".join(f"{row.pattern} on {row.text}: {viz.label_of(row.method)} {row.perplexity:.1f} (dense "
                       f"{row.dense:.1f})" for row in best.itertuples())
    return canvas, f"perplexity against sparsity, {_title(table)}; lowest at {lowest}."


def _curves(axis: plt.Axes, rows: pd.DataFrame) -> None:
    for name, part in rows.sort_values("asked").groupby("method", sort=False):
        colour, marker, line = viz.style_of(name)
        axis.errorbar(100 * part.sparsity, part.perplexity, part.stderr, color=colour, marker=marker, linestyle=line,
                      fillstyle=viz.fill_of(name), capsize=2, label=viz.label_of(name))


def _points(axis: plt.Axes, rows: pd.DataFrame) -> None:
    """A column for each pattern, its methods side by side."""
    patterns = sorted(rows.pattern.unique(), key=lambda pattern: Pattern.parse(pattern).sparsity)
    methods = rows.method.unique()
    for place, name in enumerate(methods):
        part, (colour, marker, _) = rows[rows.method == name], viz.style_of(name)
        shift = 0.7 * ((place + 0.5) / len(methods) - 0.5)
        axis.errorbar([patterns.index(pattern) + shift for pattern in part.pattern], part.perplexity, part.stderr,
                      color=colour, marker=marker, fillstyle=viz.fill_of(name), linestyle="none", capsize=2,
                      label=viz.label_of(name))
    axis.set_xticks(range(len(patterns)), patterns)


def _title(table: pd.DataFrame) -> str:
    """Model and protocol in one line."""
    first = table.iloc[0]
    windows = f", evaluated on {table.windows.max()} windows" if "windows" in table else ""
    seeds = f", {table.seed.nunique()} seeds" if table.seed.nunique() > 1 else ""
    layers = {"all": "", "first half": ", first half of the layers"}.get(first.layers_pruned, f", {first.layers_pruned}")
    samples = "/".join(map(str, sorted(table.samples.unique())))
    return (f"{Path(first.model).name}, calibration {samples} x {first.seqlen} tokens of {first.calibration}"
            f"{windows}{layers}{seeds}")


# --- ablations: one hyper-parameter, three seeds ----------------------------------------------------------------------

@dataclass(frozen=True)
class Run:
    """A point of an ablation: the line it belongs to, its place on the axis, and the sweep's method."""

    series: str
    x: object
    method: str
    samples: int | None = None


@dataclass(frozen=True)
class Ablation:
    """A hyper-parameter by name, and the runs that vary it."""

    name: str
    runs: Callable[[Profile], list[Run]]

    def table(self, profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
        """A row a run, seed and text, with its series and x."""
        parts = []
        for samples, group in groupby(self.runs(profile), key=lambda run: run.samples):
            runs = list(group)
            table = profile.sweep(samples).table(file, dict.fromkeys(run.method for run in runs), [profile.sparsity],
                                                 profile.seeds, progress)
            parts += [table[table.method == run.method].assign(series=run.series, x=str(run.x)) for run in runs]
        return pd.concat(parts, ignore_index=True)

    def draw(self, table: pd.DataFrame) -> tuple[plt.Figure, str]:
        """Loss above the dense model's, the mean of the seeds with their standard deviation; a panel for each text."""
        texts = table.text.unique()
        with viz.style():
            canvas, axes = plt.subplots(1, len(texts), figsize=(5.2 * len(texts) + 0.8, 3.8), squeeze=False)
            for axis, text in zip(axes[0], texts, strict=True):
                for place, (series, rows) in enumerate(table[table.text == text].groupby("series", sort=False)):
                    points = rows.groupby("x", sort=False).excess.agg(["mean", "std"])
                    colour, marker, line = _series_style(series, place)
                    axis.errorbar(points.index, points["mean"], points["std"].fillna(0), color=colour, marker=marker,
                                  linestyle=line, capsize=3, label=viz.label_of(series))
                axis.set(xlabel=self.name, ylabel=f"loss above dense on {text} (nats)")
                axis.legend(fontsize=8)
            canvas.suptitle(f"{_title(table)}, sparsity {table.pattern.iloc[0]}", fontsize=9)
        return canvas, self._sentence(table)

    def _sentence(self, table: pd.DataFrame) -> str:
        means = table.groupby(["text", "series", "x"], sort=False).excess.agg(["mean", "std"]).reset_index()
        best = means.loc[means.groupby(["text", "series"], sort=False)["mean"].idxmin()]
        lowest = ", ".join(f"{viz.label_of(row.series)} on {row.text} at {row.x} ({row.mean:.3f} ± {row.std:.3f})"
                           for row in best.itertuples(index=False))
        return (f"loss above dense in nats against {self.name}, sparsity {table.pattern.iloc[0]}, {_title(table)}; lowest: "
                f"{lowest}.")


def _series_style(series: str, place: int) -> tuple[str, str, str]:
    if series.partition(":")[0] in viz.STYLES:
        return viz.style_of(series)
    return f"{0.1 + 0.13 * place:.2f}", "o^sDvP"[place % 6], "-"


def _order_runs(profile: Profile) -> list[Run]:
    switches = {"all at once": "", "in order": "in_order=True", "in order, dense targets": "targets=dense-model"}
    return [Run(method, name, f"{method}:{switch}".rstrip(":"))
            for method, (name, switch) in product(("wanda", "sparsegpt", "admm"), switches.items())]


def _epoch_runs(profile: Profile) -> list[Run]:
    counts = [epochs for epochs in (1, 2, 4, 8, 16) if epochs <= profile.epochs]
    return ([Run("sparsellm:published", epochs, f"sparsellm:published;epochs={epochs}") for epochs in counts]
            + [Run("sparsellm", epochs, LOOP.format(epochs)) for epochs in counts])


ABLATIONS = {
    "samples": Ablation("calibration windows", lambda p: [
        Run(method, size, method, size) for size in p.sizes for method in ("wanda", "sparsegpt", "sparsellm")]),
    "damp": Ablation("damping, as a share of the mean diagonal", lambda p: [
        Run(method, damp, f"{method}:{key}={damp}")
        for method, key in (("sparsegpt", "damp"), ("sparsellm", "ridge")) for damp in DAMPS]),
    "block-size": Ablation("columns in a block", lambda p: [
        Run("sparsegpt", size, f"sparsegpt:block={size}") for size in BLOCK_SIZES]),
    "alpha-beta": Ablation("alpha (gamma = 1)", lambda p: [
        Run(f"beta = {beta:g}", f"{alpha:g}", f"sparsellm:published;alpha={alpha};beta={beta}")
        for beta, alpha in product(p.grid, p.grid)]),
    "epochs": Ablation("epochs of the loop", _epoch_runs),
    "order": Ablation("order of the matrices", _order_runs),
}


# --- convergence: SparseLLM's loop in one block -------------------------------------------------------------------------

def convergence_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """Penalty terms (per token) and true relative error of one block's feed-forward network after each epoch, the blocks
    before it pruned alike."""
    model, tokenizer = load(profile.model)
    family = family_of(model).name
    block, sparsity = FIGURE_3[family]
    block = min(block if profile.block is None else profile.block, len(blocks_of(model)) - 1)
    weights = dense_weights(model)

    def make(key: dict) -> list[dict]:
        restore(model, weights)
        windows = calibration(tokenizer, profile.corpus, samples=profile.samples, seqlen=profile.seqlen, seed=key["seed"])
        report = prune(model, windows, method=named_method(key["method"], family), sparsity=sparsity, progress=False,
                       layers=range(block + 1))
        return [{**row, **_facts(profile, report, model)} for row in report.epochs
                if row["layer"] == block and row["epoch"] < profile.epochs]

    count = profile.epochs + 1      # the last epoch ends with the step for p alone: its terms do not compare with the others
    methods = (f"sparsellm:published;epochs={count}", LOOP.format(count))
    keys = [{**_base(profile), "layers_pruned": f"blocks 0 to {block}", "pattern": sparsity, "method": method, "seed": seed}
            for method, seed in product(methods, profile.seeds)]
    return resumed(file, keys, make, progress)


def draw_convergence(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """The penalty terms of the published loop, and the error that it does not see, against epochs."""
    first = table.iloc[0]
    means = table.groupby(["method", "epoch"], sort=False)[["error", "alpha_term", "beta_term", "gamma_term"]].agg(
        ["mean", "std"])
    with viz.style():
        canvas, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
        published = means.loc[next(name for name in table.method.unique() if "published" in name)]
        for term, line in (("alpha_term", "--"), ("beta_term", "-"), ("gamma_term", ":")):
            left.errorbar(published.index, published[term]["mean"], published[term]["std"].fillna(0), linestyle=line,
                          color=viz.STYLES["sparsellm"][0], marker="v", capsize=2, label=f"{term.split('_')[0]} term")
        left.set(xlabel="epoch", ylabel="penalty a token", yscale="log", title="the published loop's objective")
        for name, rows in means.groupby(level=0, sort=False):
            short = "sparsellm:published" if "published" in name else "sparsellm"
            colour, marker, line = viz.style_of(short)
            error = rows.loc[name].error
            right.errorbar(error.index, error["mean"], error["std"].fillna(0), color=colour, marker=marker, linestyle=line,
                           capsize=2, label=viz.label_of(short))
        right.set(xlabel="epoch", ylabel="relative error of the block's output", title="the error that it stands for")
        for axis in (left, right):
            axis.legend(fontsize=8)
            axis.xaxis.get_major_locator().set_params(integer=True)
        canvas.suptitle(f"block {first.layer} at {first.pattern}, {_title(table)}", fontsize=10)
    ends = [f"{'published' if 'published' in name else 'default'} {rows.error['mean'].iloc[0]:.3f} to "
            f"{rows.error['mean'].iloc[-1]:.3f}" for name, rows in means.groupby(level=0, sort=False)]
    return canvas, (f"SparseLLM's loop in block {first.layer} at {first.pattern}, {_title(table)}: relative output error "
                    f"from the first to the last epoch, {', '.join(ends)}.")


# --- weights: distribution before and after, and which of the large ones stay --------------------------------------------

BINS = torch.linspace(-5, 5, 102)                        # in standard deviations of the dense matrix
GROUPS = 20                                              # by |dense weight|, from the smallest to the largest


def weights_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """By method: share of all weights in each bin (zeros left out; x in standard deviations of the dense matrix), and the
    share kept of each twentieth of the dense weights by size; all pruned matrices together, each in its own scale."""
    model, tokenizer = load(profile.model)
    weights, seed = dense_weights(model), profile.seeds[0]
    windows = calibration(tokenizer, profile.corpus, samples=profile.samples, seqlen=profile.seqlen, seed=seed)

    def make(key: dict) -> list[dict]:
        restore(model, weights)
        method = named_method(key["method"], family_of(model).name)
        report = prune(model, windows, method=method, sparsity=profile.sparsity, layers=profile.layers, progress=False)
        facts = _facts(profile, report, model)
        pruned = [row.name for row in report.rows]
        return [{**row, **facts} for row in distribution({name: weights[name] for name in pruned},
                                                         {name: linears_of(model)[name].weight for name in pruned})]

    keys = [{**_base(profile), "layers_pruned": profile.layers or "all", "pattern": profile.sparsity, "method": method,
             "seed": seed} for method in profile.methods if method.partition(":")[0] not in ("dsnot", "swaps")]
    return resumed(file, keys, make, progress)


def distribution(dense: dict[str, Tensor], pruned: dict[str, Tensor]) -> list[dict]:
    """Rows of quantity ('dense', 'pruned': share of weights in a bin; 'kept': share kept), x and y, from weights [r, c]."""
    sums = {"dense": torch.zeros(len(BINS) - 1), "pruned": torch.zeros(len(BINS) - 1), "kept": torch.zeros(GROUPS)}
    for name, before in dense.items():
        before, after = before.detach().float().cpu(), pruned[name].detach().float().cpu()
        scale = before.std().item()
        for quantity, weight in (("dense", before), ("pruned", after)):
            inside = (weight[weight != 0] / scale).clamp(BINS[0], BINS[-1])
            sums[quantity] += torch.histogram(inside, BINS).hist / before.numel() / len(dense)
        kept = (after != 0).flatten()[before.abs().flatten().argsort()]
        sums["kept"] += torch.stack([part.float().mean() for part in kept.tensor_split(GROUPS)]) / len(dense)
    centres = {"kept": [(place + 0.5) / GROUPS for place in range(GROUPS)]}
    bins = ((BINS[1:] + BINS[:-1]) / 2).tolist()
    return [{"quantity": quantity, "x": round(x, 4), "y": round(y, 8)} for quantity, values in sums.items()
            for x, y in zip(centres.get(quantity, bins), values.tolist(), strict=True)]


def draw_weights(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """Outlines of the distributions on one scale, and the share kept against the size in the dense model."""
    with viz.style():
        canvas, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
        dense = table[(table.quantity == "dense") & (table.method == table.method.iloc[0])]
        left.fill_between(dense.x, dense.y, step="mid", color="#cccccc", label="dense")
        for name, rows in table.groupby("method", sort=False):
            colour, marker, line = viz.style_of(name)
            part, kept = rows[rows.quantity == "pruned"], rows[rows.quantity == "kept"]
            left.step(part.x, part.y, where="mid", color=colour, linestyle=line, label=viz.label_of(name))
            right.plot(100 * kept.x, 100 * kept.y, color=colour, marker=marker, linestyle=line, markersize=4,
                       label=viz.label_of(name))
        left.set(xlabel="weight, in standard deviations of the dense matrix (at ±5 all beyond)", yscale="log",
                 ylabel="share of the weights", title="before (grey) and after")
        right.set(xlabel="place by |weight| in the dense model (%)", ylabel="kept (%)", title="which keep their place")
        right.legend(fontsize=8)
        canvas.suptitle(f"{_title(table)}, sparsity {table.pattern.iloc[0]}", fontsize=10)
    largest = table[(table.quantity == "kept") & (table.x == table[table.quantity == "kept"].x.max())]
    kept = ", ".join(f"{viz.label_of(row.method)} {row.y:.1%}" for row in largest.itertuples())
    return canvas, (f"weights before and after pruning to {table.pattern.iloc[0]}, {_title(table)}; of the twentieth with "
                    f"the largest dense weights is kept: {kept}.")


# --- costs: memory and loss of global, local and SparseLLM pruning --------------------------------------------------------

def costs_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """Memory above the loaded model, seconds and perplexity, each run in a process of its own so that peaks do not mix."""
    keys = [{**profile.sweep().settings(), "steps": profile.steps, "method": method, "pattern": profile.sparsity,
             "seed": seed} for method, seed in product(COSTS, profile.seeds)]

    def make(key: dict) -> list[dict]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            rows = process.submit(cost, profile, key["method"], key["seed"]).result()
        return [{name: value for name, value in row.items() if name not in key} for row in rows]

    return resumed(file, keys, make, progress)


def cost(profile: Profile, name: str, seed: int) -> list[dict]:
    """One run, measured: rows as in a sweep, with the memory that it took above the loaded model."""
    sweep = profile.sweep()
    model, tokenizer = load(profile.model)
    windows = calibration(tokenizer, profile.corpus, samples=profile.samples, seqlen=profile.seqlen, seed=seed)
    original = copy.deepcopy(model.state_dict())
    before = reset_peak(model.device)
    method = named_method("magnitude:scope=global" if name == GLOBAL else name, family_of(model).name)
    report = sweep.prune(model, windows, method, Pattern.parse(profile.sparsity))
    if name == GLOBAL:
        _train(model, windows, profile, report, seed)
    extra = round((peak_bytes(model.device) - before) / 2**20, 1)
    more = {text: {**sweep.more(model, report, text), "extra_mib": extra} for text in map(_name, profile.texts)}
    pruned = _perplexities(model, profile)
    model.load_state_dict(original)
    dense = _perplexities(model, profile)
    return [{**sweep.row(seed, profile.sparsity, name, report, text, dense[text], pruned[text]), **more[text]}
            for text in pruned]


def _perplexities(model: nn.Module, profile: Profile) -> dict[str, Perplexity]:
    """By the text's name."""
    limit = profile.windows * profile.seqlen
    return {_name(text): perplexity(model, tokens(tokenizer_of(model), text)[:limit], seqlen=profile.seqlen, progress=False)
            for text in profile.texts}


def _name(text: str) -> str:
    return Path(text).name


def _train(model: nn.Module, windows: Tensor, profile: Profile, report: Report, seed: int) -> None:
    """Against the loss of the whole model at once; goes into the report."""
    started = time.perf_counter()
    finetune(model, windows, steps=profile.steps, batch=min(8, len(windows)), seed=seed, progress=False)
    report.seconds["total"] += time.perf_counter() - started
    report.settings["method"] += f" + finetune(steps={profile.steps})"


def draw_costs(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """Loss above dense against memory, one point a method (mean of the seeds), its seconds beside it."""
    rows = table[table.text == table.text.iloc[0]]
    means = rows.groupby("method", sort=False)[["extra_mib", "excess", "seconds"]].agg(["mean", "std"]).fillna(0)
    with viz.style():
        canvas, axis = plt.subplots(figsize=(6.4, 4))
        for name, row in means.iterrows():
            colour, marker, _ = viz.style_of(name)
            axis.errorbar(row.extra_mib["mean"], row.excess["mean"], row.excess["std"], row.extra_mib["std"], color=colour,
                          marker=marker, capsize=3, markersize=8, linestyle="none", label=viz.label_of(name))
            axis.annotate(f" {row.seconds['mean']:.0f} s", (row.extra_mib["mean"], row.excess["mean"]), fontsize=8)
        axis.set(xlabel="memory above the loaded model (MiB)", ylabel=f"loss above dense on {rows.text.iloc[0]} (nats)")
        axis.legend(fontsize=8)
        axis.set_title(f"{_title(table)}, sparsity {table.pattern.iloc[0]}", fontsize=9)
    points = ", ".join(f"{viz.label_of(name)} {row.extra_mib['mean']:.0f} MiB, {row.excess['mean']:.3f} nats, "
                       f"{row.seconds['mean']:.0f} s" for name, row in means.iterrows())
    return canvas, (f"memory above the loaded model, loss above dense and time at {table.pattern.iloc[0]}, {_title(table)}: "
                    f"{points}.")


# --- what the figures share -----------------------------------------------------------------------------------------------

def _base(profile: Profile) -> dict:
    return {"model": profile.model, "calibration": Path(profile.corpus).name, "samples": profile.samples,
            "seqlen": profile.seqlen}


def _facts(profile: Profile, report: Report, model: nn.Module) -> dict:
    """The protocol of a row that no sweep made."""
    settings = report.settings
    return {"sparsity": round(report.sparsity, 6), "calibration_sha256": sha256_of(profile.corpus, "calibration"),
            "revision": revision(model), "dtype": settings["dtype"], "device": settings["device"],
            "settings": settings["method"], "seconds": round(report.seconds["total"], 2),
            **{f"{name}_version": value for name, value in settings["versions"].items()}}


@dataclass(frozen=True)
class Figure:
    """How a figure's table is made, kept in a CSV file and resumed, and how it is drawn and described."""

    table: Callable[[Profile, Path, bool], pd.DataFrame]
    draw: Callable[[pd.DataFrame], tuple[plt.Figure, str]]


FIGURES = {"sparsity": Figure(sparsity_table, draw_sparsity), "convergence": Figure(convergence_table, draw_convergence),
           "weights": Figure(weights_table, draw_weights), "costs": Figure(costs_table, draw_costs),
           **{name: Figure(ablation.table, ablation.draw) for name, ablation in ABLATIONS.items()}}


def figure(name: str, *, profile: str | Profile = "mini", folder: str | Path = FOLDER, progress: bool = True, **changes
           ) -> tuple[pd.DataFrame, plt.Figure, str]:
    """A figure by name: its table, the drawing, and a sentence that describes it (`sl.viz.show(drawing, sentence)`).

    profile: 'mini' (opt-mini, minutes on a CPU), 'small' (smollm2-135m), 'paper' (128 x 2048 tokens of C4, whole texts),
    or a Profile; changes: any of its fields, such as model='facebook/opt-1.3b' or layers='first half'. folder: where the
    table is kept, as NAME-MODEL.csv; rows that are there are not made again.
    """
    if name not in FIGURES:
        raise SparselabError(f"unknown figure {name!r}.{nearest(name, FIGURES)}")
    if isinstance(profile, str) and profile not in PROFILES:
        raise SparselabError(f"unknown profile {profile!r}.{nearest(profile, PROFILES)}")
    chosen = replace(PROFILES[profile] if isinstance(profile, str) else profile, **changes)
    if chosen.layers not in (None, "first half"):
        raise SparselabError(f"layers={chosen.layers!r}: a figure prunes all layers (None) or the 'first half'.")
    table = FIGURES[name].table(chosen, Path(folder) / f"{name}-{Path(chosen.model).name}.csv", progress)
    return table, *FIGURES[name].draw(table)
