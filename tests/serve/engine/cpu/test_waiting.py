"""vLLM's message queue with our waiting: every message arrives, and nobody spins for it."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

shm_broadcast = pytest.importorskip(
    "vllm.distributed.device_communicators.shm_broadcast", reason="vllm is not installed"
)

from serve.engine.cpu.waiting import sample_at_once, sleep_instead_of_spinning  # noqa: E402 - after the check that vllm is there


@pytest.fixture
def stock_wait() -> Iterator[None]:
    before = shm_broadcast.SpinCondition.wait
    yield
    shm_broadcast.SpinCondition.wait = before


@pytest.mark.slow
@pytest.mark.usefixtures("stock_wait")
def test_messages_arrive_without_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin() -> None:
        raise AssertionError("it spins")

    monkeypatch.setattr(shm_broadcast, "sched_yield", spin)
    sleep_instead_of_spinning()
    sleep_instead_of_spinning()  # vLLM loads a plugin more than once
    writer = shm_broadcast.MessageQueue(1, 1)
    reader = shm_broadcast.MessageQueue.create_from_handle(writer.export_handle(), 0)
    ready = threading.Thread(target=writer.wait_until_ready)
    ready.start()
    reader.wait_until_ready()
    ready.join()
    may_send = threading.Semaphore(0)

    def send() -> None:
        for number in range(200):
            may_send.acquire()
            writer.enqueue(number)

    sender = threading.Thread(target=send)
    sender.start()
    for number in range(200):
        may_send.release()  # each one comes while the reader is about to wait, or waits
        assert reader.dequeue(timeout=30) == number
    sender.join()


class Worker:
    """What of vLLM's `CPUWorker` a step needs."""

    def __init__(self, output: object = None, **config: bool) -> None:
        self._output = output
        self.vllm_config = SimpleNamespace(
            scheduler_config=SimpleNamespace(async_scheduling=config.get("is_async", False)),
            parallel_config=SimpleNamespace(pipeline_parallel_size=2 if config.get("has_stages") else 1),
        )

    def execute_model(self, scheduler_output: object) -> object:
        return self._output

    def sample_tokens(self, grammar: object) -> tuple[str, object]:
        return "tokens", grammar


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> type[Worker]:
    monkeypatch.setattr(Worker, "execute_model", Worker.execute_model)  # put back afterwards
    monkeypatch.setattr("vllm.v1.worker.cpu_worker.CPUWorker", Worker)
    sample_at_once()
    sample_at_once()  # vLLM loads a plugin more than once
    return Worker


@pytest.mark.parametrize(
    ("config", "has_grammar", "answer"),
    [
        ({}, False, ("tokens", None)),
        ({}, True, None),  # vLLM asks again, with the grammar's mask
        ({"is_async": True}, False, None),
        ({"has_stages": True}, False, None),
        ({"output": "of a step without tokens"}, False, "of a step without tokens"),
    ],
)
def test_a_step_without_a_grammar_is_asked_for_once(
    worker: type[Worker], config: dict[str, Any], has_grammar: bool, answer: object
) -> None:
    step = SimpleNamespace(has_structured_output_requests=has_grammar)
    assert worker(**config).execute_model(step) == answer
