"""The pruning methods, by name."""

import ast
from dataclasses import fields, replace

from ..errors import SparselabError, did_you_mean
from .admm import ADMM
from .alps import ALPS
from .base import Method
from .dsnot import DSnoT
from .magnitude import Magnitude
from .sparsegpt import SparseGPT
from .sparsellm import SparseLLM
from .swaps import Swaps
from .wanda import Wanda

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (Magnitude, Wanda, SparseGPT, DSnoT, Swaps, ALPS, ADMM, SparseLLM)
}


def find_method(method: "str | Method", family: str = "OPT") -> Method:
    """A method by name, or the instance itself.

    Parameters
    ----------
    method : str or Method
        A key of `METHODS`, such as 'wanda', with a preset or hyper-parameters after it as
        `named_method` takes them, such as 'admm:guided'; or an instance, such as
        ``sl.SparseGPT(damp=0.1)``.
    family : str
        'OPT' or 'LLaMA': SparseLLM's presets differ between them.

    Returns
    -------
    Method

    Raises
    ------
    SparselabError
        Where there is no method of this name; it lists those that there are.
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, str) and ":" in method:
        return named_method(method, family)
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]()
    raise SparselabError(
        f"unknown method {method!r}.{did_you_mean(str(method), METHODS)} A method may also be an"
        " instance such as sl.SparseGPT(damp=0.1)."
    )


def named_method(name: str, family: str) -> Method:
    """A method with its variant and hyper-parameters in one text, as sweeps write them.

    Parameters
    ----------
    name : str
        'dsnot:magnitude' is the method with that start, 'sparsellm:published' that preset, a bare
        name its defaults; 'wanda:refit=True;targets=dense-model' sets hyper-parameters, and
        'sparsellm:published;epochs=8' those of the preset.
    family : str
        'OPT' or 'LLaMA': presets may differ between them.

    Returns
    -------
    Method

    Raises
    ------
    SparselabError
        Where there is no such method or hyper-parameter, or a value makes no sense.
    """
    method, _, variant = name.partition(":")
    base = find_method(method)
    preset, _, rest = variant.partition(";")
    if preset in base.presets:
        base, variant = getattr(type(base), preset)(family), rest
    if not variant:
        return base
    settings = {}
    for pair in variant.split(";") if "=" in variant else [f"initial={variant}"]:
        key, _, text = pair.partition("=")
        settings[key] = _value(text)
    known = {field.name for field in fields(base)}
    if unknown := {*settings} - known:
        raise SparselabError(
            f"{name!r}: {method} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )
    return replace(base, **settings)


def _value(text: str) -> object:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
