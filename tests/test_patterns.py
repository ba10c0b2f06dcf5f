"""Counts are exact, groups are valid, and wrong sparsities get a sentence."""

import pytest
import torch

from sparselab import Pattern, SparselabError
from sparselab.patterns import _leftmost, lowest, prune_rows, valid_groups


@pytest.mark.parametrize(
    "spec, words",
    [
        (70, "Did you mean 0.7"),
        (-0.1, "outside"),
        (1.0, "outside"),
        (100, "outside"),
        (float("nan"), "outside"),
        ("4:2", "n must be below m"),
        ("4:4", "n must be below m"),
        ("a lot", "neither a fraction"),
        (None, "neither a fraction"),
    ],
)
def test_wrong_sparsity_gets_a_sentence(spec, words):
    with pytest.raises(SparselabError, match=words):
        Pattern.parse(spec)


@pytest.mark.parametrize("numbers", [(1.5,), (-0.1,), (float("nan"),), (0.5, 4, 4), (0.5, 2)])
def test_a_pattern_must_make_sense(numbers):
    with pytest.raises(SparselabError, match="between 0 and 1"):
        Pattern(*numbers)


@pytest.mark.parametrize(
    "spec, text",
    [
        (0.7, "0.7"),
        ("0.7", "0.7"),
        ("2:4", "2:4 = 50 % zeros"),
        ("3:4", "3:4 = 75 % zeros"),
        (" 4 : 8 ", "4:8 = 50 % zeros"),
    ],
)
def test_pattern_says_what_it_is(spec, text):
    assert str(Pattern.parse(spec)) == text


@pytest.mark.parametrize(
    "sparsity, count, zeros",
    [
        (0.29, 100, 29),
        (0.7, 10, 7),
        (1 - 0.3, 10, 7),
        (0.5, 3, 1),
        (1 / 3, 3, 1),
        (0, 5, 0),
        (0.999, 1000, 999),
    ],
)
def test_zeros_is_the_floor_in_spite_of_rounding(sparsity, count, zeros):
    assert Pattern(sparsity).zeros(count) == zeros


@pytest.mark.parametrize("count", [0, 1, 5, 19, 20])
@pytest.mark.parametrize("distinct", [1, 3, 10**6])
def test_lowest_counts_exactly_whatever_ties(count, distinct):
    scores = torch.randint(
        0, distinct, (50, 20), generator=torch.Generator().manual_seed(0)
    ).float()
    chosen = lowest(scores, count)
    assert (chosen.sum(1) == count).all()
    if 0 < count < 20:
        kept_least = scores.masked_fill(chosen, torch.inf).min(1).values
        assert (scores.masked_fill(~chosen, -torch.inf).max(1).values <= kept_least).all()


def test_ties_go_to_the_left():
    assert lowest(torch.tensor([[1.0, 0.0, 1.0, 1.0]]), 2).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("distinct", [2, 10**6])
def test_a_gpu_chooses_without_looking_for_ties(distinct):
    scores = torch.randint(
        0, distinct, (50, 20), generator=torch.Generator().manual_seed(0)
    ).float()
    threshold = scores.kthvalue(7, dim=1, keepdim=True).values
    assert torch.equal(_leftmost(scores, threshold, 7), lowest(scores, 7))


def test_bfloat16_magnitudes_do_not_overshoot():
    """Published thresholds with <= prune 60.24 % of bfloat16 Gaussians at 60 %."""
    w = (
        (0.02 * torch.randn(500, 500, generator=torch.Generator().manual_seed(0)))
        .bfloat16()
        .float()
    )
    assert prune_rows(w.abs(), Pattern(0.6), per_row=False).sum() == 150_000


@pytest.mark.parametrize("spec", ["2:4", "3:4", "4:8", "1:2", "0:4"])
def test_groups_hold_exactly_n_zeros(spec):
    pattern = Pattern.parse(spec)
    pruned = prune_rows(torch.rand(10, 16), pattern, per_row=True)
    assert (pruned.view(10, -1, pattern.m).sum(-1) == pattern.n).all()
    assert valid_groups(torch.ones(10, 16).masked_fill(pruned, 0), pattern)
    assert pattern.n == 0 or not valid_groups(torch.ones(10, 16), pattern)
