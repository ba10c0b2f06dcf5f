"""sparselab: how large language models are pruned, from one layer's error to the whole model.

    import sparselab as sl

    model, tokenizer = sl.load("opt-mini")
    calibration = sl.calibration(tokenizer, "demo", samples=64, seqlen=256)
    report = sl.prune(model, calibration, method="sparsegpt", sparsity=0.7)
    sl.perplexity(model, sl.tokens(tokenizer, "demo"), seqlen=256)
"""
from .allocation import by_sensitivity, owl
from .engine import prune
from .errors import SparselabError
from .evaluate import Perplexity, known_dense, perplexity, write
from .methods import ADMM, METHODS, DSnoT, Magnitude, Method, Solution, SparseGPT, SparseLLM, Swaps, Wanda
from .models import FAMILIES, Family, blocks_of, family_of, linears_of, load
from .papers import overlay, papers
from .patterns import Pattern
from .planning import Plan, plan
from .report import Report, save
from .statistics import Statistics
from .texts import CORPORA, calibration, tokens
from .training import Training, finetune
from .zeroshot import zeroshot

__all__ = ["ADMM", "CORPORA", "FAMILIES", "METHODS", "DSnoT", "Family", "Magnitude", "Method", "Pattern", "Perplexity",
           "Plan", "Report", "Solution", "SparseGPT", "SparseLLM", "SparselabError", "Statistics", "Swaps",
           "Training", "Wanda", "blocks_of", "by_sensitivity", "calibration", "family_of", "finetune", "known_dense",
           "linears_of", "load", "overlay", "owl", "papers", "perplexity", "plan", "prune", "save", "tokens", "write",
           "zeroshot"]
