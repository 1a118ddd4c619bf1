"""Models with LoRA are compiled on a CPU, and what was compiled is found again: with vLLM's own configuration."""

from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vllm is not installed")

from vllm.config import CompilationMode, LoRAConfig, ModelConfig, VllmConfig
from vllm.platforms import current_platform

from serve.engine.cpu import compilation
from serve.engine.cpu.compilation import allow_compilation
from tests.tiny_llama import write_tiny_llama

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="vLLM itself compiles them on a GPU")


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    allow_compilation()
    allow_compilation()  # vLLM loads a plugin more than once


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base"))


def model_config(base: Path, **changes: Any) -> ModelConfig:
    return ModelConfig(model=str(base), dtype="bfloat16", max_model_len=64, **changes)


def test_a_model_with_lora_is_compiled_and_keeps_its_lora(base: Path) -> None:
    lora = LoRAConfig(max_lora_rank=8, max_loras=1)
    config = VllmConfig(model_config=model_config(base), lora_config=lora)
    assert config.compilation_config.mode == CompilationMode.DYNAMO_TRACE_ONCE
    assert config.lora_config is lora


def test_a_refused_configuration_keeps_its_lora() -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("a bad configuration")

    config = SimpleNamespace(lora_config="lora")
    with pytest.raises(ValueError, match="a bad configuration"):
        compilation._check_without_lora(refuse, None, config)
    assert config.lora_config == "lora"


@pytest.mark.parametrize("has_method", [False, True])
def test_a_saved_function_can_be_finished_as_vllm_wants(has_method: bool) -> None:
    finished: list[str] = []
    compiled = SimpleNamespace(**({"finalize_loading": finished.append} if has_method else {}))
    loaded = SimpleNamespace(_artifacts=SimpleNamespace(compiled_fn=compiled))
    result = compilation._load_compiled_function(lambda file, **kwargs: loaded, BytesIO(), f_globals={})
    result._artifacts.compiled_fn.finalize_loading("config")
    assert (result is loaded, finished) == (True, ["config"] if has_method else [])


def test_the_same_base_elsewhere_is_not_compiled_again(base: Path, tmp_path: Path) -> None:
    here, there = model_config(base), model_config(write_tiny_llama(tmp_path / "there"))
    other = model_config(base, hf_overrides={"num_hidden_layers": 1})
    assert here.compute_hash() == there.compute_hash() != other.compute_hash()
    assert here.model == str(base)
