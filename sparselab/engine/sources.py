"""Prune a model that is larger than the machine: blocks come from files, go to files, and a killed
run goes on."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import LongTensor, Tensor, nn

from ..errors import SparselabError
from ..models.architecture import blocks_of
from ..models.loading import tokenizer_of
from ..models.packed import stored_tensors
from ..models.saving import write_beside_weights
from ..models.shards import INDEX, tensors_in
from ..models.streaming import BlockReader
from ..runtime import distributed
from ..runtime.files import (
    check_room,
    lock_folder,
    make_durable,
    naming_file_errors,
    put_in_place,
    sha256,
    write_json,
)
from ..runtime.memory import batch_size, return_memory, trim_host_memory
from .report import MatrixRow, Report

MANIFEST = "sparselab-manifest.json"
# What a killed run may leave: safetensors writes to .tmpXXXXXX, and renames it.
LITTER = (".tmp??????", "*.unfinished")
KEPT = ".kept"  # ends the name of what `kept` writes


class InMemoryBlocks:
    """A model that is whole in memory: blocks need not be loaded, and stay where they are."""

    streamed, done, batch, captured = False, 0, None, None

    def __init__(self, model: nn.Module):
        self.model = model

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """Found once: the structure of the whole model is looked through for it."""
        return blocks_of(self.model)

    def start(self, settings: dict, report: Report) -> None:
        """Nothing to go on with."""

    def join(self, settings: dict, report: Report) -> None:
        """The same for a process that does not write."""

    def load(self, layer: int, then: int | None = None) -> nn.Module:
        """The block, with its weights."""
        return self.blocks[layer]

    def release(self, layer: int) -> None:
        """The block is not needed for now."""

    def forget(self) -> None:
        """No block is needed for now."""
        return_memory()

    def head(self) -> AbstractContextManager:
        """Within it, the model has all that comes after its blocks."""
        return nullcontext()

    def kept(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors that are made once, before the first block is pruned."""
        return make()

    def capture(self, batches: list[int]) -> None:
        """What the first block receives was computed with so many windows at once."""

    def finish(self, layer: int, report: Report, batches: list[int]) -> None:
        """The block is pruned, and its outputs are known."""

    def complete(self, report: Report) -> None:
        """All blocks are finished."""

    def close(self) -> None:
        """The run has ended, well or not."""


class StreamedBlocks(BlockReader):
    """A model in safetensors files, read block by block; `finish` writes a block as a shard of the
    result and lets it go.

    The result grows in `<out>.part`, named in a manifest that is written after each shard. The same
    call goes on after the last finished block, whose activations are computed anew from the shards,
    as many windows at once as before: the same bits as an unbroken run, and nothing to write but
    weights. When all is there, the folder gets its name.
    """

    streamed = True

    def __init__(
        self,
        name: str | Path,
        out: str | Path | None,
        dtype: torch.dtype | None,
        device: torch.device,
    ):
        self.out = _new_folder(out) if out else None  # a dry run writes nothing
        distributed.barrier()  # nobody writes before all have looked
        super().__init__(name, dtype, device)
        self.read_outside()
        self.writer = ThreadPoolExecutor(1)
        self.written: Future | None = None
        self.lock: int | None = None
        self.done = 0
        # Windows at once, as free memory would have it; as this process took them up to the first
        # block; and through each one: memory may halve them, and sums over other batches have
        # other bits.
        self.batch: int | None = None
        self.captured: int | None = None
        self.batches: list[list[int]] = []

    @property
    def part(self) -> Path:
        """Where the result grows until it is whole."""
        return self.out.with_name(self.out.name + ".part")

    def kept(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors that are made once, before the first block is pruned, and wait beside the shards:
        a resumed run has the same bits."""
        if self.out is None:  # a dry run
            return make()
        file = self.part / f"{name}-{distributed.rank()}{KEPT}"
        if distributed.all_reduce_scalar(int(not file.exists())):  # they can be made together only
            tensors = {key: value.cpu() for key, value in make().items()}
            with self._naming_file_errors():
                self._save(file, tensors)
        return {key: value.to(self.device) for key, value in load_file(file).items()}

    def restore(self, layer: int) -> None:
        """Replace the dense block by the one finished in an earlier run."""
        self._fill(layer, load_file(self.part / self._shard(layer + 1)))

    # writing

    def start(self, settings: dict, report: Report) -> None:
        """Make the working folder, or go on in the one that is there; refuse one that other
        settings made, or that another run is writing."""
        with self._naming_file_errors():
            self.lock = lock_folder(self.part)
        if self.lock is None or self.out.exists():
            with suppress(OSError):
                self.part.rmdir()  # if it is empty
            raise SparselabError(
                f"another run is writing {self.out}. Wait for it, or choose another out=."
            )
        if (self.part / MANIFEST).exists():
            self._resume(settings, report)
            return
        self._clear()
        self.batch = batch_size(self.model, report.settings["seqlen"])
        self.manifest = {
            "settings": self._run_settings(settings),
            "batch": self.batch,
            "captured": None,
            "shards": {},
            "blocks": [],
        }
        tensors = stored_tensors(self.model).values()
        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
        try:
            check_room(self.part, sum(sizes), "the result")
        except SparselabError:
            self.part.rmdir()
            raise
        with self._naming_file_errors():
            self._write(0, self.checkpoint.read(self.outside))

    def join(self, settings: dict, report: Report) -> None:
        """What `start` does in a process that does not write: the first has made the folder."""
        self._resume(settings, report)

    def _run_settings(self, settings: dict) -> dict:
        """The settings, with the model named by its files: another path may lead there, and they
        may have changed."""
        return {
            **settings,
            "model": str(self.checkpoint.folder.resolve()),
            "weights": self.checkpoint.digest(),
        }

    def _clear(self) -> None:
        """Remove what a run left that was killed before its first manifest; a SparselabError where
        there is a file of someone else."""
        files = [*self.part.iterdir()]
        for file in files:
            if not any(file.match(own) for own in ("model-00001-of-*.safetensors", *LITTER)):
                raise SparselabError(
                    f"the result would grow in {self.part}, which holds {file.name}: not an"
                    " interrupted run. Move that folder away or choose another out=."
                )
        for file in files:
            file.unlink()

    def _resume(self, settings: dict, report: Report) -> None:
        try:
            found = json.loads((self.part / MANIFEST).read_text())
            before = {**found["settings"]}
            blocks = found["blocks"]
            self.batch, self.done = int(found["batch"]), len(blocks)
            mine = distributed.rank()
            self.captured = int(found["captured"][mine]) if blocks else None
            self.batches = [[*map(int, block["batches"][mine])] for block in blocks]
            windows = -(-(report.settings["samples"] - mine) // distributed.size())
            if any(sum(sizes) != windows for sizes in self.batches):
                raise ValueError(f"batches of other than {windows} windows")
            rows = [MatrixRow.of(row) for block in blocks for row in block["rows"]]
            epochs = [dict(row) for block in blocks for row in block["epochs"]]
            tuned = [dict(row) for block in blocks for row in block.get("reconstructions", ())]
            shards = [found["shards"][self._shard(number)] for number in range(self.done + 1)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._broken(MANIFEST, repr(error)) from error
        for key, value in self._run_settings(settings).items():
            if (other := before.get(key)) != value:
                raise SparselabError(
                    f"{self.part} holds an interrupted run with {key} = {other}, and this one has"
                    f" {value}. Repeat that call to go on with it, delete the folder, or choose"
                    " another out=."
                )
        if distributed.rank() == 0:
            for number, written in enumerate(shards):
                if sha256(self.part / self._shard(number)) != written:
                    raise self._broken(self._shard(number), "other bytes than were written")
            for litter in LITTER:
                for file in self.part.glob(litter):
                    file.unlink()
        self.manifest = found
        report.rows += rows
        report.epochs += epochs
        report.reconstructions += tuned

    def _broken(self, name: str, error: str) -> SparselabError:
        return SparselabError(
            f"{self.part / name} is broken ({error}). Delete {self.part} and start again."
        )

    def capture(self, batches: list[int]) -> None:
        """Remember how many windows at once were taken up to the first block; the manifest says it
        with the first shard. The embeddings go: they are copied from file to file."""
        self.release_outside()
        if self.done or self.out is None:  # known from the first run; or a dry one
            return
        everyones = distributed.all_gather(max(batches))
        if distributed.rank() == 0:
            self.manifest["captured"] = everyones

    def finish(self, layer: int, report: Report, batches: list[int]) -> None:
        """Write the block as a shard, if it is new, and free its memory. `batches`: how many
        windows at once its outputs were computed with, in this process."""
        new = layer >= self.done
        everyones = distributed.all_gather(batches) if new else []
        if new and distributed.rank() == 0:
            weights = self.blocks[layer].state_dict()
            block = {
                f"{self.prefix}.{layer}.{key}": value.to("cpu") for key, value in weights.items()
            }
            entry = {
                "rows": [asdict(row) for row in report.rows if row.layer == layer],
                "epochs": [row for row in report.epochs if row["layer"] == layer],
                "reconstructions": [row for row in report.reconstructions if row["layer"] == layer],
                "batches": everyones,
            }
            self._wait()
            self.written = self.writer.submit(self._write, layer + 1, block, entry)
            if self.device.type == "cpu":
                self._wait()  # memory for a second block is worth more
        self.blocks[layer].to("meta")
        trim_host_memory()

    def complete(self, report: Report) -> None:
        """Write what makes a folder of shards a model, and give it its name."""
        self._wait()
        super().close()
        if distributed.rank() == 0:
            with self._naming_file_errors():
                self._complete(report)
        distributed.barrier()

    def close(self) -> None:
        """The run has ended. After an error let what is being written end; finished blocks stay for
        the next call."""
        super().close()
        self.writer.shutdown()
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def _complete(self, report: Report) -> None:
        files = {self._shard(k): self.part / self._shard(k) for k in range(len(self.blocks) + 1)}
        weights = {key: name for name, file in files.items() for key in tensors_in(file)}
        total = sum(file.stat().st_size for file in files.values())
        for file in self.part.glob(f"*{KEPT}"):
            file.unlink()
        first = next(iter(self.outside.values()))
        self.model.config.dtype = str(first.dtype).removeprefix("torch.")
        write_beside_weights(self.model, report, self.part, tokenizer_of(self.model))
        write_json(self.part / INDEX, {"metadata": {"total_size": total}, "weight_map": weights})
        put_in_place(self.part, self.out, replace=False)
        (self.out / MANIFEST).unlink(missing_ok=True)  # last: until here the call can be repeated

    def _wait(self) -> None:
        if self.written is not None:
            with self._naming_file_errors():
                self.written.result()
            self.written = None

    def _write(self, number: int, tensors: dict[str, Tensor], entry: dict | None = None) -> None:
        """A shard, then the manifest that names it, each complete before it gets its name."""
        file = self.part / self._shard(number)
        try:
            self._save(file, tensors)
        finally:
            for litter in self.part.glob(LITTER[0]):  # only this process writes now
                litter.unlink(missing_ok=True)
        self.manifest["shards"][file.name] = sha256(file)
        if entry is not None:
            self.manifest["blocks"].append(entry)
        write_json(self.part / MANIFEST, self.manifest)

    def _save(self, file: Path, tensors: dict[str, Tensor]) -> None:
        """A file of tensors, complete before it gets its name; other processes may write others."""
        unfinished = file.with_suffix(".unfinished")
        whole = {key: value.contiguous() for key, value in tensors.items()}
        try:
            save_file(whole, unfinished, metadata={"format": "pt"})
            make_durable(unfinished)
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)

    def _shard(self, number: int) -> str:
        return f"model-{number + 1:05d}-of-{len(self.blocks) + 1:05d}.safetensors"

    def _naming_file_errors(self):
        """What the system refuses while the result is written, as one sentence."""
        return naming_file_errors(
            f"the result cannot be written to {self.part}",
            "Then repeat the call, which goes on after the last finished block; or choose another"
            " out=.",
        )


def _new_folder(out: str | Path) -> Path:
    """The path of a result that is not there yet."""
    advice = "Choose another out=."
    with naming_file_errors(f"out={str(out)!r} cannot be a folder", advice):
        folder = Path(out).expanduser().absolute()
        if os.path.lexists(folder):  # also a link that leads nowhere
            if folder.suffix != ".part" and (folder / INDEX).exists():
                (folder / MANIFEST).unlink(missing_ok=True)  # of a run killed at its last step
            raise SparselabError(
                f"{folder} exists already. Move it away or choose another folder for out=."
            )
        folder.with_name(folder.name + ".part").exists()  # too long a name is found here
    return folder


def fingerprint(settings: dict, calibration: LongTensor) -> dict:
    """What decides the bits of a result, as JSON keeps it."""
    digest = hashlib.sha256(calibration.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    keys = ("model", "method", "pattern", "layers", "dtype", "device", "versions")
    optional = ("modules", "sparsity", "shares", "batch", "error_rows", "processes")
    return json.loads(
        json.dumps(
            {
                **{key: settings[key] for key in keys},
                **{key: settings.get(key) for key in optional},
                "calibration": (
                    f"{settings['samples']} x {settings['seqlen']} tokens, sha256 {digest}"
                ),
            }
        )
    )
