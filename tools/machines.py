"""One machine plays several: the tests and the notebooks under other instruction sets and numbers
of threads, and how far numbers move.

    python -m tools.machines --tests          # tests/ under all settings; make test-machines
    python -m tools.machines                  # all notebooks; make test-machines
    python -m tools.machines --choose         # one setting at random, as environment variables;
    .ci/run

torch chooses its CPU kernels by the processor, and ATEN_CPU_CAPABILITY makes it choose lesser ones.
Each notebook is executed under each setting, as a copy in build/machines/, and what it prints is
compared with what is stored, as the tests compare it. A copy that was made from the same code,
notebook's, package's and records', is not made again, so that an interrupted run goes on.
"""

import argparse
import datetime
import hashlib
import multiprocessing
import os
import platform
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbval.plugin import get_sanitize_patterns
from tqdm import tqdm

from tools import KERNEL_ENVIRONMENT
from tools.compare import Deviation, Tolerance, deviations, folded
from tools.execute_notebooks import run

CAPABILITIES, THREADS = ("default", "avx2", "avx512"), (1, 2)
# What torch's kernels of each name need; it does not look whether the processor has it.
FLAGS = {
    "default": set(),
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl", "fma"},
}
UNCOMPARED = {"nbval-ignore-output", "nbval-skip"}
PATTERNS = Path("tests/nbval_sanitize.cfg")


@dataclass(frozen=True)
class Setting:
    """One of the machines that this one plays."""

    capability: str
    threads: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make it so."""
        return {"ATEN_CPU_CAPABILITY": self.capability, "OMP_NUM_THREADS": str(self.threads)}

    def __str__(self) -> str:
        return f"{self.capability}-{self.threads}"


@dataclass(frozen=True)
class CellResult:
    """How far a cell's output under a setting is from what is stored: its numbers' deviations, or
    why it fails."""

    place: int
    setting: Setting
    numbers: list[Deviation]
    fault: str = ""

    @property
    def passes(self) -> bool:
        """As the tests would say."""
        return not self.fault and all(number.allowed for number in self.numbers)

    @property
    def relative(self) -> float:
        """The largest deviation of the numbers that have no uncertainty beside them."""
        return max(
            (number.relative for number in self.numbers if number.sigmas is None), default=0.0
        )

    @property
    def sigmas(self) -> float:
        """The largest deviation of those that have, in its units."""
        return max(
            (number.sigmas for number in self.numbers if number.sigmas is not None), default=0.0
        )


def settings() -> list[Setting]:
    """Those that this processor can play."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = {*text.partition("flags")[2].partition("\n")[0].split()}
    able = [name for name in CAPABILITIES if FLAGS[name] <= flags]
    return [Setting(*pair) for pair in product(able, THREADS)]


def run_tests(played: list[Setting]) -> list[Setting]:
    """The tests under each setting, one after the other; the settings under which one fails."""
    failed = []
    for setting in played:
        print(f"tests under {setting}", flush=True)
        if subprocess.run(["make", "units"], env=os.environ | setting.environment).returncode:
            failed.append(setting)
    return failed


def code_digest() -> str:
    """Of the package and the records, which the notebooks compute with and print."""
    files = [file for folder in ("sparselab", "bench") for file in Path(folder).rglob("*")]
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.is_file()):
        if file.suffix != ".pyc" and file.name != "machines.md":
            digest.update(file.read_bytes())
    return digest.hexdigest()


def execute_copy(job: tuple[Path, Path, Setting, str]) -> Path:
    """A notebook under a setting, unless the copy that is there was made from the same code; errors
    are stored too."""
    source, copy, setting, digest = job
    notebook = nbformat.read(source, as_version=4)
    if copy.exists():
        made = nbformat.read(copy, as_version=4)
        if _code(made) == _code(notebook) and made.metadata.get("made_from") == digest:
            return copy
    notebook.metadata["made_from"] = digest
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    run(notebook, source.parent, KERNEL_ENVIRONMENT | setting.environment, allow_errors=True)
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_suffix(".part")
    nbformat.write(notebook, part)
    part.replace(copy)
    return copy


def _code(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def compared(stored: Path, copy: Path, setting: Setting) -> list[CellResult]:
    """The code cells of a notebook, those that the tests compare."""
    notebook, results = nbformat.read(stored, as_version=4), []
    patterns = get_sanitize_patterns(PATTERNS.read_text())
    copies = iter(
        cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"
    )
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        new, tags = next(copies), {*cell.metadata.get("tags", [])}
        if error := next((out for out in new.outputs if out.output_type == "error"), None):
            if "raises-exception" not in tags:
                results.append(CellResult(place, setting, [], f"{error.ename}: {error.evalue}"))
                continue
        if not tags & UNCOMPARED:
            tolerance = Tolerance().updated(notebook.metadata).updated(cell.metadata)
            moved = deviations(_printed(cell, patterns), _printed(new, patterns), tolerance)
            results.append(
                CellResult(
                    place,
                    setting,
                    moved or [],
                    "" if moved is not None else "other text or integers",
                )
            )
    return results


def _printed(cell: NotebookNode, patterns: list[tuple[str, str]]) -> str:
    """What nbval compares of a cell's outputs: standard output, then texts, with what depends on
    the machine replaced."""
    streams = "".join(
        out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stdout"
    )
    texts = [out.data["text/plain"] for out in cell.outputs if "text/plain" in out.get("data", {})]
    text = folded("\n".join([streams, *texts]))
    for pattern, replacement in patterns:
        text = re.sub(pattern, replacement, text)
    return text


def table(results: dict[str, list[CellResult]], played: list[Setting], day: str) -> str:
    """As Markdown: the cells whose numbers move, each with the largest deviation and the setting
    where it is."""
    by_cell: dict[tuple[str, int], list[CellResult]] = {}
    for name, one in results.items():
        for result in one:
            by_cell.setdefault((name, result.place), []).append(result)
    moving = {
        key: here
        for key, here in by_cell.items()
        if any(r.relative or r.sigmas or r.fault for r in here)
    }
    failed = [result for here in by_cell.values() for result in here if not result.passes]
    lines = [
        (
            f"# How far the notebooks' numbers move between machines\n\n{day}, {processor()}, torch"
            f" {version('torch')}; written by `make test-machines`. Settings"
            f" (ATEN_CPU_CAPABILITY-threads): {', '.join(map(str, played))}. Of {len(by_cell)}"
            f" compared cells {len(by_cell) - len(moving)} print the same digits everywhere and"
            f" {len(moving)} do not; {len(failed)} results fail.\n"
        ),
        (
            "Relative: the largest deviation of a number without an uncertainty beside it, beyond"
            " one unit of its last place. In errors: of a number `a ± b`, in units of b.\n"
        ),
        "| notebook | cell | relative | in | in errors | in | |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, place), here in moving.items():
        far, wide = max(here, key=lambda r: r.relative), max(here, key=lambda r: r.sigmas)
        faults = "; ".join(
            f"**{r.setting}: {r.fault or 'beyond its tolerance'}**" for r in here if not r.passes
        )
        lines.append(
            f"| {name} | {place} | {far.relative:.2%} | {far.setting if far.relative else ''} | "
            f"{wide.sigmas:.2f} | {wide.setting if wide.sigmas else ''} | {faults} |"
        )
    return "\n".join(lines) + "\n"


def processor() -> str:
    """Its name, as the system gives it."""
    result = subprocess.run(["lscpu"], capture_output=True, text=True)
    name = re.search(r"Model name:\s*(.+)", result.stdout)
    return name[1].strip() if name else platform.processor() or platform.machine()


def main() -> int:
    """Choose a setting, or run and compare all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: notebooks/*.ipynb")
    parser.add_argument(
        "--choose", action="store_true", help="print one setting, chosen at random, for `export`"
    )
    parser.add_argument("--tests", action="store_true", help="run tests/ instead of notebooks")
    parser.add_argument("--settings", help="some of them, such as default-1,avx2-2")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at once")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/machines"), help="where the copies go"
    )
    parser.add_argument("--table", type=Path, help="the Markdown file to write; else it is printed")
    args = parser.parse_args()
    if args.choose:
        print(
            " ".join(
                f"{key}={value}" for key, value in random.choice(settings()).environment.items()
            )
        )
        return 0
    wanted = args.settings.split(",") if args.settings else [*map(str, settings())]
    played = [setting for setting in settings() if str(setting) in wanted]
    if args.tests:
        failed = run_tests(played)
        print(f"tests fail under {', '.join(map(str, failed)) or 'none'} of {len(played)} settings")
        return int(bool(failed))
    files = args.notebooks or sorted(Path("notebooks").glob("*.ipynb"))
    digest = code_digest()
    jobs = [
        (file, args.folder / str(setting) / file.name, setting, digest)
        for file in files
        for setting in played
    ]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for _ in tqdm(pool.imap_unordered(execute_copy, jobs), total=len(jobs), unit="notebook"):
            pass
    results: dict[str, list[CellResult]] = {}
    for file, copy, setting, _ in jobs:
        results.setdefault(file.stem, []).extend(compared(file, copy, setting))
    text = table(results, played, datetime.date.today().isoformat())
    if args.table:
        args.table.write_text(text, encoding="utf8")
    print(text)
    return int(any(not result.passes for one in results.values() for result in one))


if __name__ == "__main__":
    sys.exit(main())
