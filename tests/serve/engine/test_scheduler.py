"""Our rules around a step of vLLM's scheduler, and that vLLM finds it by the name in the arguments."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vllm is not installed")

from vllm.config import SchedulerConfig
from vllm.platforms import current_platform
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from serve.engine.finite import NOT_FINITE
from serve.engine.masks import GRAMMAR_TOO_COSTLY, _guard
from serve.engine.scheduler import OVERRIDDEN, LorikeetAsyncScheduler, LorikeetScheduler, StepRules


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


def test_vllm_finds_the_scheduler_that_the_arguments_name(tmp_path: Any) -> None:
    from config.serve import ServeConfig
    from serve.engine.arguments import server_arguments

    if not current_platform.is_cpu():
        pytest.skip("a GPU has the other class")
    config = ServeConfig(base="tiny", kv_cache_bytes=1 << 24)
    name = server_arguments(config, tmp_path).scheduler_cls
    found = SchedulerConfig(max_model_len=64, is_encoder_decoder=False, scheduler_cls=name).get_scheduler_cls()
    assert found is LorikeetScheduler
