"""The answers of other replicas reach the quality monitor of one."""

from typing import Any, cast

import pytest

from serve.cluster.forwarding import AnswerForwarder, observe
from serve.monitor.monitor import Monitor
from serve.records import AnsweredRequest, RequestContext
from tests.fake_engine import FakeEngine
from tests.generations import generation

pytestmark = pytest.mark.anyio


class Primary:
    """The replica that has the monitor, or not."""

    def __init__(self, *answers):
        self.answers, self.taken = list(answers), []

    async def send(self, records):
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, Exception):
            raise answer
        self.taken += records if answer else []
        return answer


class Meter:
    def monitor_paused(self, *, is_paused):
        """Not asked."""


def request(name):
    return AnsweredRequest(RequestContext("acme", name), "chat/completions", "medical@1", "ok", 200, None, 1.0)


def names(records):
    return [record.context.request_id for record in records]


async def test_records_are_sent_in_their_order():
    primary, own = Primary(), generation()
    forwarder = AnswerForwarder(primary.send)
    forwarder.generation_finished(own)
    forwarder.request_finished(request("a"))
    await forwarder.flush()
    await forwarder.flush()
    assert primary.taken[0] is own
    assert names(primary.taken[1:]) == ["a"]


async def test_questions_of_a_monitor_are_not_evidence():
    primary = Primary()
    forwarder = AnswerForwarder(primary.send)
    forwarder.generation_finished(generation(source="monitor"))
    await forwarder.flush()
    assert primary.taken == []


@pytest.mark.parametrize("answer", [False, ConnectionError("away")])
async def test_what_nobody_takes_is_sent_again(answer, caplog):
    primary = Primary(answer, answer)
    forwarder = AnswerForwarder(primary.send)
    for name in ("a", "b"):
        forwarder.request_finished(request(name))
        await forwarder.flush()
    await forwarder.flush()
    assert names(primary.taken) == ["a", "b"]
    assert [record.levelname for record in caplog.records if "quality monitor" in record.message].count("WARNING") == 1


async def test_of_too_many_the_newest_are_kept():
    primary = Primary(False)
    forwarder = AnswerForwarder(primary.send, max_kept=2)
    for name in ("a", "b", "c"):
        forwarder.request_finished(request(name))
    await forwarder.flush()
    await forwarder.flush()
    assert names(primary.taken) == ["b", "c"]


class Watching:
    def __init__(self):
        self.seen = []

    def generation_started(self, lora_name, source):
        raise AssertionError("nobody forwards the start")

    def generation_finished(self, record):
        self.seen.append(record)

    def request_finished(self, record):
        self.seen.append(record)


async def test_the_monitor_is_told_as_of_its_own():
    monitor, watching = Monitor(FakeEngine(), cast(Any, Meter()), 0.0), Watching()
    monitor.observers.of_generations.append(watching)
    monitor.observers.of_requests.append(watching)
    records = [generation(), request("a")]
    observe(monitor, records)
    assert watching.seen == records
