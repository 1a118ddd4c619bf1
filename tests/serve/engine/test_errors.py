"""What vLLM says, in our own words."""

import pytest
from vllm.config.model import ModelConfig

from serve.engine.errors import refused_configurations
from serve.errors import EngineStartError
from tests.tiny_llama import write_tiny_llama


def test_a_quantization_that_vllm_does_not_know_ends_the_start(tmp_path):
    folder = write_tiny_llama(tmp_path / "model")
    with (
        pytest.raises(EngineStartError, match=r"vLLM cannot serve this base.*: Unknown quantization method: odd"),
        refused_configurations(),
    ):
        ModelConfig(str(folder), quantization="odd")


def test_one_line_is_kept_of_a_refused_configuration():
    with pytest.raises(EngineStartError, match=r": no kernel$"), refused_configurations():
        raise ValueError("no kernel\nstack of it")
