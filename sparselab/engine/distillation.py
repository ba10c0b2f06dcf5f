"""After pruning to a high sparsity: train what is left until the model predicts as the dense one
does, with the zeros where they are or, by ELSA's iteration, where they serve best."""

import math
from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import torch
from torch import LongTensor, Tensor, nn
from tqdm.auto import tqdm

from ..errors import SparselabError
from ..evaluation.divergence import token_divergences, window_divergences
from ..evaluation.placement import input_device
from ..methods.parameters import checked
from ..models.architecture import linears_of, model_name
from ..models.validation import (
    check_finite,
    check_ids,
    check_ready,
    check_rows,
    check_weights,
    check_windows,
)
from ..patterns import Pattern, lowest, prune_rows, valid_groups
from ..runtime.memory import batch_size, in_batches, naming_memory_errors, with_batch_halving
from .finetuning import check_trainable, diverged, keep_zeros, learning, rate_share, zeros

LOOKS = 12  # at the held-out windows, beside the one before the first step
# Adam's. The second moment chooses ELSA's masks too: the mean of more steps chooses steadier ones.
BETAS = {"fixed": (0.9, 0.95), "elsa": (0.9, 0.999)}
EPSILON = 1e-8  # of a gradient, Adam's own: where none came, the weights' sizes decide
LESS = (
    "See the docstring of sl.distill for what it takes; trained='linears', masks='fixed' and"
    " torch.bfloat16 take less."
)
PUT_BACK = "the best state so far has been put back. Call it again and"


@dataclass
class Distillation:
    """What `distill` did. Divergences are mean Kullback-Leibler divergences from the dense model's
    predictions, in nats a token."""

    losses: list[float] = field(default_factory=list)  # of every step, on its windows
    looks: list[tuple[int, float]] = field(default_factory=list)  # (step, held-out divergence)
    tokens: int = 0  # that the training saw, each as often as it was drawn
    sparsity: tuple[float, float] = (0.0, 0.0)  # share of zeros in the linears, before and after

    @property
    def best_step(self) -> int:
        """The step after which the model stood as it stands now; 0: as it was given."""
        return min(self.looks, key=lambda look: look[1])[0]

    @property
    def held_out(self) -> tuple[float, float]:
        """Divergence on the held-out windows, before and after: the second is never higher."""
        return self.looks[0][1], min(divergence for _, divergence in self.looks)

    def __str__(self) -> str:
        before, after = self.held_out
        return (
            f"divergence from the dense model on held-out windows {before:.4g} -> {after:.4g} nats"
            f" a token, after step {self.best_step} of {len(self.losses)} ({self.tokens} tokens);"
            f" {self.sparsity[1]:.2%} zeros"
        )


@checked
def distill(
    model: nn.Module,
    dense: nn.Module,
    windows: LongTensor,
    *,
    sparsity: str | float | Pattern | None = None,
    masks: Literal["fixed", "elsa"] = "fixed",
    trained: Literal["all", "linears"] = "all",
    steps: Annotated[int, ">= 1"] = 512,
    batch: Annotated[int, ">= 1"] = 8,
    rate: Annotated[float, "> 0"] = 2e-4,
    penalty: Annotated[float, "> 0"] = 1e-2,
    every: Annotated[int, ">= 1"] = 32,
    held_out: Annotated[float, "> 0", "< 1"] = 0.125,
    seed: int = 0,
    progress: bool = True,
) -> Distillation:
    """Train a pruned model in place until it predicts as the dense one, its zeros kept in number.

    The loss is the mean over tokens of KL(dense || model), a token's whole prediction against the
    dense model's. Adam with the warm-up and the cosine of `sl.finetune`; gradients are clipped to
    norm 1. Some windows are held out: on them the divergence is measured before the first step and
    about twelve times on the way, and the model is left in the best of these states, the first
    included, so that the held-out divergence never rises.

    ``masks="fixed"``: the zeros of each matrix stay where they are.

    ``masks="elsa"``: each pruned matrix keeps its number of zeros, and ELSA finds new places for
    them. While it runs, the weights w are dense; z has the zeros, u adds up what w lacks of z:

    * each step, lambda (w - z + u) is added to the loss's gradient, after the clipping;
    * after every `every` steps, z = w + u with its lowest entries set to zero, and u += w - z.
      Lowest in |w + u| sqrt(v), where v is Adam's second moment: in (w + u)^2 v, the loss that the
      empirical Fisher information foretells for the weight's removal. Compared is within a matrix;
      for n:m within each group;
    * lambda rises along half a cosine from 0 to `penalty`, interval by interval, and u is rescaled,
      so that lambda u, the multiplier of w = z, stays as it is.

    What is measured, and left in the model at the end, is w where z is not zero. A matrix without
    any zero is trained as it is.

    Memory, in bytes a parameter, beside the dense model's 4 (or 2, in bfloat16): weights and
    gradients 4 + 4, Adam 8, together 16; for a model in bfloat16 weights and gradients 2 + 2 and in
    float32 again 4 + 4 (the weights are rounded from these after each step, else small steps would
    vanish), Adam 8, together 20. Of a linear's weight 1 more for a fixed mask, or 8 for z and u.
    The best state waits in the host's memory, 4 or 2. The activations come on top, and of each
    window about five float32 tensors [seqlen, vocabulary]: as many windows go through both models
    at once as fit, half as many where memory runs out, and the gradients add up to the batch's.

    Parameters
    ----------
    model : nn.Module
        A pruned model in memory, in float32 or bfloat16; trained in place.
    dense : nn.Module
        The model before pruning, which is only read. It may have another dtype or device.
    windows : LongTensor of shape (n, seqlen)
        Token ids, at least 2 windows, such as those that the model was pruned on.
    sparsity : float, str or Pattern, optional
        The pattern that the model has, to be held to: '2:4' so that ELSA keeps to the groups. The
        number of zeros is in any case that of each matrix at the call.
    masks : {'fixed', 'elsa'}
        Whether the zeros may move.
    trained : {'all', 'linears'}
        All parameters, or the weights of the blocks' linears only.
    steps, batch : int
        Steps, and windows in each, drawn anew.
    rate : float
        The highest learning rate.
    penalty : float
        The last lambda. It stands beside gradients of norm 1 at most, whose entries are the smaller
        the larger the model is.
    every : int
        ELSA's steps from one projection to the next; fewer than `steps`.
    held_out : float
        Share of the windows that is held out, at least one.
    seed : int
        Of the draws.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Distillation
        The losses, the looks at the held-out windows, and the divergence before and after.

    Raises
    ------
    SparselabError
        Before anything changes: where the two models do not belong together or share memory, the
        model has not the pattern, or there are fewer than two windows. Later: where the training
        diverges or memory runs out; then the best state so far has been put back, as it is after a
        KeyboardInterrupt.

    Notes
    -----
    ELSA: arXiv 2510.01650. There it begins with the dense weights, minimises the text's loss, and
    projects w once more at the end; here it begins with the pruned ones, and what counts is w where
    z is not zero, at the end of an interval, in which w has come near to z.
    """
    linears = linears_of(model)
    pattern = _check(model, dense, windows, sparsity)
    matrices = dict.fromkeys(each.weight for each in linears.values())
    pruned = [weight for weight in matrices if (weight == 0).any()]
    if masks == "elsa":
        _check_moves(model, pruned, every, steps)
    generator = torch.Generator().manual_seed(seed)
    learnt, held = _divide(windows, held_out, generator)
    chosen = [*model.parameters()] if trained == "all" else [*matrices]
    result, best, before = Distillation(), Best(chosen), zeros(matrices)
    due = _due(steps, every if masks == "elsa" else 1)
    look = partial(_look, result, best, rate, lambda: _divergences(model, dense, held, progress))
    check_finite(model, look(0), "windows' divergences")
    try:
        with (
            naming_memory_errors(f"distil {model_name(model)}", LESS),
            learning(model, chosen),
            tqdm(range(1, steps + 1), desc="distilling", unit="step", disable=not progress) as bar,
        ):
            student = Student(model, chosen, min(batch, batch_size(model, windows.shape[1])))
            weights = [student.masters[weight] for weight in pruned]
            kept = {w: w != 0 for w in weights} if masks == "fixed" else {}
            split = Split(weights, pattern, penalty, every, steps) if masks == "elsa" else None
            optimizer = torch.optim.Adam([*student.masters.values()], lr=rate, betas=BETAS[masks])
            shares = partial(rate_share, steps=steps)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shares)
            for step in bar:
                ids = learnt[torch.randint(len(learnt), (batch,), generator=generator)]
                loss, norm = student.gradients(dense, ids), student.clip(kept)
                if not math.isfinite(loss + norm):
                    what = f"the loss is {loss} and its gradient's norm {norm}"
                    raise diverged(what, step - 1, rate, PUT_BACK)
                if split:
                    split.pull()
                optimizer.step()
                schedule.step()
                student.round()
                result.losses.append(loss)
                result.tokens += ids.numel()
                if step in due:
                    with split.projected(pruned) if split else nullcontext():
                        look(step)
                if split and step % every == 0 and step < steps:
                    moments = [optimizer.state[w]["exp_avg_sq"] for w in weights]
                    split.project(step, moments)
                bar.set_postfix(loss=f"{loss:.3f}", held_out=f"{best.divergence:.4f}")
    finally:
        best.put_back()
    result.sparsity = (before, zeros(matrices))
    return result


def _due(steps: int, every: int) -> set[int]:
    """The steps after which the held-out windows are looked at: at the end of an interval, when
    ELSA's w has come as near to z as it will."""
    looks = {round(steps * look / LOOKS) for look in range(1, LOOKS + 1)} - {0}
    return {min(steps, math.ceil(step / every) * every) for step in looks}


def _look(
    result: Distillation, best: "Best", rate: float, measure: Callable[[], Tensor], step: int
) -> Tensor:
    """The held-out windows' divergences, noted, and the state kept where it is the best."""
    found = measure()
    mean = found.double().mean().item()
    if step and not math.isfinite(mean):
        raise diverged(f"the held-out divergence is {mean}", step, rate, PUT_BACK)
    result.looks.append((step, mean))
    best.offer(mean)
    return found


def _check_moves(model: nn.Module, pruned: list[Tensor], every: int, steps: int) -> None:
    """A SparselabError where no zero could move."""
    if not pruned:
        raise SparselabError(
            f"{model_name(model)} has no zeros that masks='elsa' could move. Prune it first."
        )
    if every >= steps:
        raise SparselabError(
            f"distill(every={every}, steps={steps}): no mask would move. Take more steps, or a"
            " smaller every."
        )


def _check(
    model: nn.Module, dense: nn.Module, windows: LongTensor, sparsity: str | float | Pattern | None
) -> Pattern:
    """The pattern that masks have to keep to, n:m or (0:0) any; a SparselabError where the models,
    the windows or the pattern do not fit each other."""
    linears = linears_of(model)
    for each in (model, dense):
        check_ready(each)
    check_trainable(model)
    check_weights(linears)
    shapes, others = (
        {name: tuple(value.shape) for name, value in each.state_dict().items()}
        for each in (model, dense)
    )
    for name in [*shapes, *others]:
        if shapes.get(name) != others.get(name):
            raise SparselabError(
                f"dense= is not {model_name(model)} before pruning: {name} is"
                f" {others.get(name, 'absent')} in the dense model and"
                f" {shapes.get(name, 'absent')} in the pruned one. Load the model that was pruned."
            )
    addresses, theirs = (
        {(w.device, w.data_ptr()) for w in each.parameters() if w.numel() and not w.is_meta}
        for each in (model, dense)
    )
    if addresses & theirs:
        raise SparselabError(
            "dense= is the model itself, or shares memory with it: its predictions would change as"
            " the model learns. Load the dense model anew, or copy.deepcopy it before pruning."
        )
    check_rows(model, windows, "the calibration text")
    check_windows(dense, windows.shape[1])
    check_ids(dense, windows, "the calibration text")
    if len(windows) < 2:
        raise SparselabError(
            "distill needs at least 2 windows, one to train on and one that is held out; there is"
            f" {len(windows)}. Take more samples."
        )
    pattern = Pattern.parse(0.0 if sparsity is None else sparsity)
    _check_pattern(model, {name: linear.weight for name, linear in linears.items()}, pattern)
    return pattern


def _check_pattern(model: nn.Module, weights: dict[str, Tensor], pattern: Pattern) -> None:
    """Whether the model has the zeros that were asked of it. Matrices without any were not pruned;
    methods round down in each row."""
    found = sum(int((weight == 0).sum()) for weight in weights.values())
    wanted = sum(len(weight) * pattern.zeros(weight.shape[1]) for weight in weights.values())
    if not pattern.m and found < wanted:
        share = found / sum(weight.numel() for weight in weights.values())
        raise SparselabError(
            f"sparsity={pattern}: {model_name(model)} has only {share:.2%} zeros. Prune it to that"
            " first, or leave sparsity out: the zeros that are there are kept."
        )
    for name, weight in weights.items() if pattern.n else ():
        pattern.check_width(weight.shape[1], name)
        if not found or ((weight == 0).any() and not valid_groups(weight, pattern)):
            raise SparselabError(
                f"sparsity={pattern.n}:{pattern.m}: {name} of {model_name(model)} has groups of"
                f" {pattern.m} inputs with fewer than {pattern.n} zeros. Prune it to that pattern"
                " first, or leave sparsity out."
            )


def _divide(
    windows: LongTensor, share: float, generator: torch.Generator
) -> tuple[LongTensor, LongTensor]:
    """Windows to train on, and those held out: one at least of each."""
    held = min(len(windows) - 1, max(1, round(share * len(windows))))
    order = torch.randperm(len(windows), generator=generator)
    return windows[order[held:]], windows[order[:held]]


@torch.no_grad()
def _predictions(dense: nn.Module, ids: LongTensor) -> Tensor:
    """The dense model's logits, [b, seqlen, vocabulary]."""
    return dense(ids.to(input_device(dense)), use_cache=False).logits


@torch.no_grad()
def _divergences(model: nn.Module, dense: nn.Module, windows: LongTensor, progress: bool) -> Tensor:
    """The mean divergence over each window, float32 [n]."""
    with tqdm(
        total=len(windows), desc="held out", unit="window", disable=not progress, leave=False
    ) as bar:
        return torch.cat(
            in_batches(
                lambda ids, _: window_divergences(model, ids, _predictions(dense, ids)),
                windows.split,
                model,
                windows.shape[1],
                bar,
            )
        )


class Best:
    """The state of some parameters at the lowest divergence so far, in the host's memory."""

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.parameters = list(parameters)
        self.divergence, self.state = math.inf, []

    def offer(self, divergence: float) -> None:
        """Keep the parameters as they are now, if that is better."""
        if divergence < self.divergence:  # replaced at once: an interrupt leaves the one or other
            state = [each.detach().to("cpu", copy=True) for each in self.parameters]
            self.state, self.divergence = state, divergence

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the parameters that state."""
        for each, value in zip(self.parameters, self.state, strict=True):
            each.copy_(value)


class Student:
    """A model that learns: `masters` are what the optimiser sees of its parameters, float32 copies
    of those in bfloat16 and the others themselves. `at_once` windows go through it together."""

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter], at_once: int):
        self.model, self.at_once = model, at_once
        self.masters = {
            each: each.detach().float() if each.dtype == torch.bfloat16 else each
            for each in parameters
        }

    def gradients(self, dense: nn.Module, ids: LongTensor) -> float:
        """Put the gradient of the mean divergence on windows ids [batch, seqlen] into the masters;
        the divergence."""

        def work(at_once: int) -> float:
            self.at_once, total = at_once, 0.0  # what fitted is remembered
            self._forget()
            for part in ids.split(at_once):
                targets = _predictions(dense, part)
                logits = self.model(part.to(input_device(self.model)), use_cache=False).logits
                loss = token_divergences(logits, targets).sum() / ids.numel()
                loss.backward()
                self._collect()
                total += loss.item()
            return total

        return with_batch_halving(work, self.at_once)

    def clip(self, kept: dict[Tensor, Tensor]) -> float:
        """Bound the gradients' norm by 1, without those of the zeros, which so get none of what
        Adam adds either; the norm before."""
        keep_zeros({w.grad: mask for w, mask in kept.items()})
        return torch.nn.utils.clip_grad_norm_(self.masters.values(), 1.0).item()

    @torch.no_grad()
    def round(self) -> None:
        """The model's weights from the masters."""
        for each, master in self.masters.items():
            if each is not master:
                each.copy_(master)

    def _forget(self) -> None:
        for each, master in self.masters.items():
            each.grad = master.grad = None

    def _collect(self) -> None:
        """Add up in float32 what was computed in bfloat16."""
        for each, master in self.masters.items():
            if each is not master and each.grad is not None:
                found, each.grad = each.grad.float(), None
                master.grad = found if master.grad is None else master.grad.add_(found)


class Split:
    """ELSA's variables of some pruned matrices, for each: w, which is trained; z, which has the
    zeros, as many as w at first; u, the multiplier of w = z over lambda.

    Parameters
    ----------
    weights : list of Tensor, each of shape (r, c)
        w, as pruned.
    pattern : Pattern
        Where it is n:m, z keeps to the groups.
    penalty : float
        The last lambda.
    every, steps : int
        Steps from one projection to the next, and in all.
    """

    def __init__(
        self, weights: list[Tensor], pattern: Pattern, penalty: float, every: int, steps: int
    ):
        self.weights, self.pattern = weights, pattern
        self.penalty, self.every, self.steps = penalty, every, steps
        self.z = [w.detach().clone() for w in weights]
        self.u = [torch.zeros_like(w) for w in weights]
        self.zeros = [int((w == 0).sum()) for w in weights]
        self.strength = self.ramp(0)

    def ramp(self, step: int) -> float:
        """Lambda from this step to the next projection: what half a cosine has reached by then, so
        that it is never 0 and in the end `penalty`."""
        reached = min(step + self.every, self.steps) / self.steps
        return self.penalty * (1 - math.cos(math.pi * reached)) / 2

    @torch.no_grad()
    def pull(self) -> None:
        """Add lambda (w - z + u) to the gradients."""
        for w, z, u in zip(self.weights, self.z, self.u, strict=True):
            w.grad.add_(w - z + u, alpha=self.strength)

    @torch.no_grad()
    def project(self, step: int, moments: list[Tensor]) -> None:
        """The new z and u after a step, given Adam's second moments [r, c] of the weights."""
        strength = self.ramp(step)
        for w, z, u, count, moment in zip(
            self.weights, self.z, self.u, self.zeros, moments, strict=True
        ):
            u.add_(w)
            scores = u.abs() * moment.sqrt().add_(EPSILON)
            z.copy_(u.masked_fill(pruned_places(scores, count, self.pattern), 0))
            u.sub_(z).mul_(self.strength / strength)
        self.strength = strength

    @contextmanager
    def projected(self, parameters: list[nn.Parameter]):
        """Set the model's own weights, in the order of `weights`, to zero where z is, for the body
        only."""
        whole = [each.detach().clone() for each in parameters]
        try:
            keep_zeros({each: z != 0 for each, z in zip(parameters, self.z, strict=True)})
            yield
        finally:
            with torch.no_grad():
                for each, value in zip(parameters, whole, strict=True):
                    each.copy_(value)


def pruned_places(scores: Tensor, count: int, pattern: Pattern) -> Tensor:
    """Where `count` weights of a matrix become zero, at its lowest scores; for n:m first n in each
    group, and the rest anywhere. scores [r, c], not negative -> bool [r, c]."""
    if pattern.n:
        scores = scores.masked_fill(prune_rows(scores, pattern, per_row=False), -1)
    return lowest(scores.reshape(1, -1), count).view_as(scores)
