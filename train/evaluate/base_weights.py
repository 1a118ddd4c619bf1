"""The base's weights in a model that has others, for as long as a block lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel


@contextmanager
def with_weights_of_base(model: PreTrainedModel) -> Iterator[None]:
    """Use the weights of the folder that the model was loaded from, until the block ends."""
    stored: dict[str, torch.Tensor] = {}
    for path in sorted(Path(str(model.name_or_path)).glob("*.safetensors")):
        stored |= load_file(path)
    kept = {}
    for name, parameter in model.named_parameters():
        kept[name] = parameter.data
        # What the base lacks are added layers, which do nothing with zeros.
        found = stored[name].to(parameter) if name in stored else torch.zeros_like(parameter)
        parameter.data = found.data
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = kept[name]
