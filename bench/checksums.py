"""Are two states of the code equal to the last bit? SHA-256 of what every method leaves of a model,
with its error.

    python bench/checksums.py > before.txt     # then change the code
    python bench/checksums.py | diff before.txt -

opt-mini, 4 x 64 tokens of the demo text; 50 %, 70 % and 2:4; in memory and streamed; one thread.
"""

import hashlib
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import sparselab as sl

METHODS = {
    "magnitude": sl.Magnitude(),
    "magnitude, whole model": sl.Magnitude(scope="global"),
    "wanda": sl.Wanda(),
    "wanda, matrix": sl.Wanda(per="matrix"),
    "sparsegpt": sl.SparseGPT(),
    "dsnot": sl.DSnoT(),
    "dsnot, published": sl.DSnoT.published(),
    "swaps": sl.Swaps(),
    "admm": sl.ADMM(),
    "sparsellm": sl.SparseLLM(),
    "sparsellm, published": sl.SparseLLM.published("OPT"),
    "sparsellm, paper": sl.SparseLLM.paper("OPT"),
    "sparsellm, repaired": sl.SparseLLM.repaired("OPT"),
    "wanda, refit": sl.Wanda(refit=True),
    "sparsegpt, dense model": sl.SparseGPT(targets="dense-model"),
    "sparsegpt, dense stream, in order": sl.SparseGPT(targets="dense-stream", in_order=True),
}


def digest(weights: dict[str, torch.Tensor]) -> str:
    """One number for all tensors."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode() + weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def in_memory(method: sl.Method, sparsity: float | str, **options) -> tuple[str, float]:
    """The weights of the model's linears, and the mean error."""
    model, tokenizer = sl.load("opt-mini")
    windows = sl.calibration(tokenizer, "demo", samples=4, seqlen=64)
    if callable(sparsity):
        sparsity = sparsity(model, windows)
    report = sl.prune(model, windows, method=method, sparsity=sparsity, progress=False, **options)
    return (
        digest({name: linear.weight.detach() for name, linear in sl.linears_of(model).items()}),
        report.error,
    )


def streamed(method: sl.Method, sparsity: float | str) -> tuple[str, float]:
    """All tensors of the folder that is written."""
    _, tokenizer = sl.load("opt-mini")
    windows = sl.calibration(tokenizer, "demo", samples=4, seqlen=64)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        report = sl.prune(
            "opt-mini", windows, method=method, sparsity=sparsity, out=out, progress=False
        )
        tensors = {
            key: value
            for file in sorted(out.glob("*.safetensors"))
            for key, value in load_file(file).items()
        }
        return digest(tensors), report.error


def main() -> None:
    """Print them all."""
    torch.set_num_threads(1)
    for name, method in METHODS.items():
        for sparsity in (0.5, 0.7, "2:4"):
            for run in (in_memory, streamed):
                try:
                    print(name, sparsity, run.__name__, *run(method, sparsity), flush=True)
                except (
                    sl.SparselabError
                ) as error:  # such as magnitude over the whole model, streamed
                    print(name, sparsity, run.__name__, "refused:", error, flush=True)
    for name, allocation in {
        "owl": lambda model, windows: sl.owl(model, windows, 0.7),
        "by sensitivity": lambda model, windows: sl.by_sensitivity(model, windows, 0.7),
    }.items():
        print("sparsegpt", name, *in_memory(sl.SparseGPT(), allocation), flush=True)


if __name__ == "__main__":
    main()
