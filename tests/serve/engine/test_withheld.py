"""What only the observer reads comes with an answer's last token, whole; what a client sees comes as ever."""

from itertools import chain
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vllm is not installed")

from vllm.logprobs import FlatLogprobs
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsLists

from serve.engine.observed import Collecting, Undelivered, with_logprobs
from serve.engine.scheduler import StepRules
from serve.engine.withheld import is_for_the_observer
from tests.narrowing import not_none

OBSERVED = with_logprobs(SamplingParams())


class Step(NamedTuple):
    """What the model has sampled for a request."""

    request_id: str
    tokens: list[int]
    is_last: bool


class Scheduler:
    """What of vLLM's scheduler a request passes."""

    def __init__(self) -> None:
        self.aborted: list[Any] = []
        self.requests: dict[str, Any] = {}
        self.lora_config = None
        self.structured_output_manager = SimpleNamespace()
        self.grammar_compile_error_reqs: set[str] = set()

    def add_request(self, request: Any) -> None:
        pass

    def update_from_output(self, steps: list[Step], model_output: Any) -> dict[int, EngineCoreOutputs]:
        lists = model_output.logprobs
        outputs = [
            EngineCoreOutput(
                step.request_id,
                step.tokens,
                new_logprobs=lists.slice_request(index, len(step.tokens)) if lists else None,
                finish_reason=FinishReason.STOP if step.is_last else None,
            )
            for index, step in enumerate(steps)
        ]
        return {0: EngineCoreOutputs(outputs=outputs)}

    def finish_requests(self, request_ids: Any, status: Any = None) -> None:
        self.aborted.append(request_ids)


class Observed(StepRules, Scheduler): ...


@pytest.fixture
def scheduler() -> Any:
    return Observed()


def request(request_id: str, params: SamplingParams | None = OBSERVED) -> Any:
    return SimpleNamespace(request_id=request_id, sampling_params=params)


def step(request_id: str, *tokens: int, is_last: bool = False) -> Step:
    return Step(request_id, list(tokens), is_last)


def lists_of(*tokens: int, starts: list[int] | None = None) -> LogprobsLists:
    """As the worker sends them where a client in the batch wants one more candidate."""
    ids = np.array([[token, 99] for token in tokens], np.int32).reshape(-1, 2)
    return LogprobsLists(ids, (-ids / 10).astype(np.float32), np.zeros(len(ids), np.int64), starts)


def delivered(scheduler: Any, *steps: Step) -> list[list[float] | None]:
    """The sampled tokens' of each output; a request without a token has a row in a step all the same."""
    lists = lists_of(*(step.tokens[0] if step.tokens else 0 for step in steps))
    outputs = update(scheduler, lists, *steps)
    return [
        [round(float(value), 3) for value in one.new_logprobs.logprobs[:, 0]] or None if one.new_logprobs else None
        for one in outputs
    ]


def step_output(lists: LogprobsLists | None) -> Any:
    return SimpleNamespace(logprobs=lists, num_nans_in_logits=None, prompt_logprobs_dict={})


def update(scheduler: Any, lists: LogprobsLists | None, *steps: Step) -> list[EngineCoreOutput]:
    (of_client,) = scheduler.update_from_output(list(steps), step_output(lists)).values()
    outputs: list[EngineCoreOutput] = of_client.outputs
    return outputs


def test_they_come_with_the_last_token(scheduler: Any) -> None:
    scheduler.add_request(request("a"))
    scheduler.add_request(request("b"))
    assert delivered(scheduler, step("a", 1), step("b", 5)) == [None, None]
    assert delivered(scheduler, step("a")) == [None]  # as a step of a long prompt
    assert delivered(scheduler, step("a", 2), step("b", 6, is_last=True)) == [None, [-0.5, -0.6]]
    assert delivered(scheduler, step("a", is_last=True)) == [[-0.1, -0.2]]
    scheduler.add_request(request("a"))
    assert delivered(scheduler, step("a", 7, is_last=True)) == [[-0.7]]
    scheduler.add_request(request("a"))
    assert delivered(scheduler, step("a", is_last=True)) == [None]


def test_several_tokens_of_a_step_are_all_of_their_request(scheduler: Any) -> None:
    scheduler.add_request(request("a"))
    scheduler.add_request(request("b"))
    lists = lists_of(1, 2, 3, starts=[0, 2])
    first, second = update(scheduler, lists, step("a", 1, 2, is_last=True), step("b", 3, is_last=True))
    assert not_none(first.new_logprobs).logprob_token_ids.tolist() == [[1], [2]]
    assert not_none(second.new_logprobs).logprob_token_ids.tolist() == [[3]]


def test_a_step_without_any_changes_nothing(scheduler: Any) -> None:
    scheduler.add_request(request("a"))
    assert [one.new_logprobs for one in update(scheduler, None, step("a"), step("b", 1))] == [None, None]


def test_a_client_beside_it_gets_its_own_whole_and_at_once(scheduler: Any) -> None:
    scheduler.add_request(request("a"))
    _, own = update(scheduler, lists_of(1, 2), step("a", 1), step("b", 2))
    logprobs = not_none(own.new_logprobs)
    assert logprobs.logprob_token_ids.tolist() == [[2, 99]]
    assert logprobs.sampled_token_ranks.tolist() == [0]


@pytest.mark.parametrize(
    "params",
    [
        None,
        SamplingParams(),
        SamplingParams(logprobs=0),
        SamplingParams(logprobs=0, flat_logprobs=True),  # as ours, but for the mark
        SamplingParams(logprobs=2),
        SamplingParams(stop=["x"]),
    ],
)
def test_what_a_client_asked_for_comes_as_ever(scheduler: Any, params: SamplingParams | None) -> None:
    assert not is_for_the_observer(params)
    scheduler.add_request(request("a", params and (with_logprobs(params) if params.stop else params)))
    assert delivered(scheduler, step("a", 1), step("a", 2, is_last=True)) == [[-0.1], [-0.2]]


@pytest.mark.parametrize("ids", ["a", ["a", "unknown"], iter(["a"]), None])
def test_what_was_withheld_of_an_aborted_answer_is_forgotten(scheduler: Any, ids: Any) -> None:
    scheduler.add_request(request("a"))
    delivered(scheduler, step("a", 1))
    scheduler.finish_requests(ids, None)
    assert scheduler._withheld.wrap(SimpleNamespace(logprobs=None)) is False
    (passed_on,) = scheduler.aborted
    assert passed_on is None if ids is None else "a" in passed_on


def test_a_stream_gets_each_once() -> None:
    collected = Undelivered()
    assert collected
    assert collected[-1:].logprobs == []
    for token in (1, 2):
        collected.append_fast([token], [-token / 10], chain([0]), iter([None]))
    assert collected[-1:].logprobs == [-0.1, -0.2]
    assert collected[-1:].logprobs == []
    collected.append_fast([3], [-0.3], chain([0]), iter([None]))
    assert collected[:0].logprobs == [-0.3]
    assert collected.logprobs == [-0.1, -0.2, -0.3]
    assert list(collected[0]) == [1]


def test_many_are_collected_at_once_as_vllm_would_one_by_one() -> None:
    fields: dict[str, Any] = {
        "tokenizer": None, "cumulative_logprob": 0.0, "prompt_logprobs": None, "num_logprobs": 0,
        "num_prompt_logprobs": None,
    }  # fmt: skip
    stock = LogprobsProcessor(logprobs=FlatLogprobs(), **fields)
    ours = Collecting(logprobs=FlatLogprobs(), **fields)
    for tokens in ([1, 2, 3], [4]):
        ids = np.array([tokens], np.int32).T
        lists = LogprobsLists(ids, (-ids / 8).astype(np.float32), np.zeros(len(ids), np.int64))
        for processor in (stock, ours):
            processor.update_from_output(EngineCoreOutput("a", tokens, new_logprobs=lists))
    ours.update_from_output(EngineCoreOutput("a", [5]))
    assert isinstance(stock.logprobs, FlatLogprobs)
    stock.logprobs.ranks = [None] * 4  # which nobody reads
    assert ours.logprobs == stock.logprobs
