"""The memory that a computation takes, counted rather than asked of the system: the same number in
every run."""

import weakref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """While it is entered, `bytes` is the peak of the bytes of all tensors that were made and are
    still alive; the model's own parameters are not counted."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.bytes = self._now = 0
        self._known = {part.untyped_storage()._cdata for part in model.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self.bytes = max(self.bytes, self._now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._now += size
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size
