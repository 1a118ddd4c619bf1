"""The layers of a base model and their shapes, from the headers of its safetensors files."""

import json
from pathlib import Path

from adapters.bases import weights_folder
from adapters.errors import InvalidBaseError
from adapters.lint.tensors import TensorHeader, read_headers

_PACKED_DTYPES = {"U8", "I32"}  # 4-bit weights lie packed; their shape on disk says nothing

Shape = tuple[int, ...]


def read_base_modules(folder: Path) -> dict[str, Shape | None]:
    """Shape (out_features, in_features) of every layer by full name; None if the files do not say.

    Raises:
        InvalidBaseError: The folder holds no safetensors weights.
        InvalidAdapterError: One of its weight files is truncated.
    """
    paths = sorted(weights_folder(folder).glob("*.safetensors"))
    if not paths:
        raise InvalidBaseError(
            f"Base {folder.name!r} holds no *.safetensors file. Prepare it with `lorikeet base prepare`."
        )
    modules: dict[str, Shape | None] = {}
    for path in paths:
        for header in read_headers(path).values():
            module, _, parameter = header.name.rpartition(".")
            if parameter == "weight":
                modules[module] = _weight_shape(header)
            else:
                modules.setdefault(module, None)
    return modules | _tied_head(folder, modules)


def _weight_shape(header: TensorHeader) -> Shape | None:
    return None if header.dtype in _PACKED_DTYPES else header.shape


def _tied_head(folder: Path, modules: dict[str, Shape | None]) -> dict[str, Shape | None]:
    """Add the tied output head, which no weight file contains."""
    config_path = folder / "config.json"
    config = json.loads(config_path.read_bytes()) if config_path.is_file() else {}
    if not config.get("tie_word_embeddings") or "lm_head" in modules:
        return {}
    shapes = [shape for module, shape in modules.items() if module.endswith("embed_tokens")]
    return {"lm_head": shapes[0]} if shapes else {}
