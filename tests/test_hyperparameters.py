"""Every hyper-parameter of every method, and every option of prune: a value of another kind gets a
sentence that names it, before a weight changes."""

import math
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, tiny_llama

import sparselab as sl
from sparselab.allocation.sensitivity import sensitivity
from sparselab.methods.base import Method, keep_weights
from sparselab.patterns import prune_rows

NAN, INF = float("nan"), float("inf")
BAD = (None, NAN, INF, -INF, -1, 1.5, 10**30, "x", [], (), True)
FINE = {  # what of these a parameter takes, by its default's kind or by its own name
    bool: [True],
    float: [1.5],
    int: [],
    str: [],
    tuple: [],
    "ADMM.tolerance": [],
    "SparseLLM.tolerance": [1.5, -1],
    "ridge": [1.5, None],
    "reconstruct": [None],
    "held_out": [],
}
LEVELS = ((NAN,), (0.1, INF), ("a",), (True,), (-1,), ((0.1,),), {0.1: 1}, "0.1")


def is_fine(value, owner, field):
    for key in (f"{owner.__name__}.{field.name}", field.name, type(field.default)):
        if key in FINE:
            return any(value is one or value == one for one in FINE[key])
    return False


def hyper_parameters():
    for owner in (*sl.METHODS.values(), sl.Reconstruction):
        for field in fields(owner):
            for value in BAD:
                yield pytest.param(
                    owner, field, value, id=f"{owner.__name__}-{field.name}-{value!r}"
                )


@pytest.fixture(scope="module")
def model():
    return tiny_llama(num_hidden_layers=1)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def unchanged(model):
    """Holds the model's tensors against what they were before the test."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    yield
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def prune(model, ids, **options):
    call = {"method": "wanda", "sparsity": 0.5, "progress": False, **options}
    return sl.prune(model, ids, **call)


@pytest.mark.parametrize("owner, field, value", [*hyper_parameters()])
def test_hyper_parameters_of_another_kind_are_refused_by_name(
    model, ids, unchanged, owner, field, value
):
    if field.name == "reconstruct" and value is True:
        assert owner(reconstruct=True).reconstruct == sl.Reconstruction()
        return
    if is_fine(value, owner, field):
        assert getattr(owner(**{field.name: value}), field.name) == value
        return
    with pytest.raises(sl.SparselabError) as refused:
        prune(model, ids, method=owner(**{field.name: value}))
    assert f"{owner.__name__}({field.name}={value!r}): choose " in str(refused.value)


@pytest.mark.parametrize("method", [*sl.METHODS.values(), sl.Reconstruction])
def test_defaults_are_allowed(method):
    given = {field.name: getattr(method(), field.name) for field in fields(method)}
    assert method(**given) == method() and str(method(**given)) == str(method())


OPTIONS = {  # what of BAD each option of prune takes
    "batch": [None],
    "progress": [True],
    "dry_run": [True],
    "offload": [],
    "refit": [None, True],
    "in_order": [None, True],
    "fisher": [None, True],
    "divide": [None, True],
    "reconstruct": [None, True],
    "targets": [None],
    "layers": [None],
    "modules": [None],
    "sparsity": [],
    "method": [],
    "out": [None],
    "dtype": [None],
    "device": [None],
}
CASES = [
    *((name, value) for name, fine in OPTIONS.items() for value in BAD if value not in fine),
    *(("layers", value) for value in ([True], [NAN], [None], torch.tensor(0.5), {"a": 1})),
    *(("modules", value) for value in (5, [None], [5], torch.tensor(1), {})),
    *(("sparsity", value) for value in ({0: NAN}, {0: True}, {0: None}, {NAN: 0.5}, {-1: 0.5})),
    *(("sparsity", value) for value in (torch.ones(2) / 2, 1j, False, 10**400)),
    ("batch", 0),
    ("batch", "4"),
]


@pytest.mark.parametrize("name, value", CASES, ids=lambda value: repr(value)[:20])
def test_options_of_prune_are_refused_by_name(model, ids, unchanged, name, value):
    with pytest.raises(sl.SparselabError, match=name):
        prune(model, ids, **{name: value})


@pytest.mark.parametrize("name", ["out", "dtype", "device"])
@pytest.mark.parametrize("value", [NAN, -1, 1.5, [], (), True], ids=repr)
def test_options_of_a_streamed_run_are_refused_by_name(ids, name, value):
    with pytest.raises(sl.SparselabError, match=rf"prune\({name}="):
        prune("opt-mini", ids, **{"out": "never-written", name: value})


CALLS = {
    "owl": (lambda model, ids, **given: sl.owl(model, ids, **{"sparsity": 0.5, **given})),
    "by_sensitivity": (
        lambda model, ids, **given: sl.by_sensitivity(model, ids, **{"sparsity": 0.6, **given})
    ),
    "sensitivity": sensitivity,
    "by_depth": (lambda model, ids, **given: sl.by_depth(model, ids, **{"sparsity": 0.5, **given})),
    "evolve": (lambda model, ids, **given: sl.evolve(model, ids, **{"sparsity": 0.5, **given})),
    "plan": (lambda model, ids, **given: sl.plan(model, **{"measure": False, **given})),
    "Pattern": (lambda model, ids, **given: sl.Pattern(**{"sparsity": 0.5, **given})),
}
ARGUMENTS = {  # what of BAD each takes
    "owl": {"threshold": [1.5], "spread": [], "sparsity": []},
    "by_sensitivity": {"levels": [], "losses": [None], "sparsity": []},
    "sensitivity": {"levels": []},
    "by_depth": dict.fromkeys(("sparsity", "method", "trials", "held_out", "widest"), []),
    "evolve": {
        **dict.fromkeys(("sparsity", "method", "unit", "levels", "step", "generations"), []),
        **dict.fromkeys(("offspring", "held_out"), []),
        "seed": [-1],
        "progress": [True],
    },
    "plan": {
        "samples": [],
        "seqlen": [],
        "offload": [],
        "device": [None],
        "dtype": [None],
        "memory": [None, 1.5],
        "measure": [True],
        "method": [],
    },
    "Pattern": {"sparsity": [], "n": [], "m": [10**30]},  # which fits no matrix, and is told so
}


@pytest.mark.parametrize(
    "call, name, value",
    [
        (call, name, value)
        for call, names in ARGUMENTS.items()
        for name, fine in names.items()
        for value in (*BAD, *(LEVELS if name == "levels" else ()))
        if value not in fine
    ],
    ids=repr,
)
def test_arguments_of_other_calls_are_refused_by_name(model, ids, unchanged, call, name, value):
    with pytest.raises(sl.SparselabError, match=name):
        CALLS[call](model, ids, **{name: value})


@pytest.mark.parametrize(
    "losses", [{}, {0: [1.0]}, {0: [1.0, NAN]}, {5: [1.0, 2.0]}, {0: 1.0}, {0: "ab"}], ids=repr
)
def test_losses_that_do_not_fit_the_levels_are_refused(model, ids, losses):
    with pytest.raises(sl.SparselabError, match="losses="):
        sl.by_sensitivity(model, ids, 0.6, levels=(0.5, 0.7), losses=losses)


@pytest.mark.parametrize(
    "kind", [np.int64, np.uint8, np.float32, torch.tensor, float], ids=lambda kind: kind.__name__
)
def test_whole_numbers_of_numpy_and_torch_are_counts(kind):
    method = sl.SparseGPT(block=kind(64))
    assert method == sl.SparseGPT(block=64) and str(method) == str(sl.SparseGPT(block=64))
    assert type(method.block) is int


@pytest.mark.parametrize(
    "kind", [np.float64, np.float32, torch.tensor], ids=lambda kind: kind.__name__
)
def test_finite_numbers_of_numpy_and_torch_are_numbers(model, ids, kind):
    assert sl.SparseGPT(damp=kind(0.5)) == sl.SparseGPT(damp=0.5)
    assert sl.ADMM(penalty=kind(0.5), growth=kind(2)) == sl.ADMM(penalty=0.5, growth=2)
    assert sl.Pattern.parse(kind(0.5)) == sl.Pattern(kind(0.5)) == sl.Pattern(0.5)
    assert sl.owl(model, ids, kind(0.5), threshold=kind(2)) == sl.owl(model, ids, 0.5, threshold=2)


def test_numbers_of_numpy_and_torch_prune_as_those_of_python(ids):
    """The whole call, to the last bit."""
    mine, plain = tiny_llama(num_hidden_layers=1), tiny_llama(num_hidden_layers=1)
    given = {"batch": torch.tensor(2), "layers": np.arange(1), "refit": np.True_}
    one = prune(mine, ids, method=sl.SparseGPT(np.int64(8), np.float64(0.1)), **given)
    two = prune(plain, ids, method=sl.SparseGPT(8, 0.1), batch=2, layers=[0], refit=True)
    assert one.settings == two.settings
    for name, value in mine.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])


@dataclass(frozen=True)
class Own(Method):
    """A user's method, which says nothing of bounds."""

    power: float = 0.5
    limit: float = math.inf
    table: dict | None = None
    anything: object = None
    unknown: "Tensor | None" = None  # noqa: F821
    name = "own"

    def solve(self, weight, stats, pattern):
        return keep_weights(weight, prune_rows(weight.abs() ** self.power, pattern, per_row=True))


@dataclass(frozen=True)
class Quoted(Method):
    """Another, with an annotation in quotes."""

    size: "int" = 4
    rows: list[int] | None = None
    name = "quoted"


def test_a_users_method_needs_no_more_than_its_dataclass(model, ids):
    with pytest.raises(sl.SparselabError, match=r"Quoted\(size=1.5\): choose a whole number"):
        Quoted(size=1.5)
    with pytest.raises(sl.SparselabError, match=r"Own\(power=nan\): choose a finite number"):
        Own(NAN)
    assert Quoted(rows=[1]).rows == [1]  # a kind that is not known is not looked at
    assert Own().limit == math.inf and Own(table={1: 2}, anything=3).table == {1: 2}
    assert prune(tiny_llama(num_hidden_layers=1), ids, method=Own(power=1)).sparsity == 0.5


def test_sentences_say_what_is_allowed():
    for make, words in (
        (lambda: sl.SparseGPT(block=0), "choose a whole number .*, block >= 1"),
        (lambda: sl.SparseLLM(ridge=-1), "choose a finite number .*, ridge >= 0 or None"),
        (lambda: sl.Swaps(initial="wonda"), "'magnitude' or 'wanda' or .*Did you mean 'wanda'"),
        (lambda: sl.ADMM(growth=1), "a finite number .*, growth > 1, growth <= 10"),
        (lambda: sl.Wanda(reconstruct="ebtf"), "an instance such as .*Did you mean 'ebft'"),
        (lambda: sl.Wanda(targets="x"), "'dense-model' .*what a linear aims at"),
        (lambda: sl.DSnoT(skip_ffn="false"), "choose True or False"),
        (lambda: sl.SparseLLM.published(5), "two variants"),
    ):
        with pytest.raises(sl.SparselabError, match=words):
            make()
