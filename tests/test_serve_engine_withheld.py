"""What only the observer reads comes with an answer's last token, whole; what a client sees comes as ever."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vllm is not installed")

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists

from serve.engine.observed import Undelivered, with_logprobs
from serve.engine.withheld import is_for_the_observer, withhold_logprobs

OBSERVED = with_logprobs(SamplingParams())


class Scheduler:
    """What of vLLM's scheduler a request passes."""

    def __init__(self) -> None:
        self.aborted: list[Any] = []

    def add_request(self, request: Any) -> None:
        pass

    def update_from_output(self, *outputs: EngineCoreOutput) -> dict[int, EngineCoreOutputs]:
        return {0: EngineCoreOutputs(outputs=list(outputs))}

    def finish_requests(self, request_ids: Any, status: Any = None) -> None:
        self.aborted.append(request_ids)


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    class Patched(Scheduler):
        add_request, update_from_output = Scheduler.add_request, Scheduler.update_from_output
        finish_requests = Scheduler.finish_requests

    monkeypatch.setattr("vllm.v1.core.sched.scheduler.Scheduler", Patched)
    withhold_logprobs()
    withhold_logprobs()  # vLLM loads a plugin more than once
    return Patched()


def request(request_id: str, params: SamplingParams | None = OBSERVED) -> Any:
    return SimpleNamespace(request_id=request_id, sampling_params=params)


def output(request_id: str, token: int | None, *, is_last: bool = False) -> EngineCoreOutput:
    lists = token is not None and LogprobsLists(np.array([[token]]), np.array([[-token / 10]]), np.array([0]))
    reason = FinishReason.STOP if is_last else None
    return EngineCoreOutput(request_id, [token] if token else [], new_logprobs=lists or None, finish_reason=reason)


def delivered(scheduler: Any, *outputs: EngineCoreOutput) -> list[list[float] | None]:
    (of_client,) = scheduler.update_from_output(*outputs).values()
    return [one.new_logprobs and one.new_logprobs.logprobs[:, 0].tolist() for one in of_client.outputs]


def test_they_come_with_the_last_token(scheduler: Any) -> None:
    scheduler.add_request(request("a"))
    scheduler.add_request(request("b"))
    assert delivered(scheduler, output("a", 1), output("b", 5)) == [None, None]
    assert delivered(scheduler, output("a", None)) == [None]  # as a step of a long prompt
    assert delivered(scheduler, output("a", 2), output("b", 6, is_last=True)) == [None, [-0.5, -0.6]]
    assert delivered(scheduler, output("a", None, is_last=True)) == [[-0.1, -0.2]]
    scheduler.add_request(request("a"))
    assert delivered(scheduler, output("a", 7, is_last=True)) == [[-0.7]]
    scheduler.add_request(request("a"))
    assert delivered(scheduler, output("a", None, is_last=True)) == [None]


@pytest.mark.parametrize(
    "params",
    [None, SamplingParams(), SamplingParams(logprobs=0), SamplingParams(logprobs=2), SamplingParams(stop=["x"])],
)
def test_what_a_client_asked_for_comes_as_ever(scheduler: Any, params: SamplingParams | None) -> None:
    assert not is_for_the_observer(params and (params if params.logprobs is not None else None))
    scheduler.add_request(request("a", params and (with_logprobs(params) if params.stop else params)))
    assert delivered(scheduler, output("a", 1), output("a", 2, is_last=True)) == [[-0.1], [-0.2]]


@pytest.mark.parametrize("ids", ["a", ["a", "unknown"], iter(["a"]), None])
def test_what_was_withheld_of_an_aborted_answer_is_forgotten(scheduler: Any, ids: Any) -> None:
    scheduler.add_request(request("a"))
    delivered(scheduler, output("a", 1))
    scheduler.finish_requests(ids, None)
    assert not scheduler.lorikeet_withheld
    (passed_on,) = scheduler.aborted
    assert passed_on is None if ids is None else "a" in passed_on


def test_a_stream_gets_each_once() -> None:
    collected = Undelivered()
    assert collected
    assert collected[-1:].logprobs == []
    for token in (1, 2):
        collected.append_fast([token], [-token / 10], iter([0]), iter([None]))
    assert collected[-1:].logprobs == [-0.1, -0.2]
    assert collected[-1:].logprobs == []
    collected.append_fast([3], [-0.3], iter([0]), iter([None]))
    assert collected[:0].logprobs == [-0.3]
    assert collected.logprobs == [-0.1, -0.2, -0.3]
    assert list(collected[0]) == [1]
