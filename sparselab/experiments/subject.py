"""What an experiment prunes anew for every job: a model in memory, or one in files that is never
whole in memory."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from ..data.corpora import sha256_of
from ..engine.report import Report
from ..models.architecture import dense_weights, linears_of, restore
from ..models.checkpoint import Checkpoint
from ..models.loading import load
from ..models.saving import REPORT_FILE
from ..runtime.files import made
from .experiment import UNPRUNED, Experiment


@dataclass(frozen=True)
class Pruned:
    """A job's result. scored: as `sl.perplexity` takes it, the model or its folder; weights: of its
    linears, by name."""

    report: Report
    scored: nn.Module | Path | str
    weights: Mapping[str, Tensor]


class Subject(Protocol):
    """A model that a job prunes and the next one finds dense again. `model` is for its tokenizer,
    structure and name, `dense` what is scored, `weights` those of the dense linears, by name."""

    model: nn.Module
    dense: nn.Module | Path | str
    weights: Mapping[str, Tensor]

    def pruned(self, experiment: Experiment, job: dict):
        """A context, within which the job's result is there: a `Pruned`."""


class InMemory:
    """A model that is loaded once and restored before each job."""

    def __init__(self, experiment: Experiment):
        self.model, _ = load(experiment.model)
        self.dense, self.weights = self.model, dense_weights(self.model)

    @contextmanager
    def pruned(self, experiment: Experiment, job: dict) -> Iterator[Pruned]:
        """Prune in place."""
        restore(self.model, self.weights)
        report = experiment.prune(self.model, **job)
        weights = {name: linear.weight for name, linear in linears_of(self.model).items()}
        yield Pruned(report, self.model, weights)


class InFiles:
    """A model in files: each job streams it into a folder of its own, which goes when its rows are
    made. A job that was broken off goes on, before and after its last block; unless `anew`, where
    what a whole run takes is measured."""

    def __init__(self, experiment: Experiment, place: Path, anew: bool = False):
        self.anew = anew
        checkpoint = Checkpoint(experiment.model)
        self.model, self.dense = checkpoint.skeleton(None), experiment.model
        self.weights, self.place = WeightsInFiles(checkpoint, self.model), place

    @contextmanager
    def pruned(self, experiment: Experiment, job: dict) -> Iterator[Pruned]:
        """Prune from files to files."""
        made(self.place, "name another folder for the tables")
        folder = self.place / _name_of(experiment, job)
        if self.anew:
            for left in (folder, folder.with_name(f"{folder.name}.part")):
                shutil.rmtree(left, ignore_errors=True)
        if folder.exists():  # finished, and its rows were not
            report = Report.load(folder / REPORT_FILE)
        else:
            report = experiment.prune(self.model, **job, out=folder)
        yield Pruned(report, folder, WeightsInFiles(Checkpoint(folder), self.model))
        shutil.rmtree(folder)
        if not any(self.place.iterdir()):
            self.place.rmdir()


class WeightsInFiles(Mapping):
    """The weights of a model's linears, each read when it is asked for."""

    def __init__(self, checkpoint: Checkpoint, model: nn.Module):
        self.checkpoint, self.linears = checkpoint, linears_of(model)

    def __getitem__(self, name: str) -> Tensor:
        key = f"{name}.weight"
        return self.checkpoint.read({key: self.linears[name].weight}, stored=True)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.linears)

    def __len__(self) -> int:
        return len(self.linears)


def _name_of(experiment: Experiment, job: dict) -> str:
    """A job's folder, told from those of other jobs, experiments and texts of the same name."""
    text = sha256_of(experiment.corpus, "calibration")
    words = repr((experiment.columns(), text, sorted(job.items())))
    return f"{job['method'].partition(':')[0]}-{sha256(words.encode()).hexdigest()[:16]}"


class LastPruned:
    """The result of the job that was last asked for, kept for the next question about it; the job's
    method 'dense' prunes nothing. The model is loaded when it is first needed."""

    def __init__(self, experiment: Experiment, file: Path):
        self.experiment, self.file = experiment, file
        self.job: dict | None = None
        self.kept = ExitStack()

    @cached_property
    def subject(self) -> Subject:
        """What is pruned."""
        return subject_of(self.experiment, self.file)

    def pruned(self, job: dict) -> Pruned:
        """The result of a job."""
        if job != self.job:
            self.kept.close()
            if job["method"] == "dense":
                self.result = Pruned(UNPRUNED, self.subject.dense, self.subject.weights)
            else:
                self.result = self.kept.enter_context(self.subject.pruned(self.experiment, job))
            self.job = job
        return self.result

    def __enter__(self) -> "LastPruned":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:  # what was broken off goes on with the folder that is there
            self.kept.close()


def subject_of(experiment: Experiment, file: Path, *, anew: bool = False) -> Subject:
    """What an experiment prunes; from files where it says so, beside its table. anew: no job goes
    on with what an earlier run left."""
    if not experiment.stream:
        return InMemory(experiment)
    return InFiles(experiment, file.with_suffix(".pruned"), anew)
