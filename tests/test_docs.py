"""The pages for developers: their code runs, their links lead somewhere, their map names what is
there."""

import re

import pytest
import torch
from conftest import ROOT

import sparselab as sl

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/methods.md",
    "docs/teaching.md",
    "docs/results.md",
    "docs/large-models.md",
    "docs/several-gpus.md",
    "docs/evaluation.md",
    "docs/several-gpus.md",
    "notebooks/README.md",
)


@pytest.mark.filterwarnings("ignore:opt-mini has a dense perplexity")
def test_a_new_method_is_one_dataclass():
    """CONTRIBUTING.md's example prunes a model with every switch, by its own definition."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    names = {"__name__": "ria"}
    exec(code, names)  # the page's own code, a method called RIA
    model, tokenizer = sl.load("opt-mini")
    windows = torch.randint(5, len(tokenizer), (4, 32), generator=torch.Generator().manual_seed(0))
    dense = {name: linear.weight.detach().clone() for name, linear in sl.linears_of(model).items()}
    report = sl.prune(model, windows, method=names["RIA"](power=0.0), sparsity=0.5, progress=False)
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)
    name, linear = next(iter(sl.linears_of(model).items()))
    size = dense[name].abs()
    relative = size / size.sum(1, keepdim=True) + size / size.sum(0, keepdim=True)
    kept = relative >= relative.kthvalue(relative.shape[1] // 2 + 1, 1).values[:, None]
    assert torch.equal(linear.weight != 0, kept)
    for switches in ({"refit": True}, {"targets": "dense-stream"}, {"in_order": True}):
        report = sl.prune(
            model, windows, method=names["RIA"](), sparsity="3:4", progress=False, **switches
        )
        assert report.sparsity >= 0.75  # those that were zero before count, too


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_map_has_every_file_of_the_engine_and_every_room():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for file in (ROOT / "sparselab" / "engine").glob("*.py"):
        assert file.stem in ("__init__", "finetuning", "planning") or file.name in text, file.name
    for room in (
        path for path in (ROOT / "sparselab").iterdir() if (path / "__init__.py").exists()
    ):
        assert f"`{room.name}/`" in text, room.name
