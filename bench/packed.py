"""Bytes of pruned models on disk: python bench/packed.py [--csv bench/packed.csv]

Each model in 32 and 16 bits, dense and at 50, 70, 90 % and 2:4: its safetensors file, sparselab's
packed file (the kept values and one bit a weight), and what zip's deflate (zlib, level 1, the
fastest) makes of the plain file. Magnitude pruning: how many bytes zeros save does not depend on
which weights they are. Every packed file is read again and must be equal bit for bit.
"""

import argparse
import json
import sys
import tempfile
import zlib
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open

import sparselab as sl
from sparselab.engine.report import Report
from sparselab.models.architecture import dense_weights, restore
from sparselab.models.packed import PACKED, stored_tensors, unpack

MODELS, PATTERNS = ("opt-mini", "smollm2-135m"), ("dense", "0.5", "0.7", "0.9", "2:4")


def deflated(file: Path) -> int:
    """Bytes that zip would store, a piece at a time."""
    packer, total = zlib.compressobj(1), 0
    with file.open("rb") as opened:
        while piece := opened.read(2**22):
            total += len(packer.compress(piece))
    return total + len(packer.flush())


def same_bits(model: torch.nn.Module, file: Path) -> bool:
    """Whether a packed file holds the model's tensors, bit for bit."""
    with safe_open(file, "pt") as opened:
        shapes = json.loads(opened.metadata()["shapes"])
        for name, value in stored_tensors(model).items():
            if name in shapes:
                read = unpack(
                    opened.get_tensor(name + ".bits"),
                    opened.get_tensor(name + ".values"),
                    shapes[name],
                )
            else:
                read = opened.get_tensor(name)
            if read.dtype != value.dtype or not torch.equal(read, value):
                return False
    return True


def row(model: torch.nn.Module, name: str, pattern: str, zip_too: bool) -> dict:
    """One model as it is now, written both ways into a folder that goes again."""
    linears = sum(linear.weight.numel() for linear in sl.linears_of(model).values())
    zeros = sum(int((linear.weight == 0).sum()) for linear in sl.linears_of(model).values())
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "plain", Path(folder) / "packed"
        sl.save(model, Report({}), plain)
        sl.save(model, Report({}), packed, packed=True)
        assert same_bits(model, packed / PACKED), (
            f"{name} {pattern}: the packed file is not what was written"
        )
        file = plain / "model.safetensors"
        return {
            "model": name,
            "bits": 8 * model.dtype.itemsize,
            "pattern": pattern,
            "zeros_in_linears": zeros / linears,
            "linears": linears,
            "parameters": sum(p.numel() for p in model.parameters()),
            "plain": file.stat().st_size,
            "packed": (packed / PACKED).stat().st_size,
            "deflate": deflated(file) if zip_too else None,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "packed.csv")
    rows = []
    args = parser.parse_args()
    for name in MODELS:
        for dtype in (torch.float32, torch.bfloat16):
            model, tokenizer = sl.load(name, dtype=dtype)
            windows, dense = (
                sl.calibration(tokenizer, "demo", samples=1, seqlen=64),
                dense_weights(model),
            )
            for pattern in PATTERNS:
                restore(model, dense)
                if pattern != "dense":
                    sl.prune(model, windows, method="magnitude", sparsity=pattern, progress=False)
                rows.append(
                    row(model, name, pattern, name == "opt-mini" or dtype == torch.bfloat16)
                )
                print(rows[-1], flush=True, file=sys.stderr)
    pd.DataFrame(rows).to_csv(args.csv, index=False)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
