"""Our rules around a step of vLLM's scheduler, and that vLLM finds it by the name in the arguments."""

import time
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vllm is not installed")

from vllm.config import CacheConfig, LoRAConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from serve.engine.finite import NOT_FINITE
from serve.engine.masks import GRAMMAR_TOO_COSTLY, _guard
from serve.engine.protocol import BACKGROUND_PRIORITY
from serve.engine.scheduler import OVERRIDDEN, LorikeetAsyncScheduler, LorikeetScheduler, StepRules
from serve.engine.slots import SLOT_TURN_VARIABLE
from tests.restored_environment import restored_environment
from tests.tiny_llama import write_tiny_llama


class EndingScheduler:
    """What of vLLM's scheduler ends requests that cannot go on."""

    def __init__(self) -> None:
        grammar = SimpleNamespace(structured_output_request=SimpleNamespace(grammar=None))
        self.requests: dict[str, Any] = dict.fromkeys(["a", "b", "c"], grammar)
        self.lora_config = None
        self.structured_output_manager = SimpleNamespace()
        self.grammar_compile_error_reqs: set[str] = set()
        self.kv_cache_manager = SimpleNamespace(get_block_ids=lambda _: (), evict_blocks=lambda _: None)

    def update_from_output(self, scheduler_output: Any, model_output: Any) -> Any:
        names = sorted(self.grammar_compile_error_reqs)
        ended = [SimpleNamespace(request_id=each, finish_reason="error", stop_reason=None) for each in names]
        return {0: SimpleNamespace(outputs=ended)}


class Ruled(StepRules, EndingScheduler): ...


def step() -> Any:
    return SimpleNamespace(
        req_id_to_index={"a": 0, "b": 1, "c": 2},
        sampled_token_ids=[[4], [5], [6]],
        logprobs=None,
        num_nans_in_logits={"a": 1},
        prompt_logprobs_dict={},
    )


def test_a_step_ends_requests_and_says_why_for_each() -> None:
    scheduler, output = Ruled(), step()
    _guard(scheduler.structured_output_manager).ended = {"b", "gone"}
    found = scheduler.update_from_output(None, output)
    assert {each.request_id: each.stop_reason for each in found[0].outputs} == {
        "a": NOT_FINITE,
        "b": GRAMMAR_TOO_COSTLY,
    }
    assert output.sampled_token_ids == [[], [], [6]]
    assert _guard(scheduler.structured_output_manager).ended == set()


@pytest.mark.parametrize(("ours", "stock"), [(LorikeetScheduler, Scheduler), (LorikeetAsyncScheduler, AsyncScheduler)])
def test_each_overridden_method_is_ours_before_vllms(ours: type, stock: type) -> None:
    assert issubclass(ours, stock)
    assert all(getattr(ours, name) is getattr(StepRules, name) for name in OVERRIDDEN)
    assert all(name not in vars(AsyncScheduler) for name in OVERRIDDEN)  # the table has the source of Scheduler's


def two_slots(folder: Path) -> LorikeetScheduler:
    """vLLM's own scheduler with our rules: eight requests of two adapters at a time."""
    base = write_tiny_llama(folder)
    with restored_environment():
        config = VllmConfig(
            model_config=ModelConfig(str(base), dtype="bfloat16", max_model_len=64),
            scheduler_config=SchedulerConfig(
                max_num_seqs=8, max_num_batched_tokens=64, max_model_len=64, is_encoder_decoder=False, policy="priority"
            ),
            cache_config=CacheConfig(block_size=32),
            lora_config=LoRAConfig(max_lora_rank=8, max_loras=2),
        )
    config.cache_config.num_gpu_blocks = 100
    attention = FullAttentionSpec(block_size=32, num_kv_heads=1, head_size=8, dtype=torch.bfloat16)
    cache = KVCacheConfig(100, [], [KVCacheGroupSpec(["layer"], attention)])
    return LorikeetScheduler(
        vllm_config=config,
        kv_cache_config=cache,
        structured_output_manager=StructuredOutputManager(config),
        block_size=32,
        hash_block_size=32,
    )


def of_adapter(name: str, adapter: int, priority: int = 0) -> Request:
    lora_request = LoRARequest(str(adapter), adapter, "unread") if adapter else None
    return Request(name, [1, 2, 3], SamplingParams(max_tokens=4), None, lora_request=lora_request, priority=priority)


def names_of_step(scheduler: Any) -> list[str]:
    """Schedule a step, and end it: each of its requests has got a token."""
    step = scheduler.schedule()
    names = list(step.num_scheduled_tokens)
    places = {name: place for place, name in enumerate(names)}
    scheduler.update_from_output(step, ModelRunnerOutput(names, places, sampled_token_ids=[[5]] * len(names)))
    return names


def test_a_client_takes_no_slot_of_background_requests_that_sit_a_step_out(tmp_path: Path) -> None:
    """vLLM alone would start it, as the step has room for its adapter, and end when they go on."""
    scheduler = two_slots(tmp_path)
    for adapter in (7, 8):
        scheduler.add_request(of_adapter(f"background {adapter}", adapter, BACKGROUND_PRIORITY))
    background = names_of_step(scheduler)
    scheduler.add_request(of_adapter("third", 9))
    assert names_of_step(scheduler) == background  # for who waits for their slots they do not sit out
    scheduler.add_request(of_adapter("base", 0))
    scheduler.add_request(of_adapter("eighth", 8))
    assert sorted(names_of_step(scheduler)) == ["base", "eighth"]
    assert sorted(names_of_step(scheduler)) == sorted(["base", "eighth", *background])
    assert "third" not in names_of_step(scheduler)
    assert "third" in names_of_step(scheduler)


@pytest.mark.parametrize("turn_s", ["", "0.001"])
@pytest.mark.parametrize("seed", range(4))
def test_any_mix_of_requests_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn_s: str, seed: int
) -> None:
    """By vLLM's scheduler, which ends where a step has more adapters than slots."""
    monkeypatch.setenv(SLOT_TURN_VARIABLE, turn_s)
    scheduler, random = two_slots(tmp_path), Random(seed)
    for number in range(100):
        for each in range(random.choice([0, 0, 1, 3])):
            priority = random.choice([0, 0, 1, BACKGROUND_PRIORITY])
            scheduler.add_request(of_adapter(f"{number}-{each}", random.randrange(5), priority))
        names_of_step(scheduler)
    deadline = time.monotonic() + 60
    while scheduler.has_requests() and time.monotonic() < deadline:
        names_of_step(scheduler)
    assert not scheduler.has_requests()


def test_vllm_finds_the_scheduler_that_the_arguments_name(tmp_path: Any) -> None:
    from config.serve import ServeConfig
    from serve.engine.arguments import server_arguments

    if not current_platform.is_cpu():
        pytest.skip("a GPU has the other class")
    config = ServeConfig(base="tiny", kv_cache_bytes=1 << 24)
    name = server_arguments(config, tmp_path).scheduler_cls
    found = SchedulerConfig(max_model_len=64, is_encoder_decoder=False, scheduler_cls=name).get_scheduler_cls()
    assert found is LorikeetScheduler
