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
    assert httpx.post(f"{live.url}/v1/chat/completions", json=chat("colours"), timeout=300).status_code == 200
    deadline = time.monotonic() + 30
    while num_logprobs(live) == before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert num_logprobs(live) == before + 1


def num_logprobs(live: LiveServer) -> float:
    """Answers of `colours` whose mean log-probability was seen."""
    families = text_string_to_metric_families(httpx.get(f"{live.url}/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "lorikeet_answer_mean_logprob_count" and sample.labels["adapter"] == "colours"
    )
