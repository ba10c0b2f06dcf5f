"""All that a room without network needs, in one folder: python -m tools.bundle [--out FOLDER]

The project, the wheels of this very environment, and the demo texts. The folder is copied to a
machine of the same system and Python, where `sh setup.sh` makes the environment from it alone.
"""

import argparse
import platform
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from sparselab.data.demo_corpus import fetch_demo
from sparselab.runtime.files import DISTRIBUTION

from . import ROOT

SETUP = """#!/bin/sh
# Makes sparselab/.venv from the wheels beside this file; no network is asked.
set -e
cd "$(dirname "$0")/sparselab"
export PIP_NO_INDEX=1 PIP_FIND_LINKS="$PWD/../wheels"
make setup "$@"
echo "Ready. cd $PWD; make lab"
"""
READ_ME = """sparselab for a room without network

For {system} with Python {python} and `make`. Copy this folder ({size:.1f} GB) to each machine
(3 GB more are used there) and run

    sh setup.sh                   # or: sh setup.sh PYTHON=python{python}
    cd sparselab && make lab
"""


def main(arguments: list[str] | None = None) -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bundle")
    out = parser.parse_args(arguments).out
    shutil.rmtree(out, ignore_errors=True)
    copy_project(out / "sparselab")
    wheels(out / "wheels")
    (out / "setup.sh").write_text(SETUP, encoding="utf8")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e9
    about = {"system": f"{platform.system()} {platform.machine()}", "size": size}
    python = ".".join(platform.python_version_tuple()[:2])
    (out / "README.txt").write_text(READ_ME.format(python=python, **about), encoding="utf8")
    print(f"{out}: {size:.1f} GB, for {about['system']} with Python {python}.")


def copy_project(folder: Path) -> None:
    """What git knows of the project, as it lies here, and the demo texts."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    shutil.copytree(fetch_demo(), folder / "data" / "cache" / "demo")


def wheels(folder: Path) -> None:
    """Bring a wheel of each package of this environment, in its version: what was tested here is
    what the room gets. Source distributions are built, so that nobody needs a compiler there."""
    found = {d.metadata["Name"]: d.version for d in distributions()}
    found.pop(DISTRIBUTION)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    command.append(str(folder))
    plain = [f"{name}=={version}" for name, version in found.items() if "+" not in version]
    subprocess.run([*command, *plain], check=True)
    for name, version in found.items():
        if "+" in version:  # a build such as 2.13.0+cpu is on PyTorch's own index only
            index = f"https://download.pytorch.org/whl/{version.partition('+')[2]}"
            pinned = [f"--extra-index-url={index}", "--retries=1", f"{name}=={version}"]
            subprocess.run([*command, *pinned], check=True)


if __name__ == "__main__":
    main()
