"""Is a sparse product faster? python bench/sparse_products.py [--csv bench/sparse_products.csv]

On the CPU: W X for the middle fc1 or up_proj of opt-mini and smollm2-135m, magnitude-pruned, with
1, 16 and 256 tokens; dense (torch.mm) against torch's CSR (torch.sparse.mm), float32, the number of
threads as OMP_NUM_THREADS says. On an NVIDIA GPU, if there is one: the matrices of LLaMA-2-13b in
float16, pruned 2:4, dense against torch.sparse.to_sparse_semi_structured. Without one it says so.
Times are medians, in microseconds.
"""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch.sparse import to_sparse_semi_structured

import sparselab as sl
from sparselab.experiments.comparison import shown_matrix
from sparselab.patterns import prune_rows

SPARSITIES = (0.5, 0.7, 0.9, 0.95, 0.99)
LLAMA_13B = {"q_proj": (5120, 5120), "up_proj": (13824, 5120), "down_proj": (5120, 13824)}


def microseconds(work: Callable[[], object], seconds: float = 0.3) -> float:
    """Median time of a call, over as many as fit, at least five, after one not counted."""
    times, end = [], time.perf_counter() + seconds
    work()
    while len(times) < 5 or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1e6 * sorted(times)[len(times) // 2]


def on_cpu() -> list[dict]:
    rows = []
    for name in ("opt-mini", "smollm2-135m"):
        weight = shown_matrix(sl.load(name)[0]).weight.detach().float()
        for tokens in (1, 16, 256):
            x = torch.randn(weight.shape[1], tokens, generator=torch.Generator().manual_seed(0))
            dense = microseconds(lambda weight=weight, x=x: weight @ x)
            for sparsity in SPARSITIES:
                pruned = weight.masked_fill(
                    prune_rows(weight.abs(), sl.Pattern(sparsity), per_row=False), 0
                )
                csr = pruned.to_sparse_csr()
                assert torch.allclose(csr @ x, pruned @ x, atol=1e-4)
                sparse = microseconds(lambda csr=csr, x=x: torch.sparse.mm(csr, x))
                rows.append(
                    {
                        "device": "cpu",
                        "model": name,
                        "matrix": f"{weight.shape[0]} x {weight.shape[1]}",
                        "kernel": "csr",
                        "dtype": "float32",
                        "tokens": tokens,
                        "sparsity": sparsity,
                        "dense_us": dense,
                        "sparse_us": sparse,
                        "threads": torch.get_num_threads(),
                        "machine": platform.processor() or platform.machine(),
                    }
                )
    return rows


def on_gpu() -> list[dict]:
    """2:4 at the sizes of LLaMA-2-13b; the compressed matrix is held against the dense product."""

    def timed(work):
        def once():
            work()
            torch.cuda.synchronize()

        return microseconds(once)

    rows = []
    for name, (outputs, inputs) in LLAMA_13B.items():
        weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.float16)
        pruned = weight.masked_fill(
            prune_rows(weight.float().abs(), sl.Pattern.parse("2:4"), per_row=True), 0
        )
        compressed = to_sparse_semi_structured(pruned)
        for tokens in (16, 256, 2048, 8192):
            x = torch.randn(tokens, inputs, device="cuda", dtype=torch.float16)
            same = torch.allclose(
                torch.nn.functional.linear(x, compressed),
                torch.nn.functional.linear(x, pruned),
                rtol=1e-2,
                atol=1.0,
            )
            rows.append(
                {
                    "device": torch.cuda.get_device_name(),
                    "model": "LLaMA-2-13b's shape",
                    "kernel": "2:4",
                    "matrix": f"{outputs} x {inputs} ({name})",
                    "dtype": "float16",
                    "tokens": tokens,
                    "sparsity": 0.5,
                    "dense_us": timed(lambda x=x, w=pruned: torch.nn.functional.linear(x, w)),
                    "sparse_us": timed(lambda x=x, w=compressed: torch.nn.functional.linear(x, w)),
                    "machine": f"same product: {same}",
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "sparse_products.csv")
    args = parser.parse_args()
    with torch.no_grad():
        rows = on_cpu()
        if torch.cuda.is_available():
            rows += on_gpu()
        else:
            print(
                "No GPU here: the 2:4 kernels were not measured. On a machine with one, the same"
                " command does it."
            )
    table = pd.DataFrame(rows).round({"dense_us": 2, "sparse_us": 2})
    table.to_csv(args.csv, index=False)
    print(table.assign(ratio=(table.sparse_us / table.dense_us).round(2)).to_string(index=False))


if __name__ == "__main__":
    main()
