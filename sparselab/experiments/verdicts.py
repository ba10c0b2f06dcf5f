"""What of the papers held here: each claim judged by recorded rows, in words and numbers.

A method is ahead of another in a cell (model, text, pattern) where its loss is lower by more than
two standard errors, the two errors added as if they were independent. Both were measured on the
same windows, so that the true error of the difference is smaller: what is called undecided may be
decided, and not the other way round.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from ..runtime.files import ROOT
from ..viz import label_of
from .figures.recorded import sizes_table
from .figures.zeroshot import distance, right_answers
from .profiles import PROFILES
from .registry import entry
from .results import read
from .sweep import NotRecorded
from .tables import as_markdown, significant

HELD, PARTLY, NOT, UNTESTED = "held", "in part", "did not hold", "not testable here"
DOUBT = 2  # standard errors
LITTLE = 1.5  # times: what a loss may change by where something "hardly matters"
STILL = 0.02  # what the last epoch may lower the error by where a loop "converges"
NOTHING = 0.05  # nats a token: less costs "next to nothing"
CELL = ["model", "samples", "text", "pattern"]


@dataclass(frozen=True)
class Claim:
    """What a paper says; which entries of the registry show it; and a function that looks at the
    recorded rows and gives a verdict and the numbers it stands on."""

    words: str
    paper: str
    entries: tuple[str, ...]
    judged: Callable[[], tuple[str, str]]

    def judge(self) -> tuple[str, str]:
        """Verdict and numbers; without rows there is none."""
        try:
            return self.judged()
        except NotRecorded as error:
            return UNTESTED, str(error)


def recorded(name: str) -> pd.DataFrame:
    """A table of bench/, such as 'opt-mini.csv' or 'figures/costs-opt-mini.csv'; a `NotRecorded`
    error where it is not there."""
    file = ROOT / "bench" / name
    if not file.exists():
        raise NotRecorded(f"no rows yet: bench/{name}")
    return read(file)


def sweeps() -> pd.DataFrame:
    """The rows of all methods on both models."""
    return pd.concat([recorded("opt-mini.csv"), recorded("smollm2.csv")], ignore_index=True)


# Comparisons of two methods


def cells(table: pd.DataFrame, method: str, other: str) -> pd.DataFrame:
    """By cell: by how much the method's loss is lower than the other's, in nats a token, and the
    standard error of that. Cells that lack one of the two are left out."""
    values = {}
    for name in (method, other):
        rows = table[table.method == name]
        values[name] = rows.groupby(CELL, sort=False)[["excess", "excess_stderr"]].mean()
    mine, theirs = values[method].align(values[other], join="inner")
    error = np.hypot(mine.excess_stderr, theirs.excess_stderr)
    return pd.DataFrame({"lower": theirs.excess - mine.excess, "error": error})


def duel(
    table: pd.DataFrame, method: str, others: Iterable[str], patterns: Iterable[str] = ()
) -> tuple[str, str]:
    """Whether a method is ahead of others, cell by cell; in part, where models differ, however many
    cells each has."""
    chosen = table[table.pattern.isin(list(patterns))] if patterns else table
    found = pd.concat([cells(chosen, method, other) for other in others])
    if found.empty:
        return UNTESTED, "no rows"
    ahead, behind = found.lower > DOUBT * found.error, found.lower < -DOUBT * found.error
    words, verdicts = [], set()
    for model in found.index.get_level_values("model").unique():
        here = found.index.get_level_values("model") == model
        verdicts.add(_verdict(int(ahead[here].sum()), int(behind[here].sum())))
        words.append(
            f"{model}: ahead in {ahead[here].sum()} of {here.sum()} cells, behind in"
            f" {behind[here].sum()}, by {_range(found.lower[here])} nats"
        )
    return verdicts.pop() if len(verdicts) == 1 else PARTLY, "; ".join(words)


def _verdict(ahead: int, behind: int) -> str:
    """From how many cells speak for a claim, and how many against it."""
    if ahead and not behind:
        return HELD
    if ahead > behind:
        return PARTLY
    return NOT


def _share(holds: Iterable[bool]) -> str:
    """Of a claim about several things alike, from whether each one holds."""
    holds = list(holds)
    if all(holds):
        return HELD
    return PARTLY if any(holds) else NOT


def _range(values: pd.Series) -> str:
    low, high = significant(values.min(), 2), significant(values.max(), 2)
    return low if low == high else f"{low} to {high}"


def not_worse(
    table: pd.DataFrame, method: str, other: str, patterns: Iterable[str]
) -> tuple[str, str]:
    """Whether a method is nowhere behind another."""
    found = cells(table[table.pattern.isin(list(patterns))], method, other)
    if found.empty:
        return UNTESTED, "no rows"
    behind = found.lower < -DOUBT * found.error
    words = []
    for model, rows in found.groupby(level="model", sort=False):
        here = behind[rows.index]
        words.append(
            f"{model}: behind in {here.sum()} of {len(rows)} cells, by {_range(-rows.lower)} nats"
        )
    return _share(~behind), "; ".join(words)


# Claims that are no duel


def _few_windows() -> tuple[str, str]:
    table = recorded("figures/samples-opt-mini.csv")
    by_size = table[table.method == "wanda"].groupby("samples").excess.agg(["mean", "std", "count"])
    few, many = by_size.iloc[0], by_size.iloc[-1]
    lost = few["mean"] - many["mean"]
    error = (few["std"] ** 2 / few["count"] + many["std"] ** 2 / many["count"]) ** 0.5
    sizes = by_size.index[0], by_size.index[-1]
    return HELD if lost < DOUBT * error else PARTLY, (
        f"opt-mini, 70 %: {sizes[0]} windows lose {lost:.3f} ± {error:.3f} nats more than"
        f" {sizes[1]}, of {many['mean']:.2f}"
    )


def _free_half() -> tuple[str, str]:
    table = sweeps()
    rows = table[(table.method == "sparsegpt") & (table.pattern == "0.5")]
    most = rows.groupby("model", sort=False).excess.max()
    words = [f"{model}: at most {loss:.2f} nats" for model, loss in most.items()]
    return _share(most < NOTHING), f"{'; '.join(words)} (next to nothing: below {NOTHING})"


def _larger_lose_less() -> tuple[str, str]:
    table = sizes_table(PROFILES["mini"], Path(), False)
    excess = np.log(table.sparsegpt / table.dense)
    ends = f"{excess.iloc[0]:.3f} at {table.billions.iloc[0]:g}b"
    ends += f", {excess.iloc[-1]:.3f} at {table.billions.iloc[-1]:g}b"
    return UNTESTED, f"two small models decide nothing; published, OPT: {ends} nats"


def _groups_cost() -> tuple[str, str]:
    table = sweeps()
    rows = table[table.pattern.isin(("0.5", "4:8", "2:4"))]
    groups = rows.groupby(["model", "text", "method", "pattern"])
    values = groups.excess.mean().unstack("pattern")
    errors = groups.excess_stderr.mean().unstack("pattern")
    more = less = total = 0
    for easier, harder in (("0.5", "4:8"), ("4:8", "2:4"), ("0.5", "2:4")):
        cost = (values[harder] - values[easier]).dropna()
        doubt = DOUBT * np.hypot(errors[harder], errors[easier])[cost.index]
        more, less = more + int((cost > doubt).sum()), less + int((cost < -doubt).sum())
        total += len(cost)
    return _verdict(more, less), (
        f"the stricter pattern costs more in {more} of {total} comparisons, less in {less}"
    )


def _spread_of(name: str, method: str, default: str) -> tuple[bool, str]:
    """Whether the worst value of an ablation is near the best, and where the default lies."""
    table = recorded(f"figures/{name}-opt-mini.csv")
    table = table[table.method.str.startswith(method)]
    means = table.groupby("method", sort=False).excess.mean()
    best, worst, ours = means.min(), means.max(), means[default]
    words = f"{name}: {best:.3f} to {worst:.3f} nats, the paper's value {ours:.3f}"
    return worst < LITTLE * best, words


def _damping_and_blocks() -> tuple[str, str]:
    damping = _spread_of("damp", "sparsegpt", "sparsegpt:damp=0.01")
    blocks = _spread_of("block-size", "sparsegpt", "sparsegpt:block=128")
    return _share([damping[0], blocks[0]]), (
        f"opt-mini, 70 %; {damping[1]}; {blocks[1]} (hardly: below {LITTLE} times)"
    )


def _costs(method: str = "global") -> tuple[pd.Series, pd.Series]:
    table = recorded("figures/costs-opt-mini.csv").groupby("method", sort=False)
    means = table[["extra_mib", "excess", "seconds"]].mean()
    return means.loc[method], means.loc["sparsegpt"]


def _global_memory() -> tuple[str, str]:
    times = {}
    for name in ("global", "admm:guided"):
        whole, local = _costs(name)
        times[name] = whole.extra_mib / local.extra_mib
    return HELD if times["global"] > DOUBT else NOT, (
        f"opt-mini: training against the global loss takes {times['global']:.1f} times the memory"
        f" of SparseGPT beside the model (too much: above {DOUBT} times; the recommended call,"
        f" which asks the loss for gradients, takes {times['admm:guided']:.1f} times)"
    )


def _global_accuracy() -> tuple[str, str]:
    words, ahead = [], []
    for name, called in (("global", "text's own loss"), ("global:elsa", "dense predictions, ELSA")):
        whole, local = _costs(name)
        ahead.append(whole.excess < local.excess)
        words.append(f"{called} {whole.excess:.3f} nats in {whole.seconds:.0f} s")
    words.append(f"SparseGPT {local.excess:.3f} in {local.seconds:.0f} s")
    return _share(ahead), f"opt-mini, 70 %: {'; '.join(words)}"


def _loop_converges() -> tuple[str, str]:
    words, settled = [], []
    for model in ("opt-mini", "smollm2-135m"):
        table = recorded(f"figures/convergence-{model}.csv")
        table = table[table.method.str.startswith("sparsellm:published")]
        by_epoch = table.groupby("epoch").error.mean()
        share = by_epoch.iloc[-1] / by_epoch.iloc[0]
        last = 1 - by_epoch.iloc[-1] / by_epoch.iloc[-2]
        settled.append(0 <= last < STILL and share < 1)
        words.append(
            f"{model}, block {table.layer.iloc[0]}, {table.pattern.iloc[0]}: the error after"
            f" {by_epoch.index[-1] + 1} epochs is {share:.2f} of that after the first, and the last"
            f" epoch lowers it by {100 * last:.1f} %"
        )
    return _share(settled), f"{'; '.join(words)} (converged: below {100 * STILL:.0f} %)"


def _as_released() -> tuple[str, str]:
    """Its gate's steps are bounded; what the released steps, of a fixed rate, do is said beside."""
    verdict, numbers = duel(sweeps(), "sparsellm:published", ["sparsegpt"], FROM_70)
    row = recorded("gated_loop.csv").query("text == 'demo' and pattern == '0.7'").iloc[0]
    return verdict, (
        f"{numbers} with bounded steps for the gate; the released ones, of a fixed rate, lose"
        f" {row.model}: {row.excess:.1f} nats above dense at 70 %, one draw"
    )


def _penalties() -> tuple[str, str]:
    table = recorded("figures/alpha-beta-opt-mini.csv")
    pairs = table.method.str.extract(r"alpha=([\d.]+);beta=([\d.]+)").astype(float)
    means = table.assign(alpha=pairs[0], beta=pairs[1]).groupby(["alpha", "beta"]).excess.mean()
    by_beta = means.groupby("alpha").agg(lambda rows: rows.max() / rows.min()).max()
    by_alpha = means.groupby("beta").agg(lambda rows: rows.max() / rows.min()).max()
    return _share(ratio < LITTLE for ratio in (by_alpha, by_beta)), (
        f"opt-mini, 70 %, as released: the loss changes by up to {by_alpha:.1f} times with alpha,"
        f" by {by_beta:.2f} with beta (hardly: below {LITTLE})"
    )


def _beyond_the_matrix() -> tuple[str, str]:
    """SparseGPT and ADMM with the dense model's stream or output as their target."""
    table = recorded("ablation.csv")
    losses = table.groupby("method", sort=False).excess.mean()
    words, better = [], []
    for method in ("sparsegpt", "admm"):
        alone, aimed = losses[method], losses[f"{method}:targets=dense-model"]
        better.append(aimed < alone)
        words.append(f"{label_of(method)} {alone:.3f} to {aimed:.3f}")
    web = recorded("places-web.csv").groupby("method", sort=False).excess_spread.mean()
    for method in ("wanda", "sparsegpt", "admm"):
        alone, aimed = web[method], web[f"{method}:targets=dense-model"]
        better.append(aimed < alone)
        words.append(f"with web text {label_of(method)} {alone:.3f} to {aimed:.3f}")
    return _share(better), f"opt-mini, 70 %, nats: {'; '.join(words)}"


def _outliers() -> tuple[str, str]:
    table = recorded("divisions.csv")
    by = table.groupby(["text", "division"], sort=False).excess.first().unstack("division")
    error = table.groupby(["text", "division"]).excess_stderr.first().unstack("division")
    words = [
        f"{text} {row.uniform:.3f} ± {error.uniform[text]:.3f} to"
        f" {row.owl:.3f} ± {error.owl[text]:.3f}"
        for text, row in by.iterrows()
    ]
    first = table.iloc[0]
    return _share(by.owl < by.uniform), (
        f"{first.model}, {first.pattern}, {first.method}, nats: {'; '.join(words)}"
    )


def _zeroshot() -> tuple[str, str]:
    """Every two methods, the one of lower perplexity first, as both tables have them."""
    table = recorded("figures/zeroshot-smollm2-135m.csv")
    first = table.iloc[0]
    same = recorded("smollm2.csv").query(
        "pattern == @first.pattern and text == 'demo' and seed == @first.seed"
        " and samples == @first.samples and seqlen == @first.seqlen"
    )
    perplexity = same.groupby("method").perplexity.first().sort_values()
    right = right_answers(table)
    ordered = [method for method in perplexity.index if method in right]
    pairs, decided = list(combinations(ordered, 2)), {}
    for better, worse in pairs:
        gap, error = distance(right[better], right[worse])
        if abs(gap) > DOUBT * error:
            decided[better, worse] = gap, error
    agree = sum(gap > 0 for gap, _ in decided.values())
    verdict = HELD if agree == len(decided) > len(pairs) / 2 else PARTLY if agree else NOT
    words = [
        f"{label_of(better)} - {label_of(worse)} {100 * gap:+.1f} ± {100 * error:.1f}"
        for (better, worse), (gap, error) in decided.items()
    ]
    shown = [*ordered, "dense"]
    shares = [f"{label_of(method)} {100 * right[method].mean():.1f}" for method in shown]
    return verdict, (
        f"smollm2-135m, {first.pattern}, {len(right[first.method])} items, % right, from the lowest"
        f" perplexity up: {', '.join(shares)}; decided: {'; '.join(words)}"
    )


def _faster_products() -> tuple[str, str]:
    table = recorded("sparse_products.csv")
    if "cuda" in set(table.device):
        rows = table[(table.device == "cuda") & (table.sparsity == 0.5)]
        speed = (rows.dense_us / rows.sparse_us).max()
        return HELD if speed > 1 else NOT, f"at best {speed:.2f} times as fast"
    return UNTESTED, "no GPU has run it yet"


FROM_70 = ("0.7", "0.8", "0.9")
CLAIMS = (
    Claim(
        "Weighing by the inputs beats magnitude",
        "Wanda",
        ("wanda-table",),
        lambda: duel(sweeps(), "wanda", ["magnitude"]),
    ),
    Claim(
        "At 50 % Wanda is as good as SparseGPT",
        "Wanda",
        ("wanda-table",),
        lambda: not_worse(sweeps(), "wanda", "sparsegpt", ["0.5"]),
    ),
    Claim("Wanda needs only a few calibration windows", "Wanda", ("wanda-samples",), _few_windows),
    Claim("Half of the weights cost next to nothing", "SparseGPT", ("sparsegpt-size",), _free_half),
    Claim("Larger models lose less", "SparseGPT", ("sparsegpt-size",), _larger_lose_less),
    Claim("4:8 costs more than free choice, 2:4 more", "SparseGPT", ("wanda-table",), _groups_cost),
    Claim(
        "Damping and the columns in a block hardly matter",
        "SparseGPT",
        ("sparsegpt-damping", "sparsegpt-block-size"),
        _damping_and_blocks,
    ),
    Claim(
        "Moving Wanda's mask by the expected error lowers the loss",
        "DSnoT",
        ("dsnot-table-1", "dsnot-sparsity"),
        lambda: duel(sweeps(), "dsnot:wanda", ["wanda"]),
    ),
    Claim(
        "So it does by its published switches (attention alone, no sign rule)",
        "DSnoT",
        ("dsnot-table-1", "dsnot-starts"),
        lambda: duel(sweeps(), "dsnot:published", ["wanda"]),
    ),
    Claim(
        "Global pruning takes too much memory", "SparseLLM", ("sparsellm-figure-1",), _global_memory
    ),
    Claim(
        "Global pruning is the accurate one", "SparseLLM", ("sparsellm-figure-1",), _global_accuracy
    ),
    Claim(
        "The loop converges within a few epochs",
        "SparseLLM",
        ("sparsellm-figure-3-left", "sparsellm-figure-3-right"),
        _loop_converges,
    ),
    Claim(
        "From 70 % on it beats SparseGPT: the paper's formulas",
        "SparseLLM",
        ("sparsellm-table-1", "sparsellm-table-2"),
        lambda: duel(sweeps(), "sparsellm:paper", ["sparsegpt"], FROM_70),
    ),
    Claim(
        "From 70 % on it beats SparseGPT: the code as released, a gate's steps bounded",
        "SparseLLM",
        ("sparsellm-table-1", "sparsellm-table-2"),
        _as_released,
    ),
    Claim(
        "From 70 % on it beats SparseGPT: with its regression repaired",
        "SparseLLM",
        ("sparsellm-table-1", "sparsellm-table-2"),
        lambda: duel(sweeps(), "sparsellm:repaired", ["sparsegpt"], FROM_70),
    ),
    Claim(
        "A target beyond the single matrix is worth having",
        "SparseLLM",
        ("sparsellm-table-1",),
        _beyond_the_matrix,
    ),
    Claim("The penalties hardly matter", "SparseLLM", ("sparsellm-alpha-beta",), _penalties),
    Claim("Zeros by outliers beat the uniform share", "OWL", ("owl-table",), _outliers),
    Claim(
        "Zero-shot accuracy rises with the better method",
        "all",
        ("sparsellm-zero-shot", "dsnot-zero-shot"),
        _zeroshot,
    ),
    Claim("2:4 runs faster on a GPU", "SparseGPT, Wanda", ("future-hardware",), _faster_products),
    Claim(
        "The recommended call is nowhere behind a published method (Wanda, SparseGPT, ALPS, DSnoT,"
        " SparseLLM)",
        "sparselab",
        ("sparsellm-table-1",),
        lambda: duel(sweeps(), "admm:guided", RIVALS),
    ),
)
RIVALS = ("wanda", "sparsegpt", "alps", "dsnot:published", "sparsellm:published", "sparsellm:paper")


@dataclass(frozen=True)
class Verdict:
    """A claim, what became of it, and the numbers that say so."""

    claim: Claim
    word: str
    numbers: str


def verdicts_of(claims: Iterable[Claim] = CLAIMS) -> list[Verdict]:
    """Every claim judged; a SparselabError for an entry that the registry does not have."""
    for claim in claims:
        for name in claim.entries:
            entry(name)
    return [Verdict(claim, *claim.judge()) for claim in claims]


def table_of(verdicts: Iterable[Verdict], numbers: bool = True) -> str:
    """Verdicts as a Markdown table; numbers: with what they stand on, and where that is drawn."""
    lines = [["claim", "paper", "here", *(["numbers", "drawn by"] if numbers else [])]]
    for verdict in verdicts:
        claim = verdict.claim
        lines.append([claim.words, claim.paper, f"**{verdict.word}**"])
        if numbers:
            names = ", ".join(f"`figure {name}`" for name in claim.entries)
            lines[-1] += [verdict.numbers, names]
    return as_markdown(lines)
