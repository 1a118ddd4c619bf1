"""Models with LoRA are compiled on a CPU, and what was compiled is found again."""

from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve.engine.cpu.compilation import allow_compilation, fix_compile_cache_reload, share_compile_cache


class Platform:
    """As vLLM's: it turns compilation off where it sees LoRA."""

    fails = False

    @classmethod
    def check_and_update_config(cls, config: Any) -> None:
        if cls.fails:
            raise ValueError("a bad configuration")
        config.is_compiled = config.lora_config is None


@pytest.fixture
def platform() -> type[Platform]:
    class Own(Platform):
        pass

    allow_compilation(Own)
    return Own


def test_a_model_with_lora_is_compiled_and_keeps_its_lora(platform: type[Platform]) -> None:
    config = SimpleNamespace(lora_config="lora")
    platform.check_and_update_config(config)
    assert (config.is_compiled, config.lora_config) == (True, "lora")


def test_a_refused_configuration_keeps_its_lora(platform: type[Platform]) -> None:
    platform.fails = True
    config = SimpleNamespace(lora_config="lora")
    with pytest.raises(ValueError, match="a bad configuration"):
        platform.check_and_update_config(config)
    assert config.lora_config == "lora"


def test_allowing_it_twice_is_allowing_it_once(platform: type[Platform]) -> None:
    before = platform.check_and_update_config
    allow_compilation(platform)
    assert platform.check_and_update_config == before


@pytest.mark.parametrize("has_method", [False, True])
def test_a_saved_function_can_be_finished_as_vllm_wants(monkeypatch: pytest.MonkeyPatch, has_method: bool) -> None:
    finished: list[str] = []
    compiled = SimpleNamespace(**({"finalize_loading": finished.append} if has_method else {}))
    loaded = SimpleNamespace(_artifacts=SimpleNamespace(compiled_fn=compiled))
    monkeypatch.setattr(torch.compiler, "load_compiled_function", lambda file, **kwargs: loaded)
    fix_compile_cache_reload()
    fix_compile_cache_reload()

    result: Any = torch.compiler.load_compiled_function(BytesIO(), f_globals={})
    result._artifacts.compiled_fn.finalize_loading("config")
    assert (result is loaded, finished) == (True, ["config"] if has_method else [])


def test_the_same_base_elsewhere_is_not_compiled_again() -> None:
    class ModelConfig:
        def __init__(self, model: str, layers: int) -> None:
            self.model, self.layers = model, layers

        def compute_hash(self) -> str:
            return f"{self.model} {self.layers}"

    share_compile_cache(ModelConfig)
    share_compile_cache(ModelConfig)
    here, there, other = ModelConfig("/here", 2), ModelConfig("/there", 2), ModelConfig("/here", 3)
    assert here.compute_hash() == there.compute_hash() != other.compute_hash()
    assert here.model == "/here"
