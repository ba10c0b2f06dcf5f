"""The folder for a room without network: all but the wheels, which a network brings."""

import subprocess

from conftest import ROOT

from tools import bundle


def test_the_project_as_it_lies_here_and_the_texts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bundle, "wheels", lambda folder: folder.mkdir())
    bundle.main(["--out", str(tmp_path / "bundle")])
    project = tmp_path / "bundle" / "sparselab"
    for name in ("Makefile", "pyproject.toml", "notebooks/00_start_here.ipynb", "sparselab/viz.py"):
        assert (project / name).read_bytes() == (ROOT / name).read_bytes()
    assert (project / "data" / "cache" / "demo" / "wiki_demo.txt").exists()
    assert not (project / ".venv").exists() and "GB, for " in capsys.readouterr().out
    # The script asks make, in the project's folder, for what the first command of the README does.
    setup = tmp_path / "bundle" / "setup.sh"
    done = subprocess.run(["sh", setup, "--dry-run"], check=True, capture_output=True, text=True)
    assert "pip install" in done.stdout and f"cd {project}" in done.stdout
    assert 'PIP_NO_INDEX=1 PIP_FIND_LINKS="$PWD/../wheels"' in setup.read_text()
