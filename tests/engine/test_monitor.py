"""What the quality monitor sees of the real engine, and what clients see of the monitor: nothing."""

import re
import time
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.live_server import BASE_NAME, LiveServer, chat

pytestmark = [pytest.mark.engine, pytest.mark.slow]

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", chat("colours")),
    ("chat/completions", chat("colours", n=2, temperature=0.7, seed=3)),
    ("completions", {"model": BASE_NAME, "prompt": "One, two,", "max_tokens": 4}),
    ("responses", {"model": BASE_NAME, "input": "Hello.", "max_output_tokens": 4}),
]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("endpoint", "body"), REQUESTS)
def test_no_log_probability_is_in_an_answer_that_asked_for_none(
    live: LiveServer, endpoint: str, body: dict[str, Any], is_stream: bool
) -> None:
    response = httpx.post(f"{live.url}/v1/{endpoint}", json=body | {"stream": is_stream}, timeout=300)
    assert response.status_code == 200, response.text
    assert set(re.findall(r'"[a-z_]*logprobs":(\[\]|[^,}]*)', response.text)) <= {"null", "[]"}


def test_one_that_asked_for_them_gets_its_own(live: LiveServer) -> None:
    body = chat("colours", logprobs=True, top_logprobs=2)
    answer = httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=300).json()
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert len(tokens) == answer["usage"]["completion_tokens"]
    assert all(token["token"] and len(token["top_logprobs"]) == 2 for token in tokens)


def test_log_probabilities_of_answers_that_asked_for_none_reach_the_metrics(live: LiveServer) -> None:
    before = num_logprobs(live)
    assert ask(live) == 200
    assert num_logprobs_after(live, before) == before + 1


def test_an_answer_of_a_pause_is_not_seen_and_one_after_it_is(live: LiveServer) -> None:
    before = num_logprobs(live)
    try:
        assert tell_monitor(live, "pause") == "paused"
        assert ask(live) == 200
    finally:
        assert tell_monitor(live, "resume") == "works"
    assert ask(live) == 200
    assert num_logprobs_after(live, before) == before + 1


def ask(live: LiveServer) -> int:
    return httpx.post(f"{live.url}/v1/chat/completions", json=chat("colours"), timeout=300).status_code


def tell_monitor(live: LiveServer, action: str) -> str:
    return str(httpx.post(f"{live.url}/admin/quality/{action}", timeout=60).json()["monitor"])


def num_logprobs_after(live: LiveServer, before: float) -> float:
    """Once it is no longer what it was: a thread looks at answers, and does so soon."""
    deadline = time.monotonic() + 30
    while num_logprobs(live) == before and time.monotonic() < deadline:
        time.sleep(0.2)
    return num_logprobs(live)


def num_logprobs(live: LiveServer) -> float:
    """Answers of `colours` whose mean log-probability was seen."""
    families = text_string_to_metric_families(httpx.get(f"{live.url}/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "lorikeet_answer_mean_logprob_count" and sample.labels["adapter"] == "colours"
    )
