"""Every entry of the registry by its paper profile, on OPT-125m's exact shape with random weights:
python bench/paper_shapes.py [--blocks 2] [--out FILE] [--work FOLDER]

What can break at the paper's size breaks here: streaming, shapes, columns, drawings. The numbers
mean nothing, for the weights are random and the calibration is two short windows. With --blocks
only so many of the 12 blocks are pruned, the first ones, and all are streamed and scored; without
it, as many as the paper pruned, which takes hours on one core. The list of what ran, with seconds,
is written to bench/paper_shapes.md. Broken off, it goes on in the same --work folder, where entries
that ran to their end are not run again. The zero-shot entries need SPARSELAB_DATA.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, OPTConfig

import sparselab as sl
from sparselab.errors import SparselabError
from sparselab.experiments.figures import FIGURES, figure, named_figure
from sparselab.experiments.registry import Entry, entries
from sparselab.experiments.tables import as_markdown
from sparselab.models.loading import tokenizer_of

SMALL = {
    "corpus": "demo",
    "texts": ("demo",),
    "samples": 2,
    "seqlen": 64,
    "windows": 2,
    "seeds": (0,),
    "sizes": (2,),
    "counts": (1,),
    "grid": (1.0,),
    "epochs": 1,
    "items": 2,
    "tasks": ("rte", "piqa"),
}
FIRST_PATTERNS = 1  # of each entry's
ENDED = "ran to its end"


def random_opt_125m(folder: Path) -> Path:
    """A folder with a model of OPT-125m's shape and opt-mini's tokenizer; made once."""
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = OPTConfig()  # transformers' defaults are OPT-125m's shape
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        tokenizer_of(sl.load("opt-mini")[0]).save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def run(entry: Entry, model: Path, args: argparse.Namespace) -> list:
    """The list's line of an entry."""
    patterns = named_figure(entry.name, "paper")[1].patterns[:FIRST_PATTERNS]
    changes = {**SMALL, "model": str(model), "patterns": patterns}
    if args.blocks:
        changes["layers"] = range(args.blocks)
    started, state = time.perf_counter(), ENDED
    try:
        rows = len(
            figure(entry.name, profile="paper", folder=args.work, progress=False, **changes)[0]
        )
    except SparselabError as error:
        rows, state = 0, f"stopped: {error}"
    return [entry.name, entry.figure, rows, round(time.perf_counter() - started), state]


def main() -> None:
    """Run what is missing, and write the list."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--work", type=Path, default=Path("build/paper_shapes"))
    parser.add_argument("--blocks", type=int, help="prune only the first so many")
    args = parser.parse_args()
    model = random_opt_125m(args.work / "opt-125m-random")
    lines = [["entry", "figure", "rows", "seconds", "state"]]
    file = args.work / f"done-{args.blocks or 'all'}.json"  # the same blocks
    done = json.loads(file.read_text()) if file.exists() else {}
    for entry in entries().values():
        if "paper" not in entry.profiles or not FIGURES[entry.figure].measured:
            continue
        line = done.get(entry.name)
        if line is None:
            line = run(entry, model, args)
            print(line, flush=True)
            if line[-1] == ENDED:
                done[entry.name] = line
                file.write_text(json.dumps(done))
        lines.append(line)
        pruned = f"the first {args.blocks}" if args.blocks else "as many as the paper pruned"
        title = f"{' '.join(__doc__.split(':')[0].split())}. Blocks pruned: {pruned}."
        title += " 0 seconds: an entry before it made the same rows."
        args.out.write_text(f"{title}\n\n{as_markdown(lines)}\n", encoding="utf8")


if __name__ == "__main__":
    main()
