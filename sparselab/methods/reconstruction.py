"""What is tuned after a block's matrices are pruned, towards which target, and how."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..errors import SparselabError, did_you_mean
from ..patterns import plain
from .parameters import check_fields


@dataclass(frozen=True)
class Reconstruction:
    """Gradient steps on what pruning left of a block, so that what it gives comes nearer to what
    the dense model has there. Zeros stay zeros.

    min over kept weights, biases and norms of the mean squared error of the unit's output, by Adam.
    Some windows are held out, of which neither the solver nor Adam sees anything (the gradients of
    `fisher` and `divide`, of the dense model, are taken of all); after
    each pass the best state so far is kept, the start included, so that the error on the held-out
    windows never rises; where a pass did not lower it, the next begins from the best state with a
    third of the rate.

    Parameters
    ----------
    unit : {'matrix', 'sublayer', 'block'}
        What is tuned together: each matrix; attention, then the feed-forward network; or the block.
    targets : {'dense-stream', 'dense-block', 'dense-model'}
        From the pruned stream's inputs to the dense model's stream; from the pruned stream's inputs
        to what the dense block makes of them; or from dense inputs to dense outputs. The words are
        those of `Method.targets`, of a unit in place of a linear, and nothing is half way here.
    rate : float
        Adam's, at the start.
    epochs : int
        Passes over the calibration windows, at most.
    batch : int
        Windows in a step.
    held_out : float
        The share of the windows that is held out, at least one window; 0: none, and the last state
        is kept.
    patience : int
        It ends when so many passes in a row did not lower the held-out error.
    cosine : bool
        The rate falls along a cosine over the epochs, to a tenth.
    decay, clip : float
        AdamW's weight decay; the largest norm of a gradient (0: any).
    train : {'all', 'weights'}
        Biases and norms too, or the pruned matrices alone.
    """

    unit: Literal["matrix", "sublayer", "block"] = "block"
    targets: Literal["dense-stream", "dense-block", "dense-model"] = "dense-stream"
    rate: Annotated[float, "> 0"] = 1e-3
    epochs: Annotated[int, ">= 1"] = 8
    batch: Annotated[int, ">= 1"] = 8
    held_out: Annotated[float, ">= 0", "<= 0.5"] = 0.125
    patience: Annotated[int, ">= 1"] = 2
    cosine: bool = True
    decay: Annotated[float, ">= 0"] = 0.0
    clip: Annotated[float, ">= 0"] = 0.0
    train: Literal["all", "weights"] = "all"

    def __post_init__(self):
        check_fields(self)

    @classmethod
    def tm(cls) -> "Reconstruction":
        """Transformer matching: the block, towards the dense block on the same inputs; Adam 2e-5,
        twenty passes along a cosine. Source: Makni et al., 3BASiL, arXiv 2603.01376."""
        return cls("block", "dense-block", 2e-5, 20, 8, 0.0)

    @classmethod
    def ebft(cls) -> "Reconstruction":
        """The weights of a block towards the dense block on the same inputs; AdamW 2e-4, decay 0.1,
        ten passes. Source: Guo et al., EBFT, arXiv 2402.12419."""
        return cls(
            "block", "dense-block", 2e-4, 10, 1, 0.0, cosine=False, decay=0.1, clip=1.0,
            train="weights",
        )  # fmt: skip

    @classmethod
    def free_lunch(cls) -> "Reconstruction":
        """Attention and feed-forward network apart, from dense inputs to dense outputs; AdamW 1e-5,
        one pass. Source: arXiv 2510.14444."""
        return cls("sublayer", "dense-model", 1e-5, 1, 8, 0.0)

    @classmethod
    def parse(cls, value: Any, owner: str) -> "Reconstruction | None":
        """From what a user gave to the owner: True for the defaults, a unit, a preset's name, None
        and False for nothing."""
        value = plain(value)
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and value in PRESETS:
            return getattr(cls, value)()
        if isinstance(value, str) and value in UNITS:
            return cls(unit=value)
        raise SparselabError(
            f"{owner}(reconstruct={value!r}): choose True, an instance such as"
            " sl.Reconstruction(epochs=4), a unit, or the name of a published form."
            + did_you_mean(str(value), (*PRESETS, *UNITS))
        )


PRESETS, UNITS = ("tm", "ebft", "free_lunch"), ("matrix", "sublayer", "block")
