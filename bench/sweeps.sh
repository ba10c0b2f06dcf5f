#!/usr/bin/env bash
# The sweeps behind the README's tables and notebook 09; broken off, they go on. Called by `make tables`, three hours on two
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
  --methods "sparsegpt,admm,sparsellm,sparsellm:ridge=0.01,sparsellm:ridge=0.001"

# Verdicts on the published methods, three calibration seeds: the paper's mathematics, the code as released, repaired; one
# change at a time; and DSnoT's published switches, together and one by one.
sweep $BOOKS --texts "$HELDOUT,wikitext2,demo" --sparsities 0.7,0.8 --seeds 0,1,2 --out published.csv \
  --methods "sparsegpt,sparsellm:paper,sparsellm:published,sparsellm:repaired"
python published_loop.py --out published_loop.csv
sweep $BOOKS --texts "$HELDOUT,wikitext2,demo" --sparsities 0.6,0.7 --seeds 0,1,2 --out dsnot.csv \
  --methods "wanda,dsnot:published,dsnot:wanda,dsnot:same_sign=False,dsnot:skip_ffn=True"

# The LLaMA family.
sweep $SMOLLM2 --texts demo,wikitext2 --sparsities 0.7 --methods sparsegpt,sparsellm,wanda --out smollm2.csv
sweep $SMOLLM2 --texts demo --sparsities 0.5 --methods sparsegpt,sparsellm,wanda --out smollm2.csv

# Three calibration seeds for the claims.
sweep $BOOKS --texts "$HELDOUT,wikitext2" --sparsities 0.7,0.8 --seeds 0,1,2 --methods sparsegpt,admm,sparsellm --out seeds.csv
sweep $SMOLLM2 --texts demo --sparsities 0.7 --seeds 0,1,2 --methods sparsegpt,sparsellm --out seeds.csv
