"""A base's weights as numbers, against the libraries that wrote them."""

import pytest
import torch
from safetensors.torch import load_file

from adapters.base_weights import BaseWeights
from adapters.errors import InvalidBaseError
from tests.tiny_llama import write_tiny_llama
from train.base.quantize import quantize_folder
from train.export.base_tensors import BaseTensors

LAYER = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_bitsandbytes_weights_are_dequantized_as_it_does(tmp_path, quantization):
    plain, folder = write_tiny_llama(tmp_path / "plain"), tmp_path / "quantized"
    quantize_folder(plain, quantization, "bitsandbytes").save_pretrained(folder)
    found = torch.from_numpy(BaseWeights(folder).read(LAYER))
    assert found.std() > 0.01
    assert torch.equal(found, BaseTensors(folder).read(LAYER).float())


def test_plain_weights_are_read_as_they_are(tmp_path):
    folder = write_tiny_llama(tmp_path / "plain")
    found = torch.from_numpy(BaseWeights(folder).read(LAYER))
    assert torch.equal(found, load_file(folder / "model.safetensors")[LAYER].float())


def test_a_missing_tensor_is_named(tmp_path):
    with pytest.raises(InvalidBaseError, match="has no tensor 'gone'"):
        BaseWeights(write_tiny_llama(tmp_path / "plain")).read("gone")
