"""Adapters made ready for the engine outside the engine: read, scaled and packed by a process of its own.

vLLM reads and converts an adapter inside its loop, and every stream waits. Here a helper process with a low priority
writes what the layers take (serve/kernels/packed.py) into one file; the worker maps it, and points at it. The file is
kept for the next load (staged_cache.py), or lies in memory where nothing is to be kept.

A staged folder holds `weights.bin`, the packed weights of all layers, and `entries.npy`, int64 (layers, slices, 3):
the byte offset of A, that of B, and the padded rank; zeros where the adapter leaves a slice alone.
"""

import asyncio
import hashlib
import json
import logging
import math
import multiprocessing
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np
import torch
from blake3 import blake3
from safetensors import safe_open
from torch import Tensor

from adapters.lint_config import scaling_of
from serve.engine.staged_cache import StagedCache
from serve.kernels import packed
from serve.kernels.packed import LayerWeights, pack_a, pack_b, padded_rank

logger = logging.getLogger(__name__)

WEIGHTS_FILE, ENTRIES_FILE, DIGEST_FILE = "weights.bin", "entries.npy", "blake3"
_SHARED_MEMORY = Path("/dev/shm")
_NICENESS = 10
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LayerShape:
    """A LoRA layer as the worker has it.

    Attributes:
        name: The worker's name of it, as `model.layers.0.self_attn.qkv_proj`.
        widths: Outputs of each slice.
        parts: The base's module of each slice, as an adapter's file names it.
    """

    name: str
    inputs: int
    widths: tuple[int, ...]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Staged:
    """An adapter ready to be mapped. `digest` is of the files as they are now, BLAKE3, in hexadecimal."""

    folder: Path
    digest: str


class Stager:
    """Stages one adapter after another for one engine.

    Args:
        layers: Of the served model, in the worker's order.
        cache: Keeps what was staged; by default nothing does.
    """

    def __init__(self, layers: Sequence[LayerShape], cache: StagedCache | None = None) -> None:
        self._layers = tuple(layers)
        self._cache = cache
        if cache is not None:
            cache.root.mkdir(parents=True, exist_ok=True)
        place = cache.root if cache else _memory_folder()
        self._folder = TemporaryDirectory(prefix=f"lorikeet-{os.getpid()}-", dir=place)
        self._numbers = count()
        self._pool = self._new_pool()

    async def stage(self, adapter: Path) -> Staged | None:
        """Make an adapter's folder ready; None where the engine must read it itself.

        The caller removes the staged folder when the engine has it.
        """
        folder = Path(self._folder.name) / str(next(self._numbers))
        try:
            digest = await asyncio.get_running_loop().run_in_executor(
                self._pool, stage_folder, adapter, self._layers, folder, self._cache
            )
        except BrokenProcessPool:
            logger.warning("The process that stages adapters died; the engine reads %s itself.", adapter)
            self._pool = self._new_pool()
            digest = None
        except OSError as error:  # as a full disk: the engine may still have room
            logger.warning("%s cannot be staged, the engine reads it itself: %s", adapter, error)
            digest = None
        if digest is None:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return Staged(folder, digest)

    def close(self) -> None:
        """End the process, and remove what it wrote."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._folder.cleanup()

    @staticmethod
    def _new_pool() -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # the server has threads: a fork could hang
        pool = ProcessPoolExecutor(1, context, initializer=_begin)
        pool.submit(_is_ready)  # start it now, not when the first adapter is wanted
        return pool


def layers_sha256(layers: Sequence[LayerShape]) -> str:
    """What a version packed for these layers, by this code, is kept under, beside its own digest."""
    code = b"".join(Path(file).read_bytes() for file in (__file__, packed.__file__))
    return hashlib.sha256(repr(tuple(layers)).encode() + code).hexdigest()


def stage_folder(adapter: Path, layers: Sequence[LayerShape], folder: Path, cache: StagedCache | None) -> str | None:
    """As `write_staged`, but from the cache where it has this version, as it was packed then."""
    key = cache.key_of(adapter) if cache else None
    if cache is None or key is None:
        return write_staged(adapter, layers, folder)
    if cache.take(key, folder):
        digest = _digest(folder)
        if digest == (folder / DIGEST_FILE).read_text():
            return digest
        logger.warning("What was kept of %s has changed on disk; it is staged again.", adapter)
        cache.drop(key)
        shutil.rmtree(folder)
    written = write_staged(adapter, layers, folder)
    if written is not None:
        try:
            (folder / DIGEST_FILE).write_text(written)
            cache.keep(key, folder)
        except OSError as error:
            logger.warning("%s is staged, but not kept for the next load: %s", adapter, error)
    return written


def write_staged(adapter: Path, layers: Sequence[LayerShape], folder: Path) -> str | None:
    """Pack a PEFT adapter's folder, which passed the lint, for these layers.

    Returns:
        BLAKE3 of what was written; None where the adapter has a part that no layer takes.

    Raises:
        OSError: A file cannot be read or written.
    """
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
        modules = {name.removesuffix(".lora_A.weight") for name in names if name.endswith(".lora_A.weight")}
        expected = {_PEFT_PREFIX + part for layer in layers for part in layer.parts}
        if not modules <= expected or len(names) != 2 * len(modules):
            return None
        offset, parts, entries = 0, [], np.zeros((len(layers), max(len(layer.parts) for layer in layers), 3), np.int64)
        for index, layer in enumerate(layers):
            for number, part in enumerate(layer.parts):
                module = _PEFT_PREFIX + part
                if module not in modules:
                    continue
                lora_a = tensors.get_tensor(f"{module}.lora_A.weight")
                lora_b = tensors.get_tensor(f"{module}.lora_B.weight")
                if lora_a.shape[1] != layer.inputs or lora_b.shape[0] != layer.widths[number]:
                    return None
                a, b = pack_a(lora_a), pack_b(lora_b.float() * scaling_of(part, config))
                begin_b = offset + _whole_lines(a)
                entries[index, number] = (offset, begin_b, padded_rank(lora_a.shape[0]))
                parts += [(offset, a), (begin_b, b)]
                offset = begin_b + _whole_lines(b)
    folder.mkdir()
    np.save(folder / ENTRIES_FILE, entries, allow_pickle=False)
    _write(folder / WEIGHTS_FILE, parts)
    return _digest(folder)


def read_staged(folder: Path, num_slices: Sequence[int]) -> list[LayerWeights | None] | None:
    """Map a staged folder: per layer its weights, None where the adapter leaves it alone.

    Args:
        num_slices: Of each layer, in the order it was staged for.

    Returns:
        None where the folder is no staged one. The folder may be removed afterwards.
    """
    weights = folder / WEIGHTS_FILE
    if not weights.exists():
        return None
    memory = torch.from_file(str(weights), shared=False, size=weights.stat().st_size, dtype=torch.uint8)
    entries = torch.from_numpy(np.load(folder / ENTRIES_FILE, allow_pickle=False))
    is_used = entries[:, :, 2] > 0
    entries[:, :, :2] += memory.data_ptr() * is_used.unsqueeze(-1)
    return [
        LayerWeights(entries[index, :slices], (memory,)) if used else None
        for index, (slices, used) in enumerate(zip(num_slices, is_used.any(dim=1).tolist(), strict=True))
    ]


def _write(path: Path, parts: Sequence[tuple[int, Tensor]]) -> None:
    with path.open("wb") as file:
        for offset, part in parts:
            file.seek(offset)
            file.write(part.view(torch.uint8).numpy().data)
        file.truncate(max(1, file.tell()))


def _digest(folder: Path) -> str:
    """BLAKE3: on every load, beside a step of the engine, SHA-256 takes three times as long."""
    digest = blake3((folder / ENTRIES_FILE).read_bytes())
    digest.update_mmap(folder / WEIGHTS_FILE)
    return digest.hexdigest()


def _whole_lines(part: Tensor, line: int = 64) -> int:
    """Bytes of a part, up to the next cache line."""
    return math.ceil(part.numel() * part.element_size() / line) * line


def _memory_folder() -> str:
    """Where a file lies in memory, or failing that, where one is likely to stay there."""
    return str(_SHARED_MEMORY) if os.access(_SHARED_MEMORY, os.W_OK) else gettempdir()


def _begin() -> None:
    os.nice(_NICENESS)
    torch.set_num_threads(1)


def _is_ready() -> bool:
    return True
