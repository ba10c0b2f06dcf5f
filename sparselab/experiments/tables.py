"""What recorded sweeps say, as Markdown: for the README and for bench/tables.md, both written by
`make tables`."""

import datetime
import math
from pathlib import Path

import pandas as pd
import torch

from .. import viz
from ..errors import SparselabError
from ..patterns import Pattern
from .results import machine, read

BEGIN, END = "<!-- made by `make {}`: begin -->", "<!-- end -->"
BASE = "sparsegpt"
RECORDED = {
    "opt-mini.csv": "All methods and patterns",
    "ladder.csv": "What each ingredient of the recommended call is worth",
    "ablation.csv": "What each idea is worth on its own",
    "few-tokens.csv": "An eighth of the calibration tokens",
    "smollm2.csv": "A model of the LLaMA family",
    "published.csv": (
        "SparseLLM: the paper's mathematics, the code as released, the loop repaired (three seeds)"
    ),
    "published_loop.csv": "The released loop with one change (three seeds)",
    "dsnot.csv": "DSnoT by its published switches (three seeds)",
    "divisions.csv": "Zeros divided among the matrices in other ways, the solver the same",
    "distil.csv": "Training end to end after the recommended call, in a column of its own",
}
COSTED = ("ladder.csv",)  # tables with minutes and memory
NAMED_BY = {"divisions.csv": "division", "distil.csv": "stage"}  # where not by their method
# What a table must not mix.
SETTING = ["model", "calibration", "samples", "seqlen", "text", "windows"]
DIGITS, SHARE_DIGITS = 3, 2  # what survives a change of machine, or nearly
DEMO = {"calibration": "the demo's web pages", "text": "the demo's Wikipedia articles"}
SEEDS = "seeds.csv"  # few cells, three seeds: what claims rest on


def claims(table: pd.DataFrame, base: str = BASE) -> pd.DataFrame:
    """Excess log-perplexity over dense as a share of the base method's, by model, text and pattern;
    mean over seeds."""
    keys = ["model", "text", "pattern"]
    excess = table.groupby([*keys, "method"], sort=False).excess.mean().unstack("method")
    return _shares_of(excess, base)


def _shares_of(excess: pd.DataFrame, base: str) -> pd.DataFrame:
    if base not in excess:
        raise SparselabError(
            f"the table has no row of {base}, whose excess is the measure here. Run the sweep with"
            " it too, or choose another base method."
        )
    return excess.div(excess[base], axis=0)


def written(folder: Path, texts: int | None = None) -> str:
    """The tables of a folder of sweeps, those there are: the first so many texts of each (None:
    all), then the seeds."""
    parts = []
    for name, title in RECORDED.items():
        if (folder / name).exists():
            parts += [f"### {title}", *by_text(folder / name, texts)]
    if (folder / SEEDS).exists():
        parts += ["### Three calibration seeds", by_seed(folder / SEEDS)]
    return "\n\n".join(parts)


def by_text(file: Path, texts: int | None = None) -> list[str]:
    """For each setting of a sweep and each of its texts (the first so many; None: all) the
    perplexities by method and pattern, the lowest of a pattern bold, in brackets the excess
    log-perplexity as a share of SparseGPT's; where that is not in the table, as it is."""
    measure = "in brackets the excess log-perplexity over dense"
    measure += ", in nats" if file.name in NAMED_BY else " as a share of SparseGPT's"
    table = read(file)
    table = table[table.text.isin(table.text.unique()[:texts])]
    if file.name in NAMED_BY:
        table = table.assign(method=table[NAMED_BY[file.name]])
    parts = table.groupby(SETTING, sort=False)
    costs = file.name in COSTED
    nats = file.name in NAMED_BY
    return [f"{_caption(rows)}; {measure}\n\n{_cells(rows, costs, nats)}" for _, rows in parts]


def by_seed(file: Path) -> str:
    """Mean, lowest and highest share of SparseGPT's excess over the calibration seeds, by setting
    and pattern."""
    table = read(file)
    keys = [*SETTING, "pattern"]
    excess = table.groupby([*keys, "seed", "method"], sort=False).excess.mean().unstack("method")
    shares = _shares_of(excess, BASE).drop(columns=BASE).dropna(how="all")  # one method alone
    methods = [method for method in table.method.unique() if method in shares]
    lines = [["model", "calibration", "text", "pattern", "seeds", *methods]]
    for setting, rows in shares.groupby(keys, sort=False):
        model, calibration, samples, seqlen, text, windows, pattern = setting
        read_from, judged_by = _text_name("calibration", calibration), _text_name("text", text)
        windows_of = [f"{samples} x {seqlen} of {read_from}", f"{judged_by}, {windows} windows"]
        spreads = [_spread(rows[method]) for method in methods]
        lines.append([model, *windows_of, pattern, len(rows), *spreads])
    return (
        "Excess log-perplexity over dense as a share of SparseGPT's with the same calibration;"
        f" mean, and lowest to highest of the seeds; {made_on(table)}\n\n{as_markdown(lines)}"
    )


def as_markdown(rows: list[list]) -> str:
    """Rows of cells as Markdown, the first as the head."""
    head, *body = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def significant(value: float, digits: int) -> str:
    """A number in so many significant digits, without an exponent: 1656 in three is '1660', 0.1946
    in two '0.19'."""
    if not math.isfinite(value) or value == 0:
        return str(value)
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):.{max(places, 0)}f}"


def _spread(values: pd.Series) -> str:
    if values.isna().all():
        return ""
    ends = (values.mean(), values.min(), values.max())
    spread = "{} ({} to {}".format(*[significant(end, SHARE_DIGITS) for end in ends])
    known = values.count()
    return spread + (")" if known == len(values) else f"; {known} of {len(values)} seeds)")


def _text_name(role: str, name: str) -> str:
    """What a text is called, where one name stands for two."""
    return DEMO[role] if name == "demo" else name


def _caption(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    text, calibration = _text_name("text", first.text), _text_name("calibration", first.calibration)
    place = "from all over, " if "places" in rows else "first "
    return (
        f"**{first.model}**, perplexity on {text} ({place}{first.windows} windows of"
        f" {first.seqlen} tokens; dense {significant(first.dense, DIGITS)}); calibration"
        f" {first.samples} x {first.seqlen} tokens of {calibration}; {made_on(rows)}"
    )


def made_on(rows: pd.DataFrame) -> str:
    """On which machine and when rows were made, as they say: processor, threads, torch, first and
    last day."""
    kinds = rows[["machine", "threads", "torch_version"]].drop_duplicates()
    made = sorted(_setting_of(*kind) for kind in kinds.itertuples(index=False))
    days = " to ".join(sorted({rows.date.min(), rows.date.max()}))
    return f"made on {'; '.join(made)}, {days}"


def _setting_of(name: str, threads: int, version: str) -> str:
    return f"{name}, {threads} thread{'s' * (threads > 1)}, torch {version}"


def _cells(rows: pd.DataFrame, costs: bool = False, nats: bool = False) -> str:
    """A line for each method; costs: with the minutes of its longest run and the memory of the
    process in its largest one, where rows have it; nats: the excess as it is, not as a share."""
    means = rows.groupby(["method", "pattern"], sort=False)[["perplexity", "excess"]].mean()
    patterns = sorted(rows.pattern.unique(), key=lambda pattern: Pattern.parse(pattern).sparsity)
    lines = [["method", *patterns, *(["minutes", "peak MiB"] if costs else [])]]
    for method in rows.method.unique():
        lines.append([method, *[_cell(means, method, pattern, nats) for pattern in patterns]])
        if costs:
            mine = rows[rows.method == method]
            peak = mine.peak_mib.max()
            lines[-1] += [f"{mine.seconds.max() / 60:.1f}", "" if pd.isna(peak) else f"{peak:.0f}"]
    return as_markdown(lines)


def _cell(means: pd.DataFrame, method: str, pattern: str, nats: bool = False) -> str:
    if (method, pattern) not in means.index:
        return ""
    value, excess = means.loc[(method, pattern)]
    base = 1.0 if nats else means.excess.get((BASE, pattern), float("nan"))
    bold = "**" if value == means.perplexity.xs(pattern, level="pattern").min() else ""
    cell = f"{bold}{significant(value, DIGITS)}{bold}"
    if base > 0.02:  # a share of next to nothing says nothing
        cell += f" ({significant(excess / base, SHARE_DIGITS)})"
    return cell


def markdown(table: pd.DataFrame) -> str:
    """A comparison's table as Markdown: every number with model, text, window length and sparsity,
    and where all were made."""
    paired = "against dense (log, paired)"
    names = ["model", "evaluation text", "method", "zeros", "perplexity", paired]
    lines = [[*names, "output error", "seconds"]]
    for row in table.itertuples():
        cells = [row.model, row.text, viz.label_of(row.method), f"{row.sparsity:.1%}"]
        cells.append(rounded(row.perplexity, row.stderr))
        if row.method == "dense":
            cells += ["", "", ""]
        else:
            cells.append(rounded(row.excess, row.excess_stderr, "+"))
            cells += [f"{row.error:.2f}", f"{row.seconds:.0f}"]
        lines.append(cells)
    here = _setting_of(machine(), torch.get_num_threads(), torch.__version__)
    return (
        f"{as_markdown(lines)}\n\nMade on {here}, {datetime.date.today().isoformat()}. On other"
        " processors a few masks flip: numbers differ by about their errors."
    )


def rounded(value: float, error: float, sign: str = "") -> str:
    """A number with its error, in the digits that the error leaves it: 78.04 ± 2.83 is '78 ± 3'."""
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:{sign}.3g} ± {error:.1g}"
    places = max(0, -math.floor(math.log10(error)))
    return f"{value:{sign}.{places}f} ± {error:.{places}f}"


def insert(readme: Path, text: str, command: str = "readme") -> None:
    """Put a text between the markers that name its command, `make readme`."""
    begin = BEGIN.format(command)
    content = readme.read_text(encoding="utf8") if readme.is_file() else ""
    head, found, rest = content.partition(begin)
    if not found or END not in rest:
        raise SparselabError(
            f"{readme} holds no lines {begin} and {END} to put the text between. Write them where"
            " it goes."
        )
    tail = rest.split(END, 1)[1]
    readme.write_text(f"{head}{begin}\n{text}\n{END}{tail}", encoding="utf8")
