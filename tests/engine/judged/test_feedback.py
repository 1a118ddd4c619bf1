"""Feedback on the real engine's answers, and the data set that comes of it."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from config.dataset import read_split
from config.home import Home
from quality.samples.store import QualityStore
from tests.judged_server import JudgedServer
from tests.live_server import lorikeet

pytestmark = [pytest.mark.engine, pytest.mark.slow]

CHAT: dict[str, Any] = {"model": "colours", "max_tokens": 12}


def asked(question: str, **more: Any) -> dict[str, Any]:
    return CHAT | {"messages": [{"role": "user", "content": question}]} | more


@pytest.fixture(scope="module")
def client(judged: JudgedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=judged.url, timeout=120) as client:
        yield client


def test_corrections_of_all_endpoints_become_rows(client: httpx.Client, live_home: Home) -> None:
    answers = {
        "Which colour has an apple?": client.post("/v1/chat/completions", json=asked("Which colour has an apple?")),
        "And a lemon from the south?": client.post(
            "/v1/responses", json={"model": "colours", "input": "And a lemon from the south?", "max_output_tokens": 16}
        ),
    }
    for answer in answers.values():
        said = {"response_id": answer.json()["id"], "correction": '{"colour": "green"}', "user": answer.json()["id"]}
        given = client.post("/v1/feedback", json=said)
        assert (given.status_code, given.json()["adapter"]) == (200, "colours@1"), given.text
    lorikeet(live_home, "data", "from-samples", "colours")
    rows = read_split(live_home.datasets / "colours-feedback", "train")
    assert {row.input: row.output for row in rows} == dict.fromkeys(answers, '{"colour": "green"}')
    assert {row.messages[0].content for row in rows} == {"Answer about colours in JSON."}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_found_by_its_request_id(client: httpx.Client, live_home: Home, stream: bool) -> None:
    request_id = f"question-{stream}"
    answer = client.post(
        "/v1/chat/completions",
        json=asked("Which colour has the sky?", stream=stream),
        headers={"x-request-id": request_id},
    )
    assert answer.headers["x-request-id"] == request_id
    given = client.post("/v1/feedback", json={"request_id": request_id, "correct": True})
    assert given.status_code == 200, given.text
    with QualityStore(live_home.quality) as store:
        assert store.feedback("colours")[-1].score == 1.0


def test_a_plain_completion_takes_feedback_and_makes_no_row(client: httpx.Client, live_home: Home) -> None:
    answer = client.post("/v1/completions", json={"model": "colours", "prompt": "One, two,", "max_tokens": 4}).json()
    assert client.post("/v1/feedback", json={"response_id": answer["id"], "score": 1}).status_code == 200
    with QualityStore(live_home.quality) as store:
        sample = store.sample(store.feedback("colours")[-1].sample_id)
    assert sample is not None
    assert sample.messages == ()
