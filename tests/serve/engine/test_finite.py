"""What is not finite stays with its own request: blocks are zeroed, rows are found, requests are ended."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="vllm is not installed")

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import LogprobsTensors, ModelRunnerOutput

from serve.engine.finite import NOT_FINITE, contain_not_finite, not_finite_rows, zero_blocks
from serve.engine.scheduler import StepRules

NAN, INFINITY = math.nan, math.inf


class Scheduler:
    """What of vLLM's scheduler a step passes: `a` has the blocks 1 to 3, `b` has 4, all in the prefix cache."""

    def __init__(self) -> None:
        self.requests = dict.fromkeys(["a", "b"])
        self.pool = BlockPool(8, enable_caching=True, hash_block_size=1)
        for block in self.pool.get_new_blocks(4):
            self.pool._insert_block_hash(hash_of(block.block_id), block, 1)
        self.kv_cache_manager = SimpleNamespace(
            get_block_ids={"a": ([1, 2], [3]), "b": ([4], [])}.__getitem__, evict_blocks=self.pool.evict_blocks
        )
        self.grammar_compile_error_reqs: set[str] = set()
        self.lora_config = None
        self.structured_output_manager = SimpleNamespace()

    def update_from_output(self, _: Any, model_output: ModelRunnerOutput) -> dict[int, EngineCoreOutputs]:
        outputs = [
            EngineCoreOutput(each, model_output.sampled_token_ids[index])
            for each, index in model_output.req_id_to_index.items()
            if each in self.requests and model_output.sampled_token_ids[index]
        ]
        failed = [EngineCoreOutput(each, [], finish_reason=FinishReason.ERROR) for each in self.ended()]
        return {0: EngineCoreOutputs(outputs=outputs + failed)}

    def ended(self) -> list[str]:
        ended = sorted(self.grammar_compile_error_reqs)
        self.grammar_compile_error_reqs.clear()
        return ended

    def cached(self) -> list[int]:
        """The blocks that a new request could be given for its prefix."""
        found = (self.pool.get_cached_block(b"%d" % number, [0]) for number in range(8))  # type: ignore[arg-type] # BlockHash is bytes
        return [block.block_id for blocks in found if blocks for block in blocks]


def hash_of(number: int) -> Any:
    return make_block_hash_with_group_id(b"%d" % number, 0)  # type: ignore[arg-type] # BlockHash is bytes


class Ruled(StepRules, Scheduler): ...


@pytest.fixture
def scheduler() -> Any:
    return Ruled()


def step(**changes: Any) -> ModelRunnerOutput:
    fields: dict[str, Any] = {"sampled_token_ids": [[7], [8]], "logprobs": None, "prompt_logprobs_dict": {}}
    return ModelRunnerOutput(
        req_ids=["a", "b"], req_id_to_index={"a": 0, "b": 1}, pooler_output=[], **(fields | changes)
    )


def outcome(scheduler: Any, model_output: ModelRunnerOutput) -> dict[str, Any]:
    """By request: its tokens, or what it was ended with."""
    (of_client,) = scheduler.update_from_output(None, model_output).values()
    return {each.request_id: each.stop_reason or each.new_token_ids for each in of_client.outputs}


def test_a_request_whose_logits_are_not_finite_is_ended_alone(scheduler: Any) -> None:
    assert outcome(scheduler, step(num_nans_in_logits={"a": 1, "b": 0})) == {"a": NOT_FINITE, "b": [8]}
    assert outcome(scheduler, step()) == {"a": [7], "b": [8]}


def test_its_blocks_are_no_longer_found_in_the_prefix_cache(scheduler: Any) -> None:
    assert scheduler.cached() == [1, 2, 3, 4]
    outcome(scheduler, step(num_nans_in_logits={"a": 3}))
    assert scheduler.cached() == [4]


@pytest.mark.parametrize(("value", "ended"), [(NAN, NOT_FINITE), (-INFINITY, [7]), (-1.0, [7])])
def test_log_probabilities_of_a_prompt_that_are_no_numbers_end_it_too(scheduler: Any, value: float, ended: Any) -> None:
    lists = LogprobsTensors.empty_cpu(3, 1)
    lists.logprobs.fill_(-1.0)
    lists.logprobs[1, 0] = value
    model_output = step(prompt_logprobs_dict={"a": lists, "b": None})
    assert outcome(scheduler, model_output) == {"a": ended, "b": [8]}
    assert ("a" in model_output.prompt_logprobs_dict) == (ended != NOT_FINITE)


def test_one_that_has_left_meanwhile_is_left_alone(scheduler: Any) -> None:
    del scheduler.requests["a"]
    assert outcome(scheduler, step(num_nans_in_logits={"a": 1})) == {"b": [8]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@given(
    rows=st.lists(st.sampled_from([NAN, INFINITY, -INFINITY, 0.0, 30.0]), min_size=1, max_size=6),
    place=st.integers(0, 899),
)
def test_exactly_the_rows_with_nan_or_infinity_are_found(rows: list[float], place: int, dtype: torch.dtype) -> None:
    logits = torch.linspace(-40, 40, 900).repeat(len(rows), 1).to(dtype)
    logits[:, 100:300] = -INFINITY  # what a grammar forbids
    logits[:, place] = torch.tensor(rows).to(dtype)
    expected = [math.isnan(value) or value == INFINITY for value in rows]
    assert not_finite_rows(logits).tolist() == expected


def test_the_worker_names_only_the_requests_that_are_not_finite() -> None:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    contain_not_finite()
    count: Any = CPUModelRunner._get_nans_in_logits
    runner = SimpleNamespace(input_batch=SimpleNamespace(req_id_to_index={"a": 0, "b": 1, "c": 2}))
    logits = torch.zeros(2, 5)
    assert count(runner, logits) == count(runner, None) == {}
    logits[1, 3] = NAN
    assert count(runner, logits) == {"b": 1}


def test_vllms_own_count_is_of_rows_that_are_not_finite() -> None:
    """It is what counts on a GPU."""
    from vllm.v1.worker import gpu_model_runner

    contain_not_finite()
    logits = torch.tensor([[0.0, INFINITY], [0.0, -INFINITY], [NAN, 0.0]])
    assert gpu_model_runner.count_nans_per_row(logits).tolist() == [1, 0, 1]


def test_every_kind_of_cache_is_zeroed() -> None:
    """As vLLM's worker would: plain attention, a sliding window, several rows a block; a state is none of them."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    contain_not_finite()
    caches = {"full": torch.full((6, 2, 4), NAN), "window": torch.full((6, 4), NAN), "split": torch.full((12, 4), NAN)}
    layers = {name: SimpleNamespace(kv_cache=cache) for name, cache in caches.items()}
    layers |= {"again": layers["full"], "state": SimpleNamespace(kv_cache=[torch.full((6, 4), NAN)])}
    runner = SimpleNamespace(
        compilation_config=SimpleNamespace(static_forward_context=layers),
        kv_cache_config=SimpleNamespace(
            num_blocks=6,
            kv_cache_groups=[
                SimpleNamespace(layer_names=["full", "again", "state"]),
                SimpleNamespace(layer_names=["window", "split", "elsewhere"]),
            ],
        ),
    )
    zero: Any = CPUModelRunner._zero_block_ids
    zero(runner, [4, 1, 2])
    for cache in caches.values():
        blocks = cache.view(6, -1)
        assert not blocks[[1, 2, 4]].any()
        assert blocks[[0, 3, 5]].isnan().all()


@given(st.sets(st.integers(0, 15)))
def test_only_the_blocks_named_are_zeroed(numbers: set[int]) -> None:
    cache = torch.ones(16, 3)
    zero_blocks([cache], list(numbers), 16)
    assert {number for number in range(16) if not cache[number].any()} == numbers


def test_blocks_are_zeroed_for_every_model() -> None:
    contain_not_finite()
    config: Any = KVCacheConfig(num_blocks=1, kv_cache_tensors=[], kv_cache_groups=[])
    assert config.needs_kv_cache_zeroing
