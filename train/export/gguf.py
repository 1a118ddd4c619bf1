"""`lorikeet export gguf`: base and adapter as the two GGUF files that llama.cpp and Ollama take."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFType, GGUFWriter, Keys, LlamaFileType
from torch import Tensor

from adapters.bases import CHAT_TEMPLATE_FILE
from train.export.base_tensors import BaseTensors
from train.export.gguf_model import GgufModel, read_gguf_model
from train.export.gguf_vocabulary import Vocabulary, read_vocabulary
from train.export.merge import HEAD, changes_vocabulary, check_layers, embedding_name
from train.export.readme import write_readme
from train.export.tensor_files import TensorPlan
from train.export.version import LoraPair, Version, read_pairs

BASE_FILE = "base.gguf"
ADAPTER_FILE = "adapter.gguf"

_TYPES: dict[torch.dtype, tuple[type[np.generic], GGMLQuantizationType]] = {
    torch.bfloat16: (np.uint16, GGMLQuantizationType.BF16),
    torch.float16: (np.float16, GGMLQuantizationType.F16),
    torch.float32: (np.float32, GGMLQuantizationType.F32),
}
_FILE_TYPES = {
    torch.bfloat16: LlamaFileType.MOSTLY_BF16,
    torch.float16: LlamaFileType.MOSTLY_F16,
    torch.float32: LlamaFileType.ALL_F32,
}


@dataclass(frozen=True)
class _Written:
    """A tensor of a GGUF file, computed when it is written."""

    plan: TensorPlan
    load: Callable[[], Tensor]


def export_gguf(version: Version, folder: Path) -> None:
    """Write `base.gguf`, `adapter.gguf` and a README into an empty folder; weights keep their type.

    Raises:
        ExportError: The base's architecture or tokenizer, or the adapter, is of a kind that is not converted.
    """
    write_gguf(version, folder)
    write_readme(version, folder, _README, library="gguf")


def write_gguf(version: Version, folder: Path) -> None:
    """Write the two GGUF files; what cannot be converted is refused before the first byte.

    Raises:
        ExportError: As `export_gguf`.
    """
    model, tensors, pairs = read_gguf_model(version.base_folder), BaseTensors(version.base_folder), read_pairs(version)
    check_layers(version, tensors, pairs)
    vocabulary = read_vocabulary(version.base_folder, model.config.vocab_size)
    # Tied, llama.cpp would apply the embedding's change to the head as well.
    base = list(_base_tensors(model, tensors, is_untied=tensors.has_tied_head and changes_vocabulary(pairs)))
    adapter = list(_adapter_tensors(model, pairs))
    with _writer(folder / BASE_FILE, model, GGUFType.MODEL, base) as writer:
        writer.add_name(version.base.name)
        writer.add_file_type(_FILE_TYPES[_main_type(base)])
        model.write_hyperparameters(writer)
        _write_vocabulary(writer, vocabulary)
        writer.add_chat_template((version.base_folder / CHAT_TEMPLATE_FILE).read_text(encoding="utf-8"))
    with _writer(folder / ADAPTER_FILE, model, GGUFType.ADAPTER, adapter) as writer:
        writer.add_name(str(version.target))
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, 1.0)


def _base_tensors(model: GgufModel, tensors: BaseTensors, *, is_untied: bool) -> Iterator[_Written]:
    plans = {plan.name: plan for plan in tensors.plans()}
    sources = {name: name for name in plans}
    if is_untied:
        sources[f"{HEAD}.weight"] = embedding_name(plans)
    for name, source in sources.items():
        # Norms and biases are float32 in llama.cpp.
        dtype = torch.float32 if len(plans[source].shape) == 1 else plans[source].dtype
        plan = TensorPlan(model.name(name), dtype, plans[source].shape)

        def load(name: str = name, source: str = source, dtype: torch.dtype = dtype) -> Tensor:
            return model.ordered(name, tensors.read(source)).to(dtype)

        yield _Written(plan, load)
    if (factors := model.rope_factors) is not None:
        yield _Written(TensorPlan("rope_freqs.weight", torch.float32, tuple(factors.shape)), lambda: factors)


def _adapter_tensors(model: GgufModel, pairs: Mapping[str, LoraPair]) -> Iterator[_Written]:
    for module, pair in pairs.items():
        name = f"{module}.weight"
        # llama.cpp multiplies by alpha / rank; with alpha 1, B carries the rest of PEFT's scaling.
        lora_b = model.ordered(name, pair.lora_b) * (pair.scaling * len(pair.lora_a))
        lora_a = pair.lora_a.T if pair.is_embedding else pair.lora_a
        for side, tensor in (("lora_a", lora_a), ("lora_b", lora_b)):
            plan = TensorPlan(f"{model.name(name)}.{side}", torch.float32, tuple(tensor.shape))
            yield _Written(plan, partial(_same, tensor))


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _main_type(tensors: list[_Written]) -> torch.dtype:
    return max(tensors, key=lambda each: each.plan.size_bytes).plan.dtype


def _write_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([int(kind) for kind in vocabulary.types])
    writer.add_token_merges(list(vocabulary.merges))
    for name, index in vocabulary.special_ids.items():
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)


@contextmanager
def _writer(path: Path, model: GgufModel, kind: str, tensors: list[_Written]) -> Iterator[GGUFWriter]:
    """A writer for the metadata; then the tensors are written, one in memory at a time."""
    writer = GGUFWriter(path, model.arch_name)
    try:
        writer.add_type(kind)
        yield writer
        for each in tensors:
            numpy_type, ggml_type = _TYPES[each.plan.dtype]
            dtype: np.dtype[Any] = np.dtype(numpy_type)
            writer.add_tensor_info(each.plan.name, each.plan.shape, dtype, each.plan.size_bytes, raw_dtype=ggml_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for each in tensors:
            writer.write_tensor_data(_to_numpy(each.load()))
    finally:
        writer.close()


def _to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.contiguous()
    array: np.ndarray[Any, Any] = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


_README = (
    "`base.gguf` and `adapter.gguf`, made by `lorikeet export gguf`, for llama.cpp: "
    "`llama-server -m base.gguf --lora adapter.gguf`."
)
