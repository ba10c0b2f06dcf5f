"""The leaderboard of the last lesson: a model, a share of zeros, a time. Who loses least?

A submission is a function that prunes a model in place. `submit` gives it a model as it was loaded
and stops it when its time is up; checks what it left; copies the checked tensors into a model that
is loaded anew, so that what is scored is what was checked; and measures that.
"""

import ctypes
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

import pandas as pd
import torch
from torch import LongTensor, Tensor, nn

from .. import viz
from ..data.calibration import calibration, tokens
from ..errors import SparselabError
from ..evaluation.perplexity import Perplexity, perplexity
from ..models.architecture import blocks_of, linears_of
from ..models.loading import load
from ..runtime.files import ROOT
from . import scores
from .exercises.checking import nobody_wrote

FILE = "my_leaderboard.json"  # in the working folder, beside my_scores.json
RECORDED = ROOT / "bench" / "leaderboard.csv"  # the worked solutions, made by bench/leaderboard.py
ZEROS = 0.7  # of all weights of the matrices in the blocks
SLACK = 1e-4  # less is no fault: a matrix's share, rounded down to a whole number of weights
ROUNDED_ROWS = 0.01  # so much less is what rounding down each row can cost
NEARLY = 0.05  # of a matrix's root mean square: 4 % of normal weights are smaller
LOOK = 5.0  # seconds between two lines of progress, and two tries to stop a function
PARTS = {"name", "model", "text", "seconds", "perplexity", "stderr", "dense"}  # of each row


@dataclass(frozen=True)
class Protocol:
    """What the submissions for a model get and are judged by: calibration windows, and windows of
    other text, all of `seqlen` tokens."""

    samples: int = 64
    seqlen: int = 256
    windows: int = 64

    def __str__(self) -> str:
        return f"demo text, {self.windows} windows of {self.seqlen} tokens"


PROTOCOLS = {"smollm2-135m": Protocol(128, 512, 24)}  # of others: the course's
_rows: list[dict] = []  # of this kernel
_texts: dict[tuple[str, Protocol], tuple[LongTensor, LongTensor]] = {}  # to calibrate, to score
_dense: dict[tuple[str, Protocol], Perplexity] = {}  # of this kernel, measured once


@dataclass
class Submission:
    """What became of a submission. `refused` says why it is not on the board; '' where it is.

    `zeros`: share of zeros in all matrices of the blocks, 0 to 1. `seconds`: that the function ran,
    by the clock on the wall; `core`: of these, how long its thread had a processor. `perplexity`:
    of the pruned model, with its standard error; `dense`: of the dense one. `others`: how many
    tensors beside those matrices have changed.
    """

    name: str
    model: str
    minutes: float
    seconds: float = math.nan
    core: float = math.nan
    zeros: float = math.nan
    refused: str = ""
    perplexity: Perplexity | None = None
    dense: Perplexity | None = None
    others: int = 0
    protocol: Protocol = field(default_factory=Protocol)

    @property
    def excess(self) -> tuple[float, float]:
        """Mean loss above the dense model, nats a token, and its standard error: paired, window by
        window."""
        return self.perplexity.ratio(self.dense)

    def row(self) -> dict:
        """For the board's file."""
        excess, error = self.excess
        return {
            "name": self.name,
            "model": self.model,
            "minutes": self.minutes,
            "seconds": round(self.seconds, 1),
            "zeros": round(self.zeros, 6),
            "perplexity": float(self.perplexity),
            "stderr": self.perplexity.stderr,
            "excess": excess,
            "excess_stderr": error,
            "dense": float(self.dense),
            "text": str(self.protocol),
            "others_changed": self.others,
            "threads": torch.get_num_threads(),
            "date": date.today().isoformat(),
        }

    def __str__(self) -> str:
        if self.refused:
            return f"{self.name}: not on the board. {self.refused}"
        excess, error = self.excess
        said = (
            f"{self.name}: on the board. {self.model}, {100 * self.zeros:.2f} % zeros,"
            f" {self.seconds:.0f} s of {60 * self.minutes:.0f} s\n"
            f"perplexity {self.perplexity!r}, {excess:+.3f} ± {error:.3f} nats a token above dense"
        )
        if self.others:
            said += f"\n{self.others} norms and biases have changed, too: this is allowed."
        return said

    __repr__ = __str__

    def _ipython_display_(self) -> None:
        """Nothing: `submit` has printed it."""


class Refused(Exception):
    """A submission that breaks a rule: the sentence says which, and what to do."""


class TimeIsUp(BaseException):
    """Raised inside a function that ran too long; no Exception, so that its own `except Exception`
    lets it through."""


def submit(
    name: str, pruner: Callable, *, model: str = "smollm2-135m", minutes: float = 10
) -> Submission:
    """Run a pruner on a model, check and score what it leaves, and put it on the board.

    The row is added to my_leaderboard.json of the working folder. Nothing is added where the pruner
    breaks a rule, which is said, where it raises, or where you interrupt it.

    Parameters
    ----------
    name : str
        What the board calls it. It keeps all submissions of a name, and shows the best.
    pruner : callable
        pruner(model, calibration) prunes the model in place, with calibration windows [samples,
        seqlen]: at least 70 % of all weights in the matrices of the blocks become zero. Norms and
        biases may change, embeddings and the output head may not. What it returns is not looked at.
    model : str
        What `sl.load` takes.
    minutes : float
        The time that the pruner may take, by the clock on the wall.

    Returns
    -------
    Submission
    """
    if not (isinstance(name, str) and name.strip()):
        raise SparselabError(f"a submission has a name, such as 'mine', and not {name!r}.")
    if not 0 < minutes < math.inf:
        raise SparselabError(f"minutes is a time above 0, such as 10, and not {minutes}.")
    if nobody_wrote(pruner):
        print(f"{name}: nothing to submit yet. Write the function first.")
        return Submission(name, model, minutes, refused="Nobody has written it yet.")
    if not callable(pruner):
        raise SparselabError(
            "submit takes the function itself, submit(name, my_pruner), and not what it returns."
        )
    done = judge(name, pruner, model=model, minutes=minutes, progress=not scores.stored_run())
    print(done)
    if not done.refused:
        _keep(done.row())
    return done


def judge(
    name: str,
    pruner: Callable,
    *,
    model: str = "smollm2-135m",
    minutes: float = 10,
    progress: bool = False,
) -> Submission:
    """`submit` without the board: run, check, score."""
    protocol = PROTOCOLS.get(model, Protocol())
    done = Submission(name, model, minutes, protocol=protocol)
    subject, tokenizer = load(model)
    windows, text = _texts_for(model, tokenizer, protocol)
    try:
        run = _timed(pruner, subject, windows, 60 * minutes, name, progress)
        done.seconds, done.core = run.seconds, run.core
        fresh, _ = load(model)
        done.zeros, done.others = check(subject, fresh, run)
    except Refused as rule:
        done.refused = str(rule)
        return done
    measure = {"seqlen": protocol.seqlen, "progress": progress}
    if (model, protocol) not in _dense:
        _dense[model, protocol] = perplexity(fresh, text, **measure)
    done.dense = _dense[model, protocol]
    fresh.load_state_dict(subject.state_dict())  # hooks and replaced modules stay behind
    del subject, run
    try:
        done.perplexity = perplexity(fresh, text, **measure)
    except SparselabError as error:
        done.refused = f"It cannot be scored: {error}"
    return done


def _texts_for(name: str, tokenizer: object, protocol: Protocol) -> tuple[LongTensor, LongTensor]:
    """Windows to calibrate with, [samples, seqlen], and the tokens to score: of web text and of
    Wikipedia, and each time a copy."""
    if (name, protocol) not in _texts:
        size = {"samples": protocol.samples, "seqlen": protocol.seqlen}
        text = tokens(tokenizer, "demo", windows=protocol.windows, seqlen=protocol.seqlen)
        _texts[name, protocol] = calibration(tokenizer, "demo", **size), text
    windows, text = _texts[name, protocol]
    return windows.clone(), text.clone()


@dataclass
class Run:
    """What a pruner returned or raised, the seconds that it took, those of them in which its thread
    had a processor, and the most zeros that were seen while it ran, 0 to 1."""

    returned: object = None
    seconds: float = math.nan
    core: float = math.nan
    peak: float = 0.0
    error: BaseException | None = None


# What a submission must leave.


def check(model: nn.Module, dense: nn.Module, run: Run) -> tuple[float, int]:
    """The share of zeros in a pruned model's matrices, and how many other tensors differ from those
    of `dense`, the same model as it was loaded. Raises Refused where it breaks a rule."""
    mine, before = model.state_dict(), dense.state_dict()
    _same_tensors(mine, before)
    names = {f"{name}.weight" for name in linears_of(dense)}
    broken = [name for name, tensor in mine.items() if not tensor.isfinite().all()]
    if broken:
        raise Refused(
            f"{len(broken)} tensors hold NaN or infinite numbers, the first is {broken[0]}. Look"
            " for a division by zero, or a matrix without an inverse: dead inputs need damping."
        )
    changed = [name for name in mine if not torch.equal(mine[name].to(before[name]), before[name])]
    outside = [name for name in changed if name not in names and mine[name].ndim > 1]
    if outside:
        zeros = share_of_zeros([mine[name] for name in outside])
        raise Refused(
            f"{', '.join(outside)} changed ({100 * zeros:.1f} % zeros). Embeddings and output head"
            " stay as they are, and zeros in them do not count. Prune the matrices that"
            " sl.linears_of(model) names, and no others."
        )
    weights = {name: mine[name] for name in mine if name in names}
    zeros = share_of_zeros([*weights.values()])
    if zeros < ZEROS - SLACK:
        raise Refused(_too_few(zeros, weights, model, run))
    return zeros, len([name for name in changed if name not in names])


def share_of_zeros(weights: list[Tensor]) -> float:
    """Of all entries of some tensors together, 0 to 1."""
    total = sum(weight.numel() for weight in weights)
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / total


def _same_tensors(mine: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    added, lost = sorted({*mine} - {*before}), sorted({*before} - {*mine})
    if added or lost:
        what = [f"it lacks {name}" for name in lost[:1]]
        what += [f"it has {name}, too" for name in added[:1]]
        hint = "Leave the model's modules as they were, and write into their weights."
        if any(name.endswith(("_mask", "_orig")) for name in added):
            hint = "torch.nn.utils.prune keeps masks beside the weights: call its `remove` at last."
        if any("lora" in name.lower() for name in added):
            hint = "Merge the adapters into the weights, and apply the mask after that."
        raise Refused(f"The model has other tensors than before: {' and '.join(what)}. {hint}")
    for name, tensor in mine.items():
        if tensor.shape != before[name].shape:
            raise Refused(
                f"{name} has the shape {[*tensor.shape]} and had {[*before[name].shape]}. The task"
                " is zeros at any place, in matrices of the same shape."
            )


def _too_few(zeros: float, weights: dict[str, Tensor], model: nn.Module, run: Run) -> str:
    """Which mistake it is, where there are too few zeros."""
    said = f"{100 * zeros:.2f} % of the weights are zero, and the task is {100 * ZEROS:g} %."
    if isinstance(run.returned, nn.Module) and run.returned is not model:
        return (
            f"{said} It returned another model. Prune the one that it is given, in place, for"
            " example with linear.weight.data = ...: what it returns is not looked at."
        )
    small = share_of_zeros(
        [w * (w.abs() > NEARLY * w.square().mean().sqrt()) for w in weights.values()]
    )
    if zeros >= ZEROS - ROUNDED_ROWS:
        return (
            f"{said} Rows or matrices were rounded down to a whole number of zeros. Ask for a"
            " little more, such as sparsity=0.705."
        )
    if max(small, run.peak) >= ZEROS - ROUNDED_ROWS:
        seen = f"while it ran, {100 * run.peak:.1f} % were zero"
        if small >= ZEROS - ROUNDED_ROWS:
            seen = f"{100 * small:.1f} % are nearly zero"
        return (
            f"{said} But {seen}. A step after the pruning, such as fine-tuning, has filled zeros"
            " again. Multiply by the mask after each such step, as sl.finetune does."
        )
    dense = [name for name, weight in weights.items() if share_of_zeros([weight]) < 0.01]
    if dense:
        return f"{said} {len(dense)} of {len(weights)} matrices have none, such as {dense[0]}."
    return f"{said} All weights of all matrices in the blocks count alike."


# Time.


def _timed(
    pruner: Callable,
    model: nn.Module,
    windows: LongTensor,
    seconds: float,
    name: str,
    progress: bool,
) -> Run:
    """Run pruner(model, windows) for so many seconds at most.

    It runs in a thread of its own, with seeded random numbers, so that this one can watch the clock
    and stop it. What it raises is raised here.
    """
    done = Run()

    def work() -> None:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                done.returned = pruner(model, windows)
        except BaseException as error:
            done.error = error
        done.seconds, done.core = time.perf_counter() - started, time.thread_time()

    started = time.perf_counter()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive() and (left := started + seconds - time.perf_counter()) > 0:
            thread.join(min(LOOK, left))
            share, words = _so_far(model)
            done.peak = max(done.peak, share)
            if progress and thread.is_alive():
                clock = f"{time.perf_counter() - started:.0f} s of {seconds:.0f} s"
                print(f"\r{name}: {clock}, {words}", end="  ", file=sys.stderr, flush=True)
        _stop(thread, TimeIsUp)
    except KeyboardInterrupt:
        _stop(thread, KeyboardInterrupt)
        raise
    finally:
        if progress:
            print(file=sys.stderr)
    if isinstance(done.error, TimeIsUp) or (done.error is None and done.seconds > seconds):
        raise Refused(
            f"It was stopped: {seconds:.0f} s are over. It had {_so_far(model)[1]}. Take fewer"
            " windows, such as calibration[:16], or a method that needs less for each matrix."
        )
    if done.error is not None:
        raise done.error
    return done


def _stop(thread: threading.Thread, reason: type[BaseException]) -> None:
    """Raise `reason` in a thread until it ends. A long call into torch ends first."""
    while thread.is_alive():
        number = ctypes.c_ulong(thread.ident)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(reason))
        thread.join(LOOK)


def _so_far(model: nn.Module) -> tuple[float, str]:
    """The share of zeros at this moment, and words about it."""
    try:
        blocks = [
            [linear.weight for linear in linears_of(model, [layer]).values()]
            for layer in range(len(blocks_of(model)))
        ]
    except (SparselabError, AttributeError):  # the function has put other modules into the model
        return 0.0, "other modules than before"
    share = share_of_zeros([weight for block in blocks for weight in block])
    begun = sum(share_of_zeros(block) > 0.1 for block in blocks)
    return share, f"{100 * share:.0f} % zeros, in {begun} of {len(blocks)} blocks"


# The board.


def leaderboard(*, model: str = "smollm2-135m", minutes: float = 10) -> None:
    """Draw the board: the best row of each name whose pruner took at most so many minutes, the
    lowest perplexity on top, and the recorded rows of the worked solutions."""
    kept, fault = scores.rows_of(FILE, PARTS)
    print(fault, end="\n" if fault else "")
    text, best = str(PROTOCOLS.get(model, Protocol())), {}
    for row in [*kept.values(), *_rows, *_recorded()]:
        if (row["model"], row["text"]) != (model, text) or row["seconds"] > 60 * minutes:
            continue
        known = best.setdefault(row["name"], row)
        best[row["name"]] = min(known, row, key=lambda one: one["perplexity"])
    if not best:
        print(f"The leaderboard of {model} within {minutes:g} minutes has no rows yet.")
        return
    ranked = sorted(best.values(), key=lambda row: row["perplexity"])
    dense = ranked[0]["dense"]
    shown = [
        {**row, "name": f"{row['name']}, {row['seconds']:.0f} s", "ours": False} for row in ranked
    ]
    words = ", ".join(
        f"{row['name']} {row['perplexity']:.1f} ± {row['stderr']:.1f} in {row['seconds']:.0f} s"
        for row in ranked
    )
    viz.show(
        scores.picture(shown, dense, text),
        f"leaderboard of {model}, {text}, at least {100 * ZEROS:g} % zeros, at most {minutes:g}"
        f" minutes: perplexity {words}, dense {dense:.1f}",
    )


def _recorded() -> list[dict]:
    """The worked solutions' rows; none where sparselab is not in a checkout."""
    if not RECORDED.exists():
        return []
    rows = pd.read_csv(RECORDED).to_dict("records")
    return [{**row, "name": f"{row['name']} (recorded)"} for row in rows]


def _keep(row: dict) -> None:
    """Add a row to the board and to the working folder's file."""
    _rows.append(row)
    scores.keep(FILE, PARTS, row, None, "Leaderboard: the row")
