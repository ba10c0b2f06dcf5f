"""What the notebooks share: the dial, predictions, exercises with checks that name the mistake,
sliders."""

from .claims import claim
from .costs import costs
from .exercises.checking import Exercise, check, exercises_of, progress
from .layers import dial, inputs_of
from .predictions import predict, reveal, review
from .sliders import explore, explorer

__all__ = [
    "Exercise",
    "check",
    "claim",
    "costs",
    "dial",
    "exercises_of",
    "explore",
    "explorer",
    "inputs_of",
    "predict",
    "progress",
    "reveal",
    "review",
]
