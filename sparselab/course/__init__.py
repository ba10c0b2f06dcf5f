"""What the notebooks share: their model, predictions, exercises with checks that name the mistake,
a scoreboard, sliders."""

from .claims import claim
from .costs import costs
from .exercises.checking import Exercise, check, exercises_of, mine, progress
from .layers import inputs_of, notebook_model
from .predictions import predict, reveal, review
from .scores import score, scoreboard
from .sliders import explore, explorer
from .submissions import leaderboard, submit

__all__ = [
    "Exercise",
    "check",
    "claim",
    "costs",
    "exercises_of",
    "explore",
    "explorer",
    "inputs_of",
    "leaderboard",
    "mine",
    "notebook_model",
    "predict",
    "progress",
    "reveal",
    "review",
    "score",
    "scoreboard",
    "submit",
]
