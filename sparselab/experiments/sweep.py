"""Many prunings of one model as a table: every row says all that is needed to make it again."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from ..engine.planning import plan
from ..errors import SparselabError
from ..methods.registry import named_method
from ..patterns import Pattern
from .experiment import Experiment
from .results import append, name_of, read, read_from, rows_matching
from .subject import subject_of

METHODS = (  # of the course
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
BEYOND = ("alps", "admm:guided", "admm:guided;reconstruct=True")  # what the course does not derive
PATTERNS = ("0.5", "0.6", "0.7", "0.8", "0.9", "2:4", "4:8", "3:4")


def jobs_of(
    seeds: Iterable[int], patterns: Iterable[str], methods: Iterable[str]
) -> list[dict[str, int | str]]:
    """All combinations, as `Experiment.prune` and `.row` take them: seed, pattern, method."""
    names = ("seed", "pattern", "method")
    return [dict(zip(names, job, strict=True)) for job in product(seeds, patterns, methods)]


class NotRecorded(SparselabError):
    """Rows are missing, and none were to be made."""


@dataclass(frozen=True)
class Sweep(Experiment):
    """An experiment whose rows are kept in a CSV file: a job is done when its rows are there, and
    an interrupted run goes on where it stopped.

    recorded_only: nothing is pruned; a `NotRecorded` error where rows are missing.
    """

    recorded_only: bool = False

    def run(
        self,
        file: Path,
        methods: Iterable[str],
        patterns: Iterable[str],
        seeds: Iterable[int] = (0,),
        *,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Add a row for each job and evaluation text that is missing in a CSV file, and return its
        rows of this sweep."""
        jobs = jobs_of(seeds, patterns, methods)
        for job in jobs:  # what is wrong is said before the first job
            Pattern.parse(job["pattern"])
            named_method(job["method"], "OPT")
        there = self.mine(file)
        missing = [(job, texts) for job in jobs if (texts := self._missing(there, job))]
        if not missing:
            return there
        self._may_make(file, [job for job, _ in missing], progress)
        subject = subject_of(self, file)
        dense = self.perplexities(subject.model, scored=subject.dense)
        bar = tqdm(missing, desc=f"sweep {self.model}", unit="run", disable=not progress)
        for job, texts in bar:
            with subject.pruned(self, job) as pruned:
                asked, scored = replace(self, texts=texts), pruned.scored
                rows = asked.evaluate(subject.model, pruned.report, dense, scored=scored, **job)
                append(file, rows)
        return self.mine(file)

    def _may_make(self, file: Path, missing: list[dict], progress: bool) -> None:
        if self.recorded_only:
            raise NotRecorded(
                f"{file} lacks {len(missing)} of the runs asked for, such as {missing[0]}."
            )
        if self.stream and progress:
            tqdm.write(self.outlook(missing))

    def outlook(self, jobs: list[dict]) -> str:
        """What jobs will need, before the first: minutes and memory by method, by `sl.plan`, the
        evaluation not counted."""
        lines, minutes = [], 0.0
        for method, count in Counter(job["method"] for job in jobs).items():
            expected = plan(self.model, method, self.samples, self.seqlen, offload="cpu")
            each = sum(expected.seconds.values()) / 60
            minutes += count * each
            gib = max(expected.total("device"), expected.total("host")) / 2**30
            lines.append(f"{method}: {count} runs of {each:.1f} min, {gib:.1f} GiB")
        return "\n".join([*lines, f"together about {minutes:.0f} min, without the evaluation"])

    def mine(self, file: Path) -> pd.DataFrame:
        """The rows of a CSV file that are of this sweep, its windows and texts."""
        table = self.rows_in(file, window_limit=self.windows)
        if table.empty:
            return table
        texts = pd.Series(False, table.index)
        for text in self.texts:
            same_file = read_from(table, "text_sha256", text, "evaluation")
            texts |= (table.text == name_of(text)) & same_file
        return table[texts]

    def _missing(self, there: pd.DataFrame, job: dict) -> tuple[str, ...]:
        """The texts of which the rows that are there hold nothing for a job."""
        done = [] if there.empty else [*there[rows_matching(there, job)].text]
        return tuple(text for text in self.texts if name_of(text) not in done)

    def resume(
        self,
        file: Path,
        jobs: list[dict],
        make: Callable[[dict], list[dict]],
        progress: bool,
        **key,
    ) -> pd.DataFrame:
        """Add the rows of all jobs that are missing in a CSV file, and return those of the jobs.

        Parameters
        ----------
        file : Path
            The table.
        jobs : list of dict
            See `jobs_of`.
        make : callable
            Gives a job's rows, which hold those of `row`.
        progress : bool
            Show a progress bar.
        **key
            What the rows must also carry to be of a job.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        missing = [job for job in jobs if self.rows_in(file, **key, **job).empty]
        if missing:
            self._may_make(file, missing, progress)
        for job in tqdm(missing, desc=file.stem, unit="run", disable=not progress):
            append(file, make(job))
        table = read(file)
        found = [self.matches(table, **key, **job) for job in jobs]
        return table[pd.concat(found, axis=1).any(axis=1)]
