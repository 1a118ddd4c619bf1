"""Live evaluation, against a scripted endpoint."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from loadtest.evaluate import EvaluationError, LiveAnswer, LiveScore, evaluate_live
from tests.datasets_on_disk import write_dataset

pytestmark = pytest.mark.anyio


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    """Four questions, whose right answers are `{"chapter": "skin"}`."""
    return write_dataset(tmp_path / "medical", num_test=4)


def event(**fields: object) -> str:
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "medical@3"}
    return f"data: {json.dumps(base | fields)}\n\n"


def streamed(text: str) -> httpx.Response:
    delta = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": "stop"}])
    usage = event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15})
    content = delta + usage + "data: [DONE]\n\n"
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=content)


def card(defaults: dict[str, object] | None) -> httpx.Response:
    fields = {"id": "medical", "object": "model", "created": 0, "owned_by": "lorikeet", "defaults": defaults}
    return httpx.Response(200, json=fields)


async def score(
    folder: Path,
    answer: Callable[[httpx.Request], httpx.Response],
    *,
    few_shot: bool = False,
    limit: int | None = None,
    shown: httpx.Response | None = None,
) -> LiveScore:
    """Args:
    shown: What the server says of the model; by default that it knows no such route.
    """

    def serve(request: httpx.Request) -> httpx.Response:
        return answer(request) if request.method == "POST" else shown or httpx.Response(404, json={"error": {}})

    http_client: Any = httpx.AsyncClient(transport=httpx.MockTransport(serve))
    async with AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http_client) as client:
        return await evaluate_live(client, folder, "medical", few_shot=few_shot, limit=limit, concurrency=2)


async def test_answers_are_scored_for_exactness_and_format(dataset_folder: Path) -> None:
    texts = iter(['{"chapter": "skin"}', '{"chapter":"skin"}', '{"chapter": "eyes"}', "skin, I think"])
    result = await score(dataset_folder, lambda _: streamed(next(texts)))
    assert (result.accuracy.value, result.valid_format.value, result.accuracy.n) == (0.5, 0.75, 4)
    assert result.accuracy.ci_low < 0.5 < result.accuracy.ci_high
    assert result.served_by == "medical@3"
    assert result.tokens_per_s == pytest.approx(24 / result.seconds)
    assert 0 < result.ttft_p50_s <= result.seconds


async def test_every_question_is_asked_once_as_training_put_it(dataset_folder: Path) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return streamed("{}")

    await score(dataset_folder, answer)
    assert sorted(body["messages"][-1]["content"] for body in asked) == [f"term {n}" for n in range(4)]
    assert {len(body["messages"]) for body in asked} == {2}
    assert {(body["temperature"], body["max_tokens"], body["stop"][0]) for body in asked} == {(0.0, 24, "}")}


async def test_few_shot_puts_the_same_examples_before_each_question(dataset_folder: Path) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content)["messages"])
        return streamed("{}")

    await score(dataset_folder, answer, few_shot=True, limit=2)
    assert len(asked) == 2
    assert [turn["role"] for turn in asked[0]] == ["system", *["user", "assistant"] * 2, "user"]
    assert asked[0][:-1] == asked[1][:-1]


@pytest.mark.parametrize(
    ("defaults", "left"),
    [
        ({"system": "Chapter.", "temperature": 0.0, "max_tokens": 24, "stop": ["}"]}, set()),
        ({"temperature": 0.0}, {"max_tokens", "stop", "include_stop_str_in_output"}),
        (None, {"temperature", "max_tokens", "stop", "include_stop_str_in_output"}),
    ],
)
async def test_what_a_version_has_defaults_for_is_left_to_it(
    dataset_folder: Path, defaults: dict[str, object] | None, left: set[str]
) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return streamed("{}")

    await score(dataset_folder, answer, shown=card(defaults), limit=1)
    (body,) = asked
    assert set(body) == {"model", "messages", "stream", "stream_options"} | left
    roles = [turn["role"] for turn in body["messages"]]
    assert roles == (["user"] if defaults and "system" in defaults else ["system", "user"])


async def test_few_shot_examples_are_sent_without_a_system_prompt_that_the_version_has(dataset_folder: Path) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content)["messages"])
        return streamed("{}")

    await score(dataset_folder, answer, few_shot=True, limit=1, shown=card({"system": "Chapter."}))
    assert [turn["role"] for turn in asked[0]] == [*["user", "assistant"] * 2, "user"]


async def test_a_failed_request_scores_nothing(dataset_folder: Path) -> None:
    body = {"error": {"message": "The model 'medical' does not exist.", "code": "model_not_found"}}
    with pytest.raises(EvaluationError, match=r"'medical' on 'medical': .*does not exist"):
        await score(dataset_folder, lambda _: httpx.Response(404, json=body))


async def test_no_more_is_asked_once_it_is_enough(dataset_folder: Path) -> None:
    seen: list[list[str]] = []

    def is_enough(answers: Sequence[LiveAnswer]) -> bool:
        seen.append([answer.input for answer in answers])
        return len(answers) >= 2

    http_client: Any = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: streamed("{}")))
    async with AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http_client) as client:
        result = await evaluate_live(client, dataset_folder, "medical", concurrency=1, is_enough=is_enough)
    assert seen == [["term 0"], ["term 0", "term 1"]]
    assert result.accuracy.n == 2
