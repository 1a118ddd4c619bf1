"""vLLM's message queue with our waiting: every message arrives, and nobody spins for it."""

import threading
from collections.abc import Iterator

import pytest

shm_broadcast = pytest.importorskip(
    "vllm.distributed.device_communicators.shm_broadcast", reason="vllm is not installed"
)

from serve.engine.waiting import sleep_instead_of_spinning  # noqa: E402 - after the check that vllm is there


@pytest.fixture
def stock_wait() -> Iterator[None]:
    before = shm_broadcast.SpinCondition.wait
    yield
    shm_broadcast.SpinCondition.wait = before


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
