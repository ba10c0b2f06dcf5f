"""Puts the files that sparselab reads at run time into a wheel, as sparselab/_data; all else is in
pyproject.toml.

They lie outside the package, once, and setuptools has no setting for that. Paths stay as they are
in the repository: see sparselab/runtime/files.py. An editable install reads them where they are,
and gets no copy.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

DATA = (
    "data/opt-mini/*.json",
    "data/opt-mini/*.safetensors",
    "data/opt-mini/README.md",
    "data/papers/*",
    "data/books.csv",
    "bench/figures/*.csv",
)


class WithData(build_py):
    def run(self):
        if not self.editable_mode:
            shutil.rmtree(
                self.build_lib, ignore_errors=True
            )  # a module deleted since the last build would come back
        super().run()
        for pattern in () if self.editable_mode else DATA:
            files = sorted(Path().glob(pattern))
            if not files:
                raise FileNotFoundError(
                    f"{pattern}: the package is built without what it reads at run time"
                )
            for file in files:
                target = Path(self.build_lib, "sparselab", "_data", file)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


setup(cmdclass={"build_py": WithData})
