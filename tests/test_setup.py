"""What a fresh machine installs: one source, its reasons, nothing of others in the repository."""

import re
import subprocess
import tomllib

import pytest
from conftest import ROOT

import sparselab

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements():
    """Everything that `make setup` installs."""
    return (
        PYPROJECT["project"]["dependencies"] + PYPROJECT["project"]["optional-dependencies"]["dev"]
    )


def test_environment_yml_has_the_same_entries():
    listed = re.findall(r"^      - (\S+.*)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    assert sorted(set(listed) - {"-e ."}) == sorted(requirements())
    assert (
        f"python{PYPROJECT['project']['requires-python']}" in (ROOT / "environment.yml").read_text()
    )


@pytest.mark.parametrize("requirement", requirements())
def test_every_dependency_has_a_reason(requirement):
    line = next(
        line
        for line in (ROOT / "pyproject.toml").read_text().splitlines()
        if f'"{requirement}"' in line
    )
    assert len(line.split("#", 1)[1].split()) >= 3


def test_torch_is_pinned_to_a_closed_range():
    torch = next(r for r in requirements() if r.startswith("torch"))
    assert ">=" in torch and "<" in torch


@pytest.mark.parametrize("index", ["", "https://download.pytorch.org/whl/cpu"])
def test_every_line_of_the_set_up_is_a_whole_shell_command(index):
    """A comma inside make's $(if) once cut a requirement in two; a machine that was set up already
    never noticed."""
    shown = subprocess.check_output(
        ["make", "-nB", "setup", f"TORCH_INDEX={index}"], cwd=ROOT, text=True
    )
    for line in shown.splitlines():
        subprocess.run(["sh", "-nc", line], check=True)
    assert ('"torch>=2.13,<2.14"' in shown) == bool(index)
    assert "--no-deps" in shown


def test_ci_calls_make_test():
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]


def tracked():
    """The files that git tracks; nothing to check outside a repository."""
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git repository")
    return [ROOT / name for name in result.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_text_of_others_and_no_large_file_is_committed():
    assert not [
        file
        for file in tracked()
        if file.name in ("c4_demo.jsonl", "wiki_demo.txt") or "cache" in file.parts
    ]
    assert not [
        file for file in tracked() if file.stat().st_size > 1e6 and "opt-mini" not in file.parts
    ]


def test_every_public_name_is_documented():
    for name in sparselab.__all__:
        value = getattr(sparselab, name)
        assert not callable(value) or (value.__doc__ and len(value.__doc__) > 20), name


def test_functions_stay_short():
    """The promise of the package, docstrings not counted: median under 12 lines, none over 50."""
    import ast

    lengths = []
    for file in (ROOT / "sparselab").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                documented = isinstance(node.body[0], ast.Expr) and ast.get_docstring(node)
                first = node.body[0].end_lineno if documented else node.lineno - 1
                lengths.append((node.end_lineno - first, f"{file.name}:{node.name}"))
    lengths.sort()
    assert lengths[len(lengths) // 2][0] < 12 and lengths[-1][0] <= 50, lengths[-3:]
