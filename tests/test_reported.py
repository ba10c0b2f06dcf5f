"""Situations from public bug reports, and their siblings: a sentence before anything changes, or
the right result."""

import json
import resource
import subprocess
import sys
from dataclasses import dataclass

import pandas as pd
import pytest
import torch
from conftest import TINY, tiny_llama, tiny_opt
from transformers import MambaConfig, MambaForCausalLM

import sparselab as sl
from sparselab.experiments.tables import claims
from sparselab.methods.base import Method, keep_weights
from sparselab.runtime.memory import is_out_of_memory


@pytest.fixture
def windows():
    return torch.randint(4, 128, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    """A tiny LLaMA in many shards, with opt-mini's tokenizer."""
    tiny_llama().save_pretrained(tmp_path / "model", max_shard_size="20KB")
    sl.load("opt-mini")[1].save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# No code from a folder.


@pytest.mark.parametrize("entry", ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"])
@pytest.mark.parametrize(
    "call",
    [
        "sl.load(sys.argv[1])",
        (
            "sl.prune(sys.argv[1], torch.ones(2, 8).long(), method='wanda', "
            "sparsity=0.5, out=sys.argv[1] + '-out', progress=False)"
        ),
        "sl.plan(sys.argv[1])",
    ],
)
def test_no_code_of_a_folder_runs_and_nothing_is_asked(folder, entry, call):
    own = {
        "AutoConfig": "own.Config",
        "AutoModelForCausalLM": "own.Model",
        "AutoTokenizer": ["own.Tokenizer", None],
    }
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        changes = {
            "auto_map": {entry: own[entry]},
            **({"model_type": "mine"} if entry == "AutoConfig" else {}),
        }
        (folder / name).write_text(json.dumps(content | changes))
    (folder / "own.py").write_text(f"open({str(folder / 'proof')!r}, 'w').write('ran')\n")
    code = (
        f"import sys, torch, sparselab as sl\ntry:\n    {call}\nexcept sl.SparselabError as"
        " error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder],
        input="y\ny\ny\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "[y/N]" not in done.stdout + done.stderr and not (folder / "proof").exists()
    assert "Traceback" not in done.stderr, done.stderr[-600:]


# Files that are not what they say.


def test_an_absent_shard_is_named(folder):
    gone = sorted(folder.glob("model-*"))[2]
    gone.unlink()
    with pytest.raises(sl.SparselabError, match=f"names {gone.name}"):
        sl.load(folder)


@pytest.mark.parametrize(
    "changes", [{"vocab_size": 200}, {"intermediate_size": 40}, {"hidden_size": 16}]
)
def test_another_config_is_told_from_missing_files(folder, changes):
    (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | changes)
    )
    with pytest.raises(
        sl.SparselabError, match="other shapes|hold no tensor|does not divide|divisible"
    ):
        sl.load(folder)


@pytest.mark.parametrize("kind", TINY)
def test_a_model_without_tokenizer_is_refused(kind, tmp_path):
    TINY[kind]().save_pretrained(tmp_path)
    with pytest.raises(sl.SparselabError):
        sl.load(tmp_path)


def test_a_state_space_model_is_no_mixture_of_experts():
    with torch.device("meta"):
        model = MambaForCausalLM(
            MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
        )
    with pytest.raises(sl.SparselabError, match="is not built like"):
        sl.family_of(model)


# What cannot be pruned is refused first; what is pruned is finite.


@pytest.mark.parametrize(
    "pair",
    [
        ("0.mlp.up_proj", "1.mlp.up_proj"),
        ("0.self_attn.q_proj", "0.self_attn.o_proj"),
        ("0.mlp.gate_proj", "0.mlp.up_proj"),
    ],
)
def test_a_matrix_that_is_shared_is_refused(pair, windows):
    model = tiny_llama()
    one, other = (model.model.layers.get_submodule(name) for name in pair)
    other.weight = one.weight
    with pytest.raises(sl.SparselabError, match="share one matrix"):
        sl.prune(model, windows, method="wanda", sparsity=0.5, progress=False)


@dataclass(frozen=True)
class Broken(Method):
    """Weights times a number that is not finite: a word, since a number would be refused."""

    value: str = "nan"
    name = "broken"

    def solve(self, weight, stats, pattern):
        return keep_weights(weight * float(self.value), torch.zeros_like(weight, dtype=torch.bool))


@pytest.mark.parametrize("method", [Broken("nan"), Broken("inf")], ids=["nan", "inf"])
def test_nothing_that_is_not_finite_is_written(method, windows):
    model = tiny_opt()
    with pytest.raises(sl.SparselabError, match="not finite"):
        sl.prune(model, windows, method=method, sparsity=0.5, progress=False)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


@pytest.mark.parametrize("rate", [1e12, 1e18])
def test_a_training_that_diverges_says_so_and_revives_no_zero(rate, windows):
    model = tiny_opt()
    sl.prune(model, windows, method="magnitude", sparsity=0.5, progress=False)
    zero = {name: linear.weight == 0 for name, linear in sl.linears_of(model).items()}
    with pytest.raises(sl.SparselabError, match="diverged"):
        sl.finetune(model, windows, steps=3, batch=2, rate=rate, progress=False)
    assert all(
        (linear.weight[zero[name]] == 0).all() for name, linear in sl.linears_of(model).items()
    )


# No zeros asked for: nothing changes.

METHODS = [
    sl.Magnitude(),
    sl.Wanda(),
    sl.SparseGPT(),
    sl.DSnoT(),
    sl.Swaps(),
    sl.ADMM(),
    sl.ALPS(),
    sl.SparseLLM(),
    sl.SparseLLM.published("OPT"),
    sl.SparseLLM.published("LLaMA"),
    sl.Wanda(refit=True),
    sl.SparseGPT(targets="dense-stream"),
    sl.SparseGPT(fisher=True, divide=True),
    sl.Wanda(reconstruct=True),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("sparsity", [0, {0: 0.0, 1: 0.5}])
def test_sparsity_0_changes_nothing(kind, method, sparsity, windows):
    model = TINY[kind]()
    before = {
        name: linear.weight.detach().clone() for name, linear in sl.linears_of(model, [0]).items()
    }
    report = sl.prune(model, windows, method=method, sparsity=sparsity, progress=False)
    assert all(
        torch.equal(linear.weight, before[name])
        for name, linear in sl.linears_of(model, [0]).items()
    )
    assert len(report.rows) == len(sl.linears_of(model))


# Out of memory, as Linux says it.


def test_out_of_memory_is_recognised_and_halves_the_windows():
    """Under a real limit of the address space: 64 windows at once need 512 MB, a few do not."""
    code = """
import resource, torch, sparselab as sl
from transformers import OPTConfig, OPTForCausalLM
torch.set_num_threads(1)
config = OPTConfig(vocab_size=64, hidden_size=64, ffn_dim=4096, num_hidden_layers=2,
                   num_attention_heads=4, max_position_embeddings=512, word_embed_proj_dim=64)
model = OPTForCausalLM(config).eval()
status = open("/proc/self/status")
now = int(next(line for line in status if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (now + 400 * 2**20,) * 2)
windows = torch.randint(4, 64, (64, 512))
report = sl.prune(model, windows, method="wanda", sparsity=0.5, batch=64, progress=False)
print(report.sparsity)
"""
    if sys.platform != "linux" or not hasattr(resource, "RLIMIT_AS"):
        pytest.skip("limits of the address space are Linux's")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "0.5", done.stderr[-600:]


@pytest.mark.parametrize(
    "error, expected",
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes."
            ),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("shapes do not match"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_which_errors_mean_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected


# Tables.


def test_a_table_without_the_base_method_is_a_sentence():
    table = pd.DataFrame(
        [{"model": "m", "text": "t", "pattern": "0.5", "method": "wanda", "excess": 0.1}]
    )
    with pytest.raises(sl.SparselabError, match="no row of sparsegpt"):
        claims(table)
