"""What `lorikeet bench jobs` sends, and that a batch that does not run ends it."""

import json

import httpx
import pytest

from loadtest.bench.jobs_batches import BatchClient, batch_lines
from loadtest.bench.jobs_training import NUM_ROWS, JobClient, training_rows
from loadtest.bench.jobs_upload import wait_until_steady
from loadtest.errors import TargetError

URL = "http://127.0.0.1:1/v1"


def answering(**batch: object) -> BatchClient:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"id": "batch_1", "errors": None} | batch)

    return BatchClient(URL, httpx.MockTransport(answer))


def test_lines_are_requests_that_a_batch_may_have() -> None:
    lines = [json.loads(line) for line in batch_lines(URL, "medical", 1, 20).splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines) == 20
    assert len({line["body"]["messages"][0]["content"] for line in lines}) == 20
    assert {line["url"] for line in lines} == {"/v1/chat/completions"}
    assert all(line["body"]["model"] == "medical" and "stream" not in line["body"] for line in lines)


def test_other_seeds_give_other_prompts() -> None:
    first, second = (set(batch_lines(URL, "medical", seed, 20).splitlines()) for seed in (1, 2))
    assert not first & second


def test_a_batch_is_waited_for() -> None:
    client = answering(status="completed")
    assert client.wait(client.submit(b""), lambda batch: batch["status"] == "completed")["id"] == "batch_1"


def test_a_failed_batch_ends_the_benchmark() -> None:
    with pytest.raises(TargetError, match="batch_1 is failed"):
        answering(status="failed").wait("/batches/batch_1", lambda batch: batch["status"] == "completed")


def test_a_refusal_ends_the_benchmark() -> None:
    refusing = BatchClient(URL, httpx.MockTransport(lambda request: httpx.Response(404, text="no such route")))
    with pytest.raises(TargetError, match="404: no such route"):
        refusing.submit(b"")


def test_rows_of_the_job_are_examples_that_differ() -> None:
    rows = training_rows().splitlines()
    assert len(set(rows)) == NUM_ROWS
    assert [turn["role"] for turn in json.loads(rows[0])["messages"]] == ["user", "assistant"]


def test_a_failed_job_ends_the_benchmark() -> None:
    job = {"id": "ftjob-1", "status": "failed", "error": {"message": "no"}}
    client = JobClient(URL, httpx.MockTransport(lambda request: httpx.Response(200, json=job)))
    with pytest.raises(TargetError, match="ftjob-1 is failed"):
        client.wait("/fine_tuning/jobs/ftjob-1", lambda job: False)


def test_the_last_step_is_read_from_the_events() -> None:
    events = [{"type": "metrics", "data": {"step": step}} for step in (2, 1)] + [{"type": "message", "data": None}]
    client = JobClient(URL, httpx.MockTransport(lambda request: httpx.Response(200, json={"data": events})))
    assert client.last_step("/fine_tuning/jobs/ftjob-1") == 2


def test_memory_is_measured_once_it_is_steady() -> None:
    sizes = iter([100, 130, 170, *[171] * 9])
    waits: list[float] = []
    wait_until_steady(lambda: next(sizes) * 1_000_000, waits.append)
    assert len(list(sizes)) == 4
    assert sum(waits) == 7


def test_memory_that_never_rests_is_not_waited_for() -> None:
    waits: list[float] = []
    sizes = iter(range(0, 10**12, 10**7))
    wait_until_steady(lambda: next(sizes), waits.append)
    assert sum(waits) == 60
