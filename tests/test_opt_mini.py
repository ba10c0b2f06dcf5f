"""opt-mini is good enough to teach with: at 70 % the methods rank as theory says, far outside the
error."""

import lzma

import pytest
import torch

import sparselab as sl
from sparselab.data.tokenising import encode
from sparselab.models.architecture import restore


def gaps(calibration, text):
    """Paired log gaps in units of their standard errors: SparseGPT over dense, Wanda over
    SparseGPT, magnitude over it."""
    model, _ = sl.load("opt-mini")
    dense = {name: linear.weight.detach().clone() for name, linear in sl.linears_of(model).items()}
    results = [sl.perplexity(model, text, seqlen=256, progress=False)]
    for method in ("sparsegpt", "wanda", "magnitude"):
        restore(model, dense)
        sl.prune(model, calibration, method=method, sparsity=0.7, progress=False)
        results.append(sl.perplexity(model, text, seqlen=256, progress=False))
    return [
        gap / stderr
        for gap, stderr in (
            worse.ratio(better) for better, worse in zip(results, results[1:], strict=False)
        )
    ]


@pytest.mark.needs_data
def test_the_methods_rank_on_held_out_books(shared_data):
    if not (shared_data / "books-heldout.txt.xz").exists():
        pytest.skip("needs the books, which are not part of the project")
    _, tokenizer = sl.load("opt-mini")
    with lzma.open(shared_data / "books-train.txt.xz", "rt", encoding="utf8") as file:
        train = encode(tokenizer, file.read(2_000_000))
    with lzma.open(shared_data / "books-heldout.txt.xz", "rt", encoding="utf8") as file:
        held = encode(tokenizer, file.read(200_000))
    starts = torch.randint(0, len(train) - 256, (32,), generator=torch.Generator().manual_seed(0))
    calibration = torch.stack([train[s : s + 256] for s in starts])
    assert min(gaps(calibration, held[: 32 * 256])) > 5


def test_the_methods_rank_on_the_demo_text():
    _, tokenizer = sl.load("opt-mini")
    calibration = sl.calibration(tokenizer, "demo", samples=32, seqlen=256)
    assert min(gaps(calibration, sl.tokens(tokenizer, "demo")[: 32 * 256])) > 2
