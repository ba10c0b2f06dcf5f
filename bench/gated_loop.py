"""SparseLLM's loop on a model of the LLaMA family, with the released steps for a gate's s in all
blocks, judged by the whole model's perplexity.

    SPARSELAB_DATA=FOLDER python bench/gated_loop.py

smollm2-135m at 70 %, 16 windows of 512 tokens of the demo's web pages. `sparsellm:published` is the
same loop with bounded steps (its rows are in bench/seeds.csv); here it takes two steps of a fixed
rate, as released, and nothing else changes.
"""

import argparse
from pathlib import Path
from unittest.mock import patch

from torch import Tensor

import sparselab as sl
from sparselab.course.exercises.nb08_sparsellm_llama import gate_step
from sparselab.experiments.sweep import Sweep, jobs_of
from sparselab.methods import feed_forward
from sparselab.models.architecture import dense_weights, restore

METHOD = "sparsellm:published"
GRADIENT = f"{METHOD}, gradient steps"


def gradient_steps(s: Tensor, p: Tensor, z: Tensor, g: Tensor, *penalties: float) -> Tensor:
    """Two released steps for s, in place of `feed_forward.solve_s`; its penalties are not used."""
    return gate_step(gate_step(s, p, z, g), p, z, g)


def main() -> None:
    """The runs that are missing in the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("bench/gated_loop.csv"))
    args = parser.parse_args()
    sweep = Sweep(
        model="smollm2-135m", samples=16, seqlen=512, texts=("demo", "wikitext2"), windows=24
    )
    model, _ = sl.load(sweep.model)
    unpruned, dense = sweep.perplexities(model), dense_weights(model)

    def make(job: dict) -> list[dict]:
        restore(model, dense)
        with patch.object(feed_forward, "solve_s", gradient_steps):
            report = sweep.prune(model, job["seed"], job["pattern"], METHOD)
        return sweep.evaluate(model, report, unpruned, **job)

    sweep.resume(args.out, jobs_of(args.seeds, ["0.7"], [GRADIENT]), make, True)


if __name__ == "__main__":
    main()
