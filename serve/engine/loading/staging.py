"""Adapters made ready for the engine outside the engine: read, scaled and packed by a process of its own.

vLLM reads and converts an adapter inside its loop, and every stream waits. Here a helper process with a low priority
writes what the layers take into one file; the worker maps it (mapped.py, native.py). The file is kept for the next load
(staged_cache.py), or lies in memory where nothing is to be kept.

A staged folder holds `weights.bin`, the weights of all layers, and `entries.npy`, int64 (layers, slices, 5): the byte
offset of A, that of B, the rank as it is stored, and for DoRA the offsets of its factors and constants; zeros where the
adapter leaves a slice alone.
"""

import asyncio
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from adapters.dora import SCALE, SHIFT
from adapters.lint.config import scaling_of
from adapters.lint.peft_folder import DORA_FILE, MAGNITUDE
from adapters.lint.tensors import read_headers
from adapters.store.file_stamp import Stamp, stamp_of
from serve.engine.loading.packing import AdapterSlice, Form, pack_slices
from serve.engine.loading.staged_cache import StagedCache
from serve.engine.parent import end_with_parent
from serve.kernels.packed import ENTRY, LayerWeights, Rescale

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""Raise it with every change of code after which an adapter is packed to other bytes, here, in packing or packed.py."""

WEIGHTS_FILE, ENTRIES_FILE, DIGEST_FILE = "weights.bin", "entries.npy", "blake3"
_SHARED_MEMORY = Path("/dev/shm")
_NICENESS = 10
_CHUNK_BYTES = 1 << 20
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
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
class Layout:
    """What adapters are staged for: the served model's layers, in the worker's order, and how their weights lie."""

    layers: tuple[LayerShape, ...]
    form: Form = "panels"

    @property
    def sha256(self) -> str:
        """What a version packed for it is kept under, beside its own digest."""
        return hashlib.sha256(f"format {FORMAT_VERSION} {self!r}".encode()).hexdigest()


@dataclass(frozen=True)
class Staged:
    """An adapter ready to be mapped.

    Attributes:
        digest: Of the files as they are now: BLAKE3, in hexadecimal.
        stamp: Of the files from before they were hashed; None where they were only just written.
    """

    folder: Path
    digest: str
    stamp: Stamp | None = None


class Stager:
    """Stages one adapter after another for one engine.

    Args:
        cache: Keeps what was staged; by default nothing does.
    """

    def __init__(self, layout: Layout, cache: StagedCache | None = None) -> None:
        self._layout = layout
        self._cache = cache
        if cache is not None:
            cache.root.mkdir(parents=True, exist_ok=True)
        place = cache.root if cache else _memory_folder()
        self._folder = TemporaryDirectory(prefix=f"lorikeet-{os.getpid()}-", dir=place)
        self._numbers = count()
        self._held: dict[str, Staged] = {}  # by key of the cache: links of our own, as they were hashed
        self._pool = self._new_pool()

    @asynccontextmanager
    async def staged(self, adapter: Path) -> AsyncIterator[Staged | None]:
        """An adapter's folder made ready, until the engine has mapped it; None where the engine must read it itself.

        What was taken from the cache and hashed is held: a later load of the same files, untouched since, is free.
        """
        key = self._cache.key_of(adapter) if self._cache else None
        staged = self._untouched(key) if key else None
        if staged is None:
            staged = await self._stage(adapter)
        try:
            yield staged
        finally:
            if staged is not None and not self._is_held(key, staged):
                shutil.rmtree(staged.folder, ignore_errors=True)

    def _untouched(self, key: str) -> Staged | None:
        """What is held of a version, where nobody has touched it."""
        held = self._held.get(key)
        if held is None:
            return None
        try:
            if self._cache and self._cache.is_used(key, held.folder) and stamp_of(held.folder) == held.stamp:
                return held
        except FileNotFoundError:
            pass
        del self._held[key]
        shutil.rmtree(held.folder, ignore_errors=True)
        return None

    def _is_held(self, key: str | None, staged: Staged) -> bool:
        """Whether this folder stays for a next load."""
        if key is None or staged.stamp is None:
            return False
        return self._held.setdefault(key, staged).folder == staged.folder

    async def _stage(self, adapter: Path) -> Staged | None:
        folder = Path(self._folder.name) / str(next(self._numbers))
        try:
            staged = await asyncio.get_running_loop().run_in_executor(
                self._pool, stage_folder, adapter, self._layout, folder, self._cache
            )
        except BrokenProcessPool:
            logger.warning("The process that stages adapters died; the engine reads %s itself.", adapter)
            self._pool = self._new_pool()
            staged = None
        except OSError as error:  # as a full disk: the engine may still have room
            logger.warning("%s cannot be staged, the engine reads it itself: %s", adapter, error)
            staged = None
        if staged is None:
            shutil.rmtree(folder, ignore_errors=True)
        return staged

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


def stage_folder(adapter: Path, layout: Layout, folder: Path, cache: StagedCache | None) -> Staged | None:
    """As `write_staged`, but from the cache where it has this version, as it was packed then."""
    key = cache.key_of(adapter) if cache else None
    if cache is not None and key is not None and cache.take(key, folder):
        stamp = stamp_of(folder)
        digest = _digest(folder)
        if digest == (folder / DIGEST_FILE).read_text():
            return Staged(folder, digest, stamp)
        logger.warning("What was kept of %s has changed on disk; it is staged again.", adapter)
        cache.drop(key)
        shutil.rmtree(folder)
    written = write_staged(adapter, layout, folder)
    if written is None:
        return None
    if cache is not None and key is not None:
        try:
            (folder / DIGEST_FILE).write_text(written)
            cache.keep(key, folder)
        except OSError as error:
            logger.warning("%s is staged, but not kept for the next load: %s", adapter, error)
    return Staged(folder, written)


def write_staged(adapter: Path, layout: Layout, folder: Path) -> str | None:
    """Pack a PEFT adapter's folder, which passed the lint, for the engine's layers.

    Returns:
        BLAKE3 of what was written; None where the adapter has a part that no layer takes.

    Raises:
        OSError: A file cannot be read or written.
    """
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    tensors = _read_tensors(adapter / "adapter_model.safetensors")
    modules = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    layers = layout.layers
    expected = {_PEFT_PREFIX + part for layer in layers for part in layer.parts}
    is_dora = bool(config.get("use_dora"))
    num_known = sum(f"{module}.{MAGNITUDE}" in tensors for module in modules) if is_dora else 0
    if not modules <= expected or len(tensors) != 2 * len(modules) + num_known:
        return None
    constants = _read_tensors(adapter / DORA_FILE) if is_dora else {}
    found: list[AdapterSlice] = []
    for index, layer in enumerate(layers):
        for number, part in enumerate(layer.parts):
            module = _PEFT_PREFIX + part
            if module not in modules:
                continue
            lora_a, lora_b = tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]
            if lora_a.shape[1] != layer.inputs or lora_b.shape[0] != layer.widths[number]:
                return None
            rescale = _rescale(constants, part) if is_dora else None
            found.append(AdapterSlice((index, number), lora_a, lora_b, scaling_of(part, config), rescale))
    entries = np.zeros((len(layers), max(len(layer.parts) for layer in layers), ENTRY), np.int64)
    weights = pack_slices(found, layout.form, entries)
    folder.mkdir()
    np.save(folder / ENTRIES_FILE, entries, allow_pickle=False)
    (folder / WEIGHTS_FILE).write_bytes(weights.data)
    return _digest(folder)


def _rescale(constants: Mapping[str, Tensor], module: str) -> Rescale:
    return Rescale(constants[f"{module}.{SCALE}"], constants.get(f"{module}.{SHIFT}"))


def read_staged(folder: Path, num_slices: Sequence[int]) -> list[LayerWeights | None] | None:
    """Map a folder staged as panels: per layer its weights, None where the adapter leaves it alone.

    Args:
        num_slices: Of each layer, in the order it was staged for.

    Returns:
        None where the folder is no staged one. The folder may be removed afterwards.
    """
    mapped = map_staged(folder)
    if mapped is None:
        return None
    memory, entries = mapped
    is_used = entries[:, :, 2] > 0
    entries[:, :, :2] += memory.data_ptr() * is_used[:, :, None]
    entries[:, :, 3:] += memory.data_ptr() * (entries[:, :, 3:] > 0)
    is_layer_used: Any = is_used.any(axis=1)
    return [
        LayerWeights(entries[index, :slices], (memory,)) if used else None
        for index, (slices, used) in enumerate(zip(num_slices, is_layer_used.tolist(), strict=True))
    ]


def map_staged(folder: Path) -> "tuple[Tensor, np.ndarray[Any, np.dtype[np.int64]]] | None":
    """The weights of a staged folder as bytes, and its entries; None where the folder is no staged one."""
    weights = folder / WEIGHTS_FILE
    if not weights.exists():
        return None
    memory = torch.from_file(str(weights), shared=False, size=weights.stat().st_size, dtype=torch.uint8)
    return memory, np.load(folder / ENTRIES_FILE, allow_pickle=False)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file that passed the lint. Read at once: a mapped page costs more than its bytes."""
    content = np.fromfile(path, np.uint8)
    return {
        # Cut before it is a tensor: a file may begin its tensors at any byte, and torch's views may not.
        header.name: torch.from_numpy(content[header.begin : header.end]).view(_DTYPES[header.dtype]).view(header.shape)
        for header in read_headers(path).values()
    }


def _digest(folder: Path) -> str:
    """BLAKE3: on every load, beside a step of the engine, SHA-256 takes three times as long."""
    digest = blake3((folder / ENTRIES_FILE).read_bytes())
    with (folder / WEIGHTS_FILE).open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):  # not mapped: a page costs more than its bytes
            digest.update(chunk)
    return digest.hexdigest()


def _memory_folder() -> str:
    """Where a file lies in memory, or failing that, where one is likely to stay there."""
    return str(_SHARED_MEMORY) if os.access(_SHARED_MEMORY, os.W_OK) else gettempdir()


def _begin() -> None:
    end_with_parent()
    os.nice(_NICENESS)
    torch.set_num_threads(1)


def _is_ready() -> bool:
    return True
