"""A batch on the real engine: every line is answered, and a client beside it waits for none of them."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from openai.types import Batch

from tests.live_server import ANSWERS, LiveServer, chat

pytestmark = pytest.mark.engine

NUM_LINES = 24
NUM_TOKENS = 64


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def submit(client: OpenAI, bodies: list[dict[str, Any]]) -> Batch:
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for number, body in enumerate(bodies)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")


def ended(client: OpenAI, batch: Batch) -> Batch:
    deadline = time.monotonic() + 240
    while batch.status not in ("completed", "failed", "expired", "cancelled") and time.monotonic() < deadline:
        time.sleep(0.5)
        batch = client.batches.retrieve(batch.id)
    return batch


def test_adapters_and_the_base_answer_a_batch(client: OpenAI) -> None:
    batch = ended(client, submit(client, [chat("colours"), chat("shapes"), chat("colours", max_tokens=10**6)]))
    assert batch.status == "completed", batch.errors
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    rows = [json.loads(row) for row in client.files.content(batch.output_file_id).text.splitlines()]
    answers = {row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in rows}
    assert answers == {"0": ANSWERS["colours"], "1": ANSWERS["shapes"]}
    (refused,) = client.files.content(batch.error_file_id).text.splitlines()
    assert json.loads(refused)["response"]["status_code"] == 400


def test_a_client_is_answered_while_a_batch_runs(client: OpenAI) -> None:
    long = chat("colours", max_tokens=NUM_TOKENS, stop=None, ignore_eos=True)
    batch = submit(client, [long] * NUM_LINES)
    while client.batches.retrieve(batch.id).status == "validating":
        time.sleep(0.1)
    given = chat("colours")
    extra = {"include_stop_str_in_output": given.pop("include_stop_str_in_output")}
    answer: Any = client.chat.completions.create(**given, extra_body=extra)
    assert answer.choices[0].message.content == ANSWERS["colours"]
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts is not None
    assert counts.completed < NUM_LINES
    assert ended(client, batch).status == "completed"
