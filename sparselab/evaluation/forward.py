"""How texts go through a model that is scored: batch by batch where it is whole in memory, block by
block where it is in files. What is made of the logits is the same."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import LongTensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..errors import SparselabError
from ..models.architecture import model_name
from ..models.blockwise import Activations, blocks_gave
from ..models.loading import find_place, tokenizer_of
from ..models.streaming import BlockReader
from ..models.validation import check_ready
from ..runtime.memory import (
    batch_size,
    in_batches,
    naming_memory_errors,
    return_memory,
    with_batch_halving,
)
from ..runtime.offload import ActivationStore

Result = TypeVar("Result")
# Of the model, some rows of token ids [b, seqlen], and the number of the first of them.
Score = Callable[[nn.Module, LongTensor, int], Result]
FEWER = (
    "Use a shorter text or seqlen, fewer items, offload='disk', a smaller dtype, or a larger"
    " machine."
)


@dataclass(frozen=True)
class Texts:
    """What is scored: `count` rows of token ids, of up to `longest` tokens. `batches(size)` cuts
    them into tensors [b, seqlen], the longest first, of as many tokens as `size` of the longest
    have. `name` and `unit`, of a row: words for the progress bar."""

    name: str
    unit: str
    count: int
    longest: int
    batches: Callable[[int], Iterable[LongTensor]]


class ModelInMemory:
    """A model that is whole in memory: each batch goes through all of it."""

    def __init__(self, model: nn.Module):
        check_ready(model)
        self.model = model

    def scores(self, texts: Texts, score: Score, progress: bool) -> list[Result]:
        """What `score` makes of the texts, batch by batch, in their order."""
        with tqdm(
            total=texts.count, desc=texts.name, unit=texts.unit, disable=not progress, leave=False
        ) as bar:
            work = partial(score, self.model)
            found = in_batches(work, texts.batches, self.model, texts.longest, bar)
        return_memory()  # logits are large, and who comes next may be no user of torch's cache
        return found


class ModelInFiles:
    """A model of which one block after the other is read from its files: all texts go through a
    block, and wait for the next one where `offload` says. Nothing but headers is read before
    `scores`."""

    def __init__(
        self,
        name: str | Path,
        offload: str,
        dtype: torch.dtype | str | None,
        device: str | torch.device | None,
    ):
        ActivationStore.check(offload)
        device, dtype = find_place(device, dtype)
        self.reader, self.offload = BlockReader(name, dtype, device), offload
        self.model, self.verified = self.reader.model, False

    def scores(self, texts: Texts, score: Score, progress: bool) -> list[Result]:
        """What `score` makes of the texts, batch by batch, in their order: batches are those of the
        model in memory, so that the bits are. A batch that memory does not hold is halved where it
        is, and nothing else is done anew."""
        self._verify(texts)
        batch, count = batch_size(self.model, texts.longest), len(self.reader.blocks)
        tokens = sum(ids.numel() for ids in texts.batches(batch))
        stream = Activations(self.model, ActivationStore.choose(self.offload, self.model, tokens))
        with_batch_halving(lambda size: stream.enter(texts.batches(size)), batch)
        for layer in tqdm(
            range(count), desc=texts.name, unit="block", disable=not progress, leave=False
        ):
            stream.replay(self.reader.load(layer))
            self.reader.release(layer)
        with self.reader.head():
            return stream.each(partial(self._score_part, stream, score))

    def _score_part(self, stream: Activations, score: Score, place: int) -> Result:
        """The score of a part whose last hidden states are there: the model runs with them in the
        place of its blocks."""
        part, (hidden, _) = stream.parts[place], stream.fetch(place)
        with blocks_gave(self.model, self.reader.prefix, hidden):
            return score(self.model, part.ids, sum(stream.batches[:place]))

    def _verify(self, texts: Texts) -> None:
        """Once: read what is outside the blocks, and prove that block by block equals the whole
        model."""
        if self.verified:
            return
        self.reader.read_outside()
        with self.reader.verified(next(iter(texts.batches(1)))[:1]):
            self.verified = True

    def close(self) -> None:
        """Nothing more is read."""
        self.reader.close()


@contextmanager
def opened(
    model: nn.Module | str | Path,
    offload: str = "auto",
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
) -> Iterator[ModelInMemory | ModelInFiles]:
    """A model in memory as it is, or one in files, by its name, open for reading."""
    if isinstance(model, nn.Module):
        if (offload, dtype, device) != ("auto", None, None):
            raise SparselabError(
                "offload=, dtype= and device= belong to a model given by name. A model in memory is"
                " scored as it is, where it is."
            )
        yield ModelInMemory(model)
        return
    with (
        naming_memory_errors("score this model", FEWER),
        closing(ModelInFiles(model, offload, dtype, device)) as files,
    ):
        yield files


def tokenizer_for(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """The tokenizer that was given, or the one that belongs to the model."""
    found = tokenizer_of(model) if tokenizer is None else tokenizer
    if found is None:
        raise SparselabError(
            f"{model_name(model)} came without a tokenizer. Pass tokenizer=, such as sl.load gives."
        )
    return found
