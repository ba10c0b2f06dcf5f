"""Packed storage: the same bits again, in the room that was promised."""

import pytest
import torch
from conftest import TINY

import sparselab as sl
from sparselab.models.packed import PACKED, pack, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 16), (7, 9)])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 1.0])
def test_round_trip(dtype, shape, sparsity):
    torch.manual_seed(0)
    weight = (torch.randn(shape) * (torch.rand(shape) >= sparsity)).to(dtype)
    bits, values = pack(weight)
    assert len(bits) == -(-weight.numel() // 8) and len(values) == int((weight != 0).sum())
    assert torch.equal(unpack(bits, values, list(shape)), weight)


def test_by_hand():
    bits, values = pack(torch.tensor([[1.0, 0, 2], [0, 0, 0], [0, 0, 3]]))
    assert bits.tolist() == [0b101, 0b1] and values.tolist() == [1, 2, 3]


@pytest.mark.parametrize("family", TINY)
def test_a_model_comes_back_bit_for_bit(family, windows, tmp_path):
    model = TINY[family]()
    report = sl.prune(model, windows, method="sparsegpt", sparsity=0.7, progress=False)
    folder = sl.save(model, report, tmp_path / "packed", packed=True)
    assert (folder / PACKED).exists() and not (folder / "model.safetensors").exists()
    _, tokenizer = sl.load("opt-mini")
    tokenizer.save_pretrained(folder)
    again, _ = sl.load(folder)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    (folder / PACKED).write_bytes((folder / PACKED).read_bytes()[:-64])
    with pytest.raises(sl.SparselabError):
        sl.load(folder)


@pytest.mark.parametrize(
    "sparsity, share", [(0.5, 0.5625), ("2:4", 0.5625), (0.7, 0.3625), (0.9, 0.1625)]
)
def test_room_on_disk(sparsity, share):
    """16 bits: the kept share and a sixteenth."""
    weight = torch.randn(256, 256)
    weight = sl.Magnitude().solve(weight, None, sl.Pattern.parse(sparsity)).weight.half()
    packed = sum(part.numel() * part.element_size() for part in pack(weight))
    assert packed / (2 * weight.numel()) == pytest.approx(share, abs=1e-3)


def test_broken_bits_are_refused():
    bits, values = pack(torch.eye(4))
    with pytest.raises(sl.SparselabError, match="broken"):
        unpack(bits, values[:-1], [4, 4])
