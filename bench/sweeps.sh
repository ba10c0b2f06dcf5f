#!/usr/bin/env bash
# The sweeps behind the README's tables and notebook 10; broken off, they go on. Called by `make tables`, half a day on two
# cores. SPARSELAB_DATA names the folder with the books, WikiText-2 and PTB; `python -m sparselab books --out FOLDER` makes
# the books anew.
set -euo pipefail
cd "$(dirname "$0")"
: "${SPARSELAB_DATA:?set SPARSELAB_DATA to the folder with books-train.txt.xz, wikitext2 and ptb files}"
sweep() { python -m sparselab sweep "$@"; }
BOOKS="--calibration $SPARSELAB_DATA/books-train.txt.xz"
HELDOUT=$SPARSELAB_DATA/books-heldout.txt.xz
SMOLLM2="--model smollm2-135m --samples 16 --seqlen 512 --windows 24"

# All methods, eight patterns, four texts; then what each idea is worth on its own; then few tokens.
sweep $BOOKS --texts "$HELDOUT,wikitext2,ptb,demo" --out opt-mini.csv
sweep $BOOKS --texts "$HELDOUT" --sparsities 0.7 --out ablation.csv --methods "sparsegpt,sparsellm,\
sparsegpt:refit=True,sparsegpt:in_order=True,sparsegpt:targets=dense-model,sparsegpt:targets=dense-model;refit=True,\
sparsegpt:targets=dense-stream;refit=True,admm,admm:targets=dense-stream,admm:targets=dense-model,sparsellm:improve=False,\
sparsellm:ridge=0.01,sparsellm:refit=False,sparsellm:epochs=4;tolerance=0,sparsellm:targets=dense-model"
sweep --samples 8 --windows 32 --sparsities 0.7 --out few-tokens.csv \
  --methods "sparsegpt,admm,sparsellm,sparsellm:ridge=0.01,sparsellm:ridge=0.001,admm:guided,admm:guided;targets=dense-block"

# The recommended call, one ingredient after the other: solver, errors by the loss's gradient, zeros by it, dense stream as
# target, gradient steps on a block; then what the last is worth in other units and with other targets.
sweep $BOOKS --texts "$HELDOUT,wikitext2" --sparsities 0.7,0.9 --out ladder.csv --methods "sparsegpt,alps,admm,admm:fisher=True,\
admm:fisher=True;divide=True,admm:guided,admm:guided;reconstruct=True,admm:guided;reconstruct=matrix,\
admm:guided;reconstruct=sublayer,admm:guided;reconstruct=ebft,admm:guided;reconstruct=tm,admm:guided;reconstruct=free_lunch"

# Verdicts on the published methods, three calibration seeds: the paper's mathematics, the code as released, repaired; one
# change at a time; and DSnoT's published switches, together and one by one.
sweep $BOOKS --texts "$HELDOUT,wikitext2,demo" --sparsities 0.7,0.8 --seeds 0,1,2 --out published.csv \
  --methods "sparsegpt,sparsellm:paper,sparsellm:published,sparsellm:repaired"
python published_loop.py --out published_loop.csv
python gated_loop.py --out gated_loop.csv
sweep $BOOKS --texts "$HELDOUT,wikitext2,demo" --sparsities 0.6,0.7 --seeds 0,1,2 --out dsnot.csv \
  --methods "wanda,dsnot:published,dsnot:wanda,dsnot:same_sign=False,dsnot:skip_ffn=True"

# Where the recommended call is behind: which model is nearer to the dense one there.
python nearness.py --out nearness.csv
python nearness.py --out nearness-admm.csv --texts ptb,demo --sparsities 4:8 3:4 0.6 --methods admm admm:targets=dense-stream admm:guided
python nearness.py --out nearness-admm.csv --texts ptb,demo --sparsities 4:8 3:4 0.6 --methods admm:fisher=True --seeds 0

# What ADMM's care for inputs that are always zero costs.
python dead_inputs.py --out dead-inputs.csv

# How much of the stream's lack, with few tokens.
python stream_share.py --out stream-share.csv

# The LLaMA family: all in one table, then with eight times the tokens. Days on two cores: choose.
sweep $SMOLLM2 --texts demo,wikitext2 --sparsities 0.7 --out smollm2.csv \
  --methods "sparsegpt,wanda,sparsellm,alps,admm,admm:guided,admm:guided;reconstruct=True"
sweep $SMOLLM2 --texts demo --sparsities 0.5 --methods sparsegpt,sparsellm,wanda --out smollm2.csv
sweep $SMOLLM2 --texts demo,wikitext2 --sparsities 0.7,2:4,0.5,0.6,0.8 --out smollm2.csv \
  --methods "sparsegpt,wanda,sparsellm:paper,sparsellm:published,sparsellm:repaired,sparsellm,alps,admm,admm:guided,\
admm:guided;reconstruct=True"
sweep --model smollm2-135m --samples 128 --seqlen 512 --windows 24 --texts demo,wikitext2 --sparsities 0.7,2:4 \
  --out smollm2.csv --methods "sparsegpt,alps,sparsellm,admm:guided,admm:guided;reconstruct=True"

# Three calibration seeds for the claims.
sweep $BOOKS --texts "$HELDOUT,wikitext2" --sparsities 0.7,0.8 --seeds 0,1,2 --out seeds.csv \
  --methods "sparsegpt,admm,sparsellm,admm:guided"
sweep $SMOLLM2 --texts demo,wikitext2 --sparsities 0.7 --seeds 0,1,2 --out seeds.csv \
  --methods "sparsegpt,sparsellm,admm:guided"

# Other divisions of the zeros, and training end to end after the recommended call.
python beyond.py divisions
python beyond.py distil
