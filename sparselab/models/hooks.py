"""What modules receive and give while a model runs: the one place where hooks are set, and surely
removed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn


@contextmanager
def watching(
    modules: Mapping[str, nn.Module],
    *,
    before: Callable[[str, tuple, dict], None] | None = None,
    after: Callable[[str, tuple, Any], None] | None = None,
) -> Iterator[None]:
    """Within the block, call before(name, args, kwargs) when one of the modules is called, and
    after(name, args, output) when it has run. What they raise ends the forward pass."""

    def entered(_, args: tuple, kwargs: dict, name: str) -> None:
        before(name, args, kwargs)

    def left(_, args: tuple, output: Any, name: str) -> None:
        after(name, args, output)

    handles = []
    try:
        for name, module in modules.items():
            if before:
                handles.append(
                    module.register_forward_pre_hook(partial(entered, name=name), with_kwargs=True)
                )
            if after:
                handles.append(module.register_forward_hook(partial(left, name=name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
