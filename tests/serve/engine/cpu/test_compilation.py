"""Models with LoRA are compiled on a CPU, and what was compiled is found again: with vLLM's own configuration."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo import config as dynamo
from torch._functorch import config as functorch

pytest.importorskip("vllm", reason="vllm is not installed")

from vllm.compilation.caching import VllmSerializableFunction
from vllm.config import CompilationMode, LoRAConfig, ModelConfig, VllmConfig
from vllm.platforms import current_platform

from serve.engine.cpu import compilation
from serve.engine.cpu.compilation import allow_compilation
from tests.restored_environment import restored_environment
from tests.tiny_llama import write_tiny_llama

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="vLLM itself compiles them on a GPU")


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    allow_compilation()
    allow_compilation()  # vLLM loads a plugin more than once
    with restored_environment():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base"))


def model_config(base: Path, **changes: Any) -> ModelConfig:
    return ModelConfig(model=str(base), dtype="bfloat16", max_model_len=64, **changes)


@pytest.mark.slow
def test_a_model_with_lora_is_compiled_and_keeps_its_lora(base: Path) -> None:
    lora = LoRAConfig(max_lora_rank=8, max_loras=1)
    config = VllmConfig(model_config=model_config(base), lora_config=lora)
    assert config.compilation_config.mode == CompilationMode.DYNAMO_TRACE_ONCE
    assert config.lora_config is lora


def test_a_refused_configuration_keeps_its_lora(base: Path) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("a bad configuration")

    lora = LoRAConfig(max_lora_rank=8, max_loras=1)
    config = VllmConfig(model_config=model_config(base), lora_config=lora)
    with pytest.raises(ValueError, match="a bad configuration"):
        compilation._check_without_lora(refuse, current_platform, config)
    assert config.lora_config is lora


def add_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@pytest.mark.slow  # generates and compiles C++
def test_what_torch_has_saved_can_be_finished_as_vllm_wants(tmp_path: Path) -> None:
    """As vLLM saves it on a CPU, and as it reads it (vllm/compilation/decorators.py)."""
    file, x = tmp_path / "compiled", torch.ones(3)
    with functorch.patch(bundled_autograd_cache=True), dynamo.patch(enable_aot_compile=True):
        compiled: Any = torch.compile(add_one, fullgraph=True)
        compiled.aot_compile(((x,), {})).save_compiled_function(str(file))
        with file.open("rb") as opened:
            loaded: Any = torch.compiler.load_compiled_function(opened, f_globals=add_one.__globals__)
    loaded._artifacts.compiled_fn.finalize_loading(VllmConfig())
    assert torch.equal(loaded(x), x + 1)


def test_what_vllm_can_finish_itself_is_left_to_it() -> None:
    compiled = VllmSerializableFunction.__new__(VllmSerializableFunction)
    loaded = SimpleNamespace(_artifacts=SimpleNamespace(compiled_fn=compiled))
    assert compilation._load_compiled_function(lambda: loaded) is loaded
    assert "finalize_loading" not in vars(compiled)


def test_the_same_base_elsewhere_is_not_compiled_again(base: Path, tmp_path: Path) -> None:
    here, there = model_config(base), model_config(write_tiny_llama(tmp_path / "there"))
    other = model_config(base, hf_overrides={"num_hidden_layers": 1})
    assert here.compute_hash() == there.compute_hash() != other.compute_hash()
    assert here.model == str(base)
