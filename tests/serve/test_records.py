import logging

import pytest

from serve.records import AnsweredRequest, GenerationRecord, Observers, RequestContext, Source
from tests.generations import generation


class Watching:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def generation_started(self, lora_name: str | None, source: Source) -> None:
        self.seen.append(lora_name)

    def generation_finished(self, record: GenerationRecord) -> None:
        self.seen.append(record.outcome)

    def request_finished(self, record: AnsweredRequest) -> None:
        self.seen.append(record.status)


class Failing(Watching):
    def generation_started(self, lora_name: str | None, source: Source) -> None:
        raise RuntimeError("broken")

    def generation_finished(self, record: GenerationRecord) -> None:
        raise RuntimeError("broken")

    def request_finished(self, record: AnsweredRequest) -> None:
        raise RuntimeError("broken")


def test_an_observer_that_fails_is_logged_and_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    observers, watching = Observers(), Watching()
    observers.of_generations += [Failing(), watching]
    observers.of_requests += [Failing(), watching]
    with caplog.at_level(logging.ERROR):
        observers.generation_started("medical@3", "client")
        observers.generation_finished(generation())
        observers.request_finished(
            AnsweredRequest(RequestContext("acme", "r-1"), "completions", None, "ok", 200, None, 1.0)
        )
    assert watching.seen == ["medical@3", "ok", 200]
    assert len(caplog.records) == 3
