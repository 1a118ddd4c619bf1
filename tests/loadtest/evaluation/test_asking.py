"""Answers are saved by version and question, against a scripted endpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from config.dataset import Message, read_dataset, read_split
from loadtest.evaluate import EvaluationError
from loadtest.evaluation.asking import Answers, ask_all, base_model, requests_of
from loadtest.evaluation.page import render_page
from loadtest.evaluation.report import make_report, save_report
from quality.metrics.answers import exact_match, length
from quality.metrics.item import Metric
from tests.datasets_on_disk import write_dataset

pytestmark = pytest.mark.anyio


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    """Four questions, whose right answers are `{"chapter": "skin"}`."""
    return write_dataset(tmp_path / "datasets" / "medical", num_test=4)


def completion(text: str, version: str = "medical@3", digest: str = "abc") -> httpx.Response:
    message = {"role": "assistant", "content": text}
    body = {
        "id": "c", "object": "chat.completion", "created": 1, "model": version,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15},
    }  # fmt: skip
    return httpx.Response(200, json=body, headers={"x-lorikeet-adapter": version, "x-lorikeet-digest": digest})


class Endpoint:
    """Answers with what `answer` says, and counts the questions."""

    def __init__(self, answer: Callable[[int], httpx.Response], created: int = 5) -> None:
        self._answer, self._created, self.asked = answer, created, 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            card = {"id": "medical", "object": "model", "created": self._created, "owned_by": "x", "parent": "base"}
            cards = [card, card | {"id": "tiny", "parent": None}]
            return httpx.Response(
                200, json={"object": "list", "data": cards} if request.url.path == "/v1/models" else card
            )
        self.asked += 1
        return self._answer(self.asked)


def client(endpoint: Endpoint) -> AsyncOpenAI:
    http_client: Any = httpx.AsyncClient(transport=httpx.MockTransport(endpoint))
    return AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http_client)


async def answers(folder: Path, endpoint: Endpoint, model: str = "medical") -> Answers:
    rows = read_split(folder, "test")
    async with client(endpoint) as open_client:
        return await ask_all(open_client, read_dataset(folder), rows, model, folder / "saved", concurrency=2)


async def test_a_second_evaluation_asks_one_question(dataset_folder: Path) -> None:
    first = await answers(dataset_folder, Endpoint(lambda n: completion(f"answer {n}")))
    again = Endpoint(lambda n: completion("another"))
    assert await answers(dataset_folder, again) == first
    assert again.asked == 1  # which tells the version
    assert (first.served_by, len(first.answers)) == ("medical@3", 4)


async def test_an_interrupted_evaluation_goes_on(dataset_folder: Path) -> None:
    failing = Endpoint(
        lambda n: completion("fine") if n < 3 else httpx.Response(503, json={"error": {"message": "busy"}})
    )
    with pytest.raises(EvaluationError, match=r"'medical' on 'medical': .*busy"):
        await answers(dataset_folder, failing)
    (saved,) = (dataset_folder / "saved").iterdir()
    saved.write_bytes(saved.read_bytes() + b'{"id": "half')  # as a killed process leaves it
    again = Endpoint(lambda n: completion("fine"))
    assert len((await answers(dataset_folder, again)).answers) == 4
    assert again.asked == 3  # the first for the version, and the two that were missing
    third = Endpoint(lambda n: completion("another"))
    await answers(dataset_folder, third)
    assert third.asked == 1  # the half line took none of the whole ones with it


def test_a_rows_own_system_prompt_is_sent(dataset_folder: Path) -> None:
    manifest, rows = read_dataset(dataset_folder), read_split(dataset_folder, "test")
    own = (Message(role="system", content="My own."), *rows[1].messages[1:])
    rows[1] = rows[1].model_copy(update={"messages": own})
    requests = requests_of(manifest, rows[:2], "medical@3", ("system",), few_shot=False)
    assert [[turn["role"] for turn in request["messages"]] for request in requests] == [["user"], ["system", "user"]]


async def test_another_digest_is_asked_afresh(dataset_folder: Path) -> None:
    await answers(dataset_folder, Endpoint(lambda n: completion("old")))
    new = Endpoint(lambda n: completion("new", digest="def"))
    assert {answer.text for answer in (await answers(dataset_folder, new)).answers} == {"new"}


async def test_a_base_prepared_again_is_asked_afresh(dataset_folder: Path) -> None:
    await answers(dataset_folder, Endpoint(lambda n: completion("old", "tiny", "base")), "tiny")
    new = Endpoint(lambda n: completion("new", "tiny", "base"), created=6)
    assert {answer.text for answer in (await answers(dataset_folder, new, "tiny")).answers} == {"new"}


async def test_answers_of_two_versions_are_refused(dataset_folder: Path) -> None:
    split = Endpoint(lambda n: completion("fine", f"medical@{1 + n % 2}", str(n % 2)))
    with pytest.raises(EvaluationError, match="Name one version"):
        await answers(dataset_folder, split)


async def test_the_base_is_the_model_without_parent(dataset_folder: Path) -> None:
    async with client(Endpoint(lambda n: completion(""))) as open_client:
        assert await base_model(open_client) == "tiny"


async def test_a_report_pairs_the_models_by_question(dataset_folder: Path, tmp_path: Path) -> None:
    right = '{"chapter": "skin"}'
    old = await answers(dataset_folder, Endpoint(lambda n: completion("<b>wrong</b>")))
    new = await answers(dataset_folder, Endpoint(lambda n: completion(right, "medical@4", "new")))
    rows, metrics = read_split(dataset_folder, "test"), [exact_match(), length()]
    own: list[Metric] = list(metrics)
    report = make_report(
        read_dataset(dataset_folder), rows, [old, new], own, few_shot=False, started_at="2026-11-29T00:00:00+00:00"
    )
    difference = report.models[1].metrics[0].difference
    assert difference is not None
    assert (difference.value, difference.n) == (1, 4)
    assert report.models[0].metrics[0].difference is None
    assert [item.second for item in report.models[1].right_alone] == [right] * 4
    assert report.models[1].wrong_alone == ()
    assert json.loads(save_report(report, tmp_path / "reports").read_text())["num_items"] == 4
    page = render_page(report)
    assert "&lt;b&gt;wrong" in page
    assert "<b>wrong" not in page


async def test_a_data_set_without_questions_is_named(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "datasets" / "medical", num_test=0)
    with pytest.raises(EvaluationError, match="'medical' has no held-out questions"):
        await answers(folder, Endpoint(lambda n: completion("")))
