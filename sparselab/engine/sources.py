"""Prune a model that is larger than the machine: blocks come from files, go to files, and a killed
run goes on."""

import hashlib
import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import LongTensor, Tensor, nn
from transformers.utils import GENERATION_CONFIG_NAME

from ..errors import SparselabError
from ..models.architecture import blocks_of, family_of
from ..models.checkpoint import Checkpoint, load_header
from ..models.hub import quiet
from ..models.loading import INDEX, tokenizer_of, write_tokenizer
from ..models.packed import stored_tensors
from ..models.saving import REPORT_FILE
from ..runtime import distributed
from ..runtime.files import is_disk_full, write_json
from ..runtime.memory import batch_size, trim_host_memory
from .report import MatrixRow, Report

MANIFEST = "sparselab-manifest.json"


class InMemoryBlocks:
    """A model that is whole in memory: blocks need not be loaded, and stay where they are."""

    streamed, done, batch = False, 0, None

    def __init__(self, model: nn.Module):
        self.model = model

    def start(self, settings: dict, report: Report) -> None:
        """Nothing to go on with."""

    def join(self, settings: dict, report: Report) -> None:
        """The same for a process that does not write."""

    def load(self, layer: int) -> nn.Module:
        """The block, with its weights."""
        return blocks_of(self.model)[layer]

    def finish(self, layer: int, report: Report) -> None:
        """The block is pruned, and its outputs are known."""

    def close(self, report: Report) -> None:
        """All blocks are finished."""

    def shutdown(self) -> None:
        """The run has ended, well or not."""


class StreamedBlocks:
    """A model in safetensors files. `model` has memory for what comes before the blocks; `load`
    fills a block, while the one after it is read ahead; `finish` writes it as a shard of the result
    and lets it go.

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
        self.out = Path(out).expanduser().absolute() if out else None  # a dry run writes nothing
        if self.out and self.out.exists():
            raise SparselabError(
                f"{self.out} exists already. Move it away or choose another folder for out=."
            )
        distributed.barrier()  # nobody writes before all have looked
        self.checkpoint, self.device = Checkpoint(name), device
        self.model = self.checkpoint.skeleton(dtype)
        self.blocks, self.prefix = blocks_of(self.model), family_of(self.model).blocks
        self.like = {
            layer: dict(block.state_dict()) for layer, block in enumerate(self.blocks)
        }  # without memory
        inside = {
            f"{self.prefix}.{layer}.{key}" for layer, like in self.like.items() for key in like
        }
        outside = {key: like for key, like in self.model.state_dict().items() if key not in inside}
        self.outside = {key: outside[key] for key in stored_tensors(self.model) if key in outside}
        needed = self.model.base_model_prefix + "."  # all but an output head of its own
        used = {key: like for key, like in self.outside.items() if key.startswith(needed)}
        self.model.load_state_dict(self.checkpoint.read(used), strict=False, assign=True)
        self.model.tie_weights()
        _move_outside(self.model, self.blocks, device)
        self.reader, self.writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.ahead: dict[int, Future] = {}
        self.written: Future | None = None
        self.done = 0
        self.batch: int | None = None  # windows at once: sums over other batches have other bits

    @property
    def part(self) -> Path:
        """Where the result grows until it is whole."""
        return self.out.with_name(self.out.name + ".part")

    # reading

    def load(self, layer: int) -> nn.Module:
        """The dense block on the device; the next one is being read meanwhile."""
        tensors = self.ahead.pop(layer, None) or self._read(layer)
        if layer + 1 < len(self.blocks):
            self.ahead[layer + 1] = self._read(layer + 1)
        return self._fill(layer, tensors.result())

    def forget(self) -> None:
        """Free all blocks, and start reading from the first."""
        self.ahead = {}
        self.blocks.to("meta")

    def restore(self, layer: int) -> None:
        """Replace the dense block by the one finished in an earlier run."""
        self._fill(layer, load_file(self.part / self._shard(layer + 1)))

    def _read(self, layer: int) -> Future:
        names = {f"{self.prefix}.{layer}.{key}": like for key, like in self.like[layer].items()}
        return self.reader.submit(self.checkpoint.read, names, stored=True)

    def _fill(self, layer: int, tensors: dict[str, Tensor]) -> nn.Module:
        here = {}
        for name, tensor in tensors.items():
            key = name.removeprefix(f"{self.prefix}.{layer}.")
            here[key] = tensor.to(
                self.device, self.like[layer][key].dtype
            )  # 16 bits take half the room until here
        self.blocks[layer].load_state_dict(here, assign=True)
        return self.blocks[layer]

    # writing

    def start(self, settings: dict, report: Report) -> None:
        """Make the working folder, or go on in the one that is there; refuse one that other
        settings made."""
        if (self.part / MANIFEST).exists():
            self._resume(settings, report)
            return
        self.batch = batch_size(self.model, report.settings["seqlen"])
        self.manifest = {
            "settings": self._run_settings(settings),
            "batch": self.batch,
            "blocks": [],
        }
        self._clear()
        needed = sum(
            like.numel() * like.element_size() for like in self.model.state_dict().values()
        )
        try:
            self.part.mkdir(parents=True)
        except OSError as error:
            raise SparselabError(
                f"cannot make {self.part}: {error.strerror}. Choose another folder for out=."
            ) from error
        free = shutil.disk_usage(self.part).free
        if free < 1.02 * needed + 2**20:
            self.part.rmdir()
            raise SparselabError(
                f"the result needs {needed / 2**20:.0f} MiB, but {self.out.parent} has"
                f" {free / 2**20:.0f} MiB free. Free some disk space or choose another folder for"
                " out=."
            )
        self._catch_disk_full(self._write, 0, self.checkpoint.read(self.outside))

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
        """Remove what a run left that was killed before its first manifest, and no one else's
        files."""
        for file in self.part.iterdir() if self.part.is_dir() else ():
            if not any(file.match(own) for own in ("model-00001-of-*.safetensors", "*.unfinished")):
                raise SparselabError(
                    f"the result would grow in {self.part}, which holds {file.name}: not an"
                    " interrupted run. Move that folder away or choose another out=."
                )
        shutil.rmtree(self.part, ignore_errors=True)

    def _resume(self, settings: dict, report: Report) -> None:
        try:
            found = json.loads((self.part / MANIFEST).read_text())
            before, self.batch, self.done = found["settings"], found["batch"], len(found["blocks"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._broken(MANIFEST, error) from error
        for key, value in self._run_settings(settings).items():
            if (other := before.get(key)) != value:
                raise SparselabError(
                    f"{self.part} holds an interrupted run with {key} = {other}, and this one has"
                    f" {value}. Repeat that call to go on with it, delete the folder, or choose"
                    " another out=."
                )
        for number in range(self.done + 1):
            self._check(number)
        self.manifest = found
        for block in found["blocks"]:
            report.rows += map(MatrixRow.of, block["rows"])
            report.epochs += block["epochs"]

    def _check(self, number: int) -> None:
        """A shard of the earlier run is whole, and holds the tensors that it should."""
        wanted = (
            [f"{self.prefix}.{number - 1}.{key}" for key in self.like[number - 1]]
            if number
            else self.outside
        )
        try:
            found = load_header(self.part / self._shard(number))
        except (SafetensorError, OSError) as error:
            raise self._broken(self._shard(number), error) from error
        if {*found} != {*wanted}:
            raise self._broken(self._shard(number), "other tensors than it should hold")

    def _broken(self, name: str, error: Exception | str) -> SparselabError:
        return SparselabError(
            f"{self.part / name} is broken ({error}). Delete {self.part} and start again."
        )

    def finish(self, layer: int, report: Report) -> None:
        """Write the block as a shard, if it is new, and free its memory."""
        if layer >= self.done and distributed.rank() == 0:
            weights = self.blocks[layer].state_dict()
            block = {
                f"{self.prefix}.{layer}.{key}": value.to("cpu") for key, value in weights.items()
            }
            entry = {
                "rows": [asdict(row) for row in report.rows if row.layer == layer],
                "epochs": [row for row in report.epochs if row["layer"] == layer],
            }
            self._wait()
            self.written = self.writer.submit(
                self._catch_disk_full, self._write, layer + 1, block, entry
            )
            if self.device.type == "cpu":
                self._wait()  # memory for a second block is worth more
        self.blocks[layer].to("meta")
        trim_host_memory()

    def close(self, report: Report) -> None:
        """Write what makes a folder of shards a model, and give it its name."""
        self._wait()
        self.reader.shutdown()
        if distributed.rank() == 0:
            self._catch_disk_full(self._complete, report)
        distributed.barrier()

    def shutdown(self) -> None:
        """The run has ended. After an error let what is being written end; finished blocks stay for
        the next call."""
        self.reader.shutdown(cancel_futures=True)
        self.writer.shutdown()

    def _complete(self, report: Report) -> None:
        files = {self._shard(k): self.part / self._shard(k) for k in range(len(self.blocks) + 1)}
        weights = {key: name for name, file in files.items() for key in load_header(file)}
        total = sum(file.stat().st_size for file in files.values())
        with quiet():
            self.model.config.dtype = str(next(iter(self.outside.values())).dtype).removeprefix(
                "torch."
            )
            self.model.config.save_pretrained(self.part)
            write_tokenizer(tokenizer_of(self.model), self.part)
        if (self.checkpoint.folder / GENERATION_CONFIG_NAME).exists():
            shutil.copy(self.checkpoint.folder / GENERATION_CONFIG_NAME, self.part)
        report.save(self.part / REPORT_FILE)
        write_json(self.part / INDEX, {"metadata": {"total_size": total}, "weight_map": weights})
        if self.out.exists():
            raise SparselabError(
                f"{self.out} appeared during the run. The whole result waits in {self.part}: move "
                f"{self.out.name} away and repeat the call, which prunes nothing anew."
            )
        self.part.rename(self.out)
        (self.out / MANIFEST).unlink()  # last: until here the call can be repeated

    def _wait(self) -> None:
        if self.written is not None:
            self.written.result()
            self.written = None

    def _write(self, number: int, tensors: dict[str, Tensor], entry: dict | None = None) -> None:
        """A shard, then the manifest that names it, each complete before it gets its name."""
        file = self.part / self._shard(number)
        unfinished = file.with_suffix(".unfinished")
        try:
            save_file(
                {key: value.contiguous() for key, value in tensors.items()},
                unfinished,
                metadata={"format": "pt"},
            )
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)
        if entry is not None:
            self.manifest["blocks"].append(entry)
        write_json(self.part / MANIFEST, self.manifest)

    def _shard(self, number: int) -> str:
        return f"model-{number + 1:05d}-of-{len(self.blocks) + 1:05d}.safetensors"

    def _catch_disk_full(self, work, *arguments) -> None:
        """Work that writes; a full disk is one sentence."""
        try:
            work(*arguments)
        except (OSError, SafetensorError) as error:
            if not is_disk_full(error):
                raise
            raise SparselabError(
                f"the disk of {self.out.parent} is full. Free some space and repeat the call: it"
                f" goes on after the blocks that are finished in {self.part}."
            ) from error


def fingerprint(settings: dict, calibration: LongTensor) -> dict:
    """What decides the bits of a result, as JSON keeps it."""
    digest = hashlib.sha256(calibration.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    keys = ("model", "method", "pattern", "layers", "dtype", "device", "versions")
    optional = ("modules", "sparsity", "shares", "batch", "processes")
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


def _move_outside(model: nn.Module, blocks: nn.ModuleList, device: torch.device) -> None:
    """Everything but the blocks, and a head of its own, to the device; blocks have no memory."""
    inside = {id(module) for block in blocks for module in block.modules()}
    for module in model.modules():
        if id(module) not in inside:
            for name, value in module.named_parameters(recurse=False):
                if not value.is_meta:
                    setattr(module, name, nn.Parameter(value.to(device), requires_grad=False))
            for name, value in module.named_buffers(recurse=False):
                setattr(module, name, value.to(device))
    model.tie_weights()
