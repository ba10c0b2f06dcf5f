"""How this project tests its notebooks, and makes pages of them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Kernels of tests and of stored runs: no network, small multiples in place of sliders, and the same
# numbers each time, which takes one thread: with two, SparseGPT's sums come in another order and
# differ by more than the tests allow.
KERNEL_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "SPARSELAB_STATIC": "1",
    "OMP_NUM_THREADS": "1",
}


def lessons() -> list[Path]:
    """The course's notebooks, in their order."""
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def build_pages(builder: str, source: Path, out: Path) -> None:
    """Have sphinx build a folder of pages, from nothing; its warnings, such as a link that leads
    nowhere, are errors."""
    command = [sys.executable, "-m", "sphinx", "-b", builder, "-W", "--keep-going", "-q"]
    subprocess.run([*command, str(source), str(out)], check=True)
