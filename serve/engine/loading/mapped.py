"""Staged adapters (staging.py) in vLLM's worker: mapped, where vLLM would read them.

vLLM (0.32, lora/worker_manager.py, lora/lora_model.py) reads an adapter inside the engine's loop, converts and pins
each of its matrices, and merges the scaling. Of a staged one that is done: one file is mapped, and for a GPU copied
once into pinned memory. What follows, the copies into a slot's buffers, is vLLM's own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.utils.torch_utils import PIN_MEMORY

from serve.engine.loading.packing import Form
from serve.engine.loading.rescaled import RescaledLora
from serve.engine.loading.staging import LayerShape, Layout, map_staged
from serve.engine.replace import Replacement, install
from serve.engine.soft_prompts import read_soft_prompt, soft_prompts_of
from serve.kernels.packed import Rescale


class MappedModule:
    """In the place of vLLM's `LoRALayerWeights`: one layer of one adapter, as the layer's `set_lora` takes it."""

    def __init__(self, lora_a: Any, lora_b: Any = None) -> None:
        self.lora_a, self.lora_b = lora_a, lora_b

    def optimize(self) -> "MappedModule":
        """vLLM merges the scaling into B by this name; it is merged already."""
        return self


@dataclass(frozen=True)
class Reader:
    """What a worker's layers take.

    Attributes:
        form_of: Of vLLM's `LoRAModelManager`: how weights lie.
        widths_of: Of a layer: the outputs of its slices, or None where vLLM itself must read for it.
        read: A folder's adapter: by layer what `MappedModule` holds. None where the folder is no staged one.
    """

    form_of: Callable[[Any], Form]
    widths_of: Callable[[Any], Sequence[int] | None]
    read: Callable[[Path, Layout, Any], Mapping[str, MappedModule] | None]


def map_adapters(reader: Reader) -> None:
    """Let the worker map staged adapters; done twice, it does no more."""
    worker_manager: Any = WorkerLoRAManager
    if install(*REPLACEMENTS):
        worker_manager.lorikeet_reader = reader


def layout_of(worker_manager: Any) -> Layout | None:
    """What adapters are to be staged for; None where the worker reads them itself."""
    reader: Reader | None = getattr(worker_manager, "lorikeet_reader", None)
    if reader is None:
        return None
    manager = worker_manager._adapter_manager
    layout: Layout | None = manager.__dict__.get("lorikeet_layout")
    if layout is None:
        layout = manager.lorikeet_layout = Layout(tuple(_layer_shapes(manager, reader)), reader.form_of(manager))
    return layout if layout.layers else None


def _layer_shapes(manager: Any, reader: Reader) -> list[LayerShape]:
    """The layers for which adapters can be staged; none where only vLLM can read an adapter for this model."""
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    if manager.is_pooling_model or getattr(manager.model, "lora_skip_prefixes", None):
        return []
    shapes = []
    for name, layer in manager.modules.items():
        widths = reader.widths_of(layer)
        parts = tuple(manager.packed_modules.get(name, (name,)))
        if widths is None or layer.tp_size > 1 or len(parts) != len(widths):
            continue
        if mapper and any(mapper.get_rename_mapper().map_name(part) != part for part in parts):
            return []
        shapes.append(LayerShape(name, layer.input_size, tuple(widths), parts))
    return shapes


def _load_adapter(stock: Any, worker_manager: Any, request: LoRARequest) -> LoRAModel:
    layout = layout_of(worker_manager)
    manager = worker_manager._adapter_manager
    if (prompt := read_soft_prompt(Path(request.lora_path))) is not None:
        return _soft_prompt_model(request, manager, prompt)
    reader: Reader = worker_manager.lorikeet_reader
    modules = reader.read(Path(request.lora_path), layout, manager) if layout else None
    if modules is None:
        return stock(worker_manager, request)  # type: ignore[no-any-return] # vLLM's, returns a LoRAModel
    loras: Any = dict(modules)
    return LoRAModel(request.lora_int_id, manager.lora_config.max_lora_rank, loras)


def _soft_prompt_model(request: LoRARequest, manager: Any, prompt: Tensor) -> LoRAModel:
    """An adapter without matrices (soft_prompts.py).

    Raises:
        ValueError: The engine cannot put these virtual tokens in front of a prompt.
    """
    prompts = soft_prompts_of(manager)
    if prompts is None:
        raise ValueError("This model's embeddings take no virtual tokens. Serve a LoRA on this base.")
    _, most, hidden_size = prompts.embeddings.shape
    if prompt.dim() != 2 or len(prompt) > most or prompt.shape[1] != hidden_size:
        raise ValueError(f"Virtual tokens of the shape {tuple(prompt.shape)}; up to {most} of {hidden_size} are taken.")
    model: Any = LoRAModel(request.lora_int_id, manager.lora_config.max_lora_rank, {})
    model.lorikeet_soft_prompt = prompt
    return model  # type: ignore[no-any-return] # with one attribute more


def _add_adapter(stock: Any, manager: Any, adapter: LoRAModel) -> None:
    if all(isinstance(module, MappedModule) for module in adapter.loras.values()):
        manager._registered_adapters[adapter.id] = adapter  # there is nothing for vLLM to merge
    else:
        stock(manager, adapter)


REPLACEMENTS = (
    Replacement(WorkerLoRAManager, "_load_adapter", _load_adapter),
    Replacement(LoRAModelManager, "_add_adapter", _add_adapter),
)


def _widths_of(layer: Any) -> Sequence[int] | None:
    """Of vLLM's own buffers, (slots, 1, outputs, rank) for each slice."""
    if not isinstance(layer, BaseLinearLayerWithLoRA):
        return None
    return [stacked.shape[2] for stacked in layer.lora_b_stacked]


def _form_of(manager: Any) -> Form:
    form: Form = str(manager.lora_config.lora_dtype).removeprefix("torch.")  # type: ignore[assignment] # one of vLLM's three
    return form


def _read(folder: Path, layout: Layout, manager: Any) -> Mapping[str, MappedModule] | None:
    """As matrices.

    Raises:
        ValueError: The engine's buffers are too small for the adapter's rank.
    """
    mapped = map_staged(folder)
    if mapped is None:
        return None
    memory, entries = mapped
    rank, most = int(entries[:, :, 2].max()), manager.lora_config.max_lora_rank
    if rank > most:  # as vLLM says it (lora/peft_helper.py): later nothing would
        raise ValueError(f"LoRA rank {rank} is greater than max_lora_rank {most}.")
    if PIN_MEMORY:
        memory = memory.pin_memory()
    dtype = getattr(torch, layout.form)
    return {
        shape.name: _module(memory, rows, shape, dtype)
        for shape, rows in zip(layout.layers, entries.tolist(), strict=True)
        if any(row[2] for row in rows)
    }


def _module(memory: Tensor, rows: Sequence[Sequence[int]], shape: LayerShape, dtype: torch.dtype) -> MappedModule:
    def matrix(begin: int, height: int, width: int) -> Tensor:
        return memory[begin : begin + height * width * dtype.itemsize].view(dtype).view(height, width)

    def constants(begin: int, width: int) -> Tensor:
        return memory[begin : begin + width * torch.float32.itemsize].view(torch.float32)

    slices = list(zip(shape.widths, rows, strict=False))
    a = [matrix(row[0], row[2], shape.inputs) if row[2] else None for _, row in slices]
    b = [matrix(row[1], width, row[2]) if row[2] else None for width, row in slices]
    rescales = [
        Rescale(constants(row[3], width), constants(row[4], width) if row[4] else None) if row[3] else None
        for width, row in slices
    ]
    lora_a, lora_b = (a, b) if len(slices) > 1 else (a[0], b[0])
    return MappedModule(RescaledLora(lora_a, rescales) if any(rescales) else lora_a, lora_b)


MATRICES = Reader(_form_of, _widths_of, _read)
"""vLLM's own LoRA layers, on a GPU or by plain torch."""
