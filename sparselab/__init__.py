"""sparselab: how large language models are pruned, from one layer's error to the whole model.

import sparselab as sl

model, tokenizer = sl.load("opt-mini")
calibration = sl.calibration(tokenizer, "demo", samples=64, seqlen=256)
report = sl.prune(model, calibration, method="sparsegpt", sparsity=0.7)
sl.perplexity(model, sl.tokens(tokenizer, "demo"), seqlen=256)
"""

from .allocation.evolution import evolve
from .allocation.owl import owl
from .allocation.progression import by_depth
from .allocation.sensitivity import by_sensitivity
from .data.calibration import calibration, tokens
from .data.corpora import CORPORA
from .engine.distillation import Distillation, distill
from .engine.finetuning import Training, finetune
from .engine.planning import Plan, plan
from .engine.pruning import prune
from .engine.recommendation import recommend
from .engine.report import Report
from .errors import SparselabError
from .evaluation.generation import write
from .evaluation.perplexity import Perplexity, perplexity
from .evaluation.published import known_dense, overlay, papers
from .evaluation.zeroshot import zeroshot
from .methods import (
    ADMM,
    ALPS,
    METHODS,
    DSnoT,
    Magnitude,
    Method,
    Reconstruction,
    Solution,
    SparseGPT,
    SparseLLM,
    Swaps,
    Wanda,
)
from .models.architecture import FAMILIES, Family, blocks_of, family_of, linears_of
from .models.loading import load
from .models.saving import save
from .numerics.statistics import Statistics
from .patterns import Pattern

__all__ = [
    "ADMM",
    "ALPS",
    "CORPORA",
    "FAMILIES",
    "METHODS",
    "DSnoT",
    "Distillation",
    "Family",
    "Magnitude",
    "Method",
    "Pattern",
    "Perplexity",
    "Plan",
    "Reconstruction",
    "Report",
    "Solution",
    "SparseGPT",
    "SparseLLM",
    "SparselabError",
    "Statistics",
    "Swaps",
    "Training",
    "Wanda",
    "blocks_of",
    "by_depth",
    "by_sensitivity",
    "calibration",
    "distill",
    "evolve",
    "family_of",
    "finetune",
    "known_dense",
    "linears_of",
    "load",
    "overlay",
    "owl",
    "papers",
    "perplexity",
    "plan",
    "prune",
    "recommend",
    "save",
    "tokens",
    "write",
    "zeroshot",
]
