"""A version is refused for good where the reason is its own; what passes is tried again."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.errors import IntegrityError, InvalidAdapterError, InvalidBaseError, StoreDiskError
from adapters.reference import Target
from adapters.store.store import AdapterStore
from serve.errors import (
    AdapterRefusedError,
    AdapterUnavailableError,
    EngineRequestError,
    NotFiniteError,
    NotReadyError,
    ParityError,
)
from serve.residency.refusals import Refusals
from tests.clock import FakeClock
from tests.serving import Serving, chat, make_serving

MEDICAL = Target("medical", 1)


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


PASSING = [
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    MemoryError(),
    TimeoutError(),
    ConnectionResetError(),
    StoreDiskError("the disk is full"),
    InvalidBaseError("the base folder holds no weights"),
    EngineRequestError("something failed", 500),
    RuntimeError("nobody has thought of this"),
    raised_from(InvalidAdapterError("the file cannot be read"), OSError(errno.EMFILE, "Too many open files")),
    AdapterRefusedError("vLLM cannot load 'medical@1': [Errno 24] Too many open files"),
    AdapterRefusedError("vLLM cannot load 'medical@1': CUDA out of memory. Tried to allocate 20 MiB"),
]
LASTING = [
    InvalidAdapterError("it is broken"),
    IntegrityError("a file differs"),
    raised_from(InvalidAdapterError("it is no JSON"), ValueError("Expecting value")),
    ParityError("it answers as the base"),
    NotFiniteError("medical@1"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_passes_is_a_503_and_tried_again_ever_later(error: Exception) -> None:
    clock = FakeClock(100.0)
    refusals = Refusals(clock)
    pauses_s = []
    for _ in range(9):
        refusal = refusals.add(MEDICAL, error)
        assert isinstance(refusal, AdapterUnavailableError)
        assert refusal.status == 503
        began_s = clock.now_s
        while is_held(refusals):
            clock.now_s += 0.5
        pauses_s.append(clock.now_s - began_s)
    assert pauses_s == [0, 1, 2, 4, 8, 16, 32, 60, 60]


def is_held(refusals: Refusals) -> bool:
    try:
        refusals.check(MEDICAL)
    except (AdapterUnavailableError, AdapterRefusedError):
        return True
    return False


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files", "/secret/path"), RuntimeError("/secret/path"), MemoryError()]
)
def test_no_path_of_the_server_is_told(error: Exception) -> None:
    refusal = Refusals().add(MEDICAL, error)
    assert "secret" not in str(refusal)
    assert "'medical@1' cannot be loaded now" in str(refusal)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_the_version_is_refuses_it_for_good(error: Exception) -> None:
    clock = FakeClock(100.0)
    refusals = Refusals(clock)
    refusals.add(MEDICAL, error)
    clock.now_s += 1e9
    with pytest.raises(AdapterRefusedError):
        refusals.check(MEDICAL)


def test_what_the_engine_says_no_to_is_refused_for_a_while() -> None:
    clock = FakeClock(100.0)
    refusals = Refusals(clock)
    refusals.add(MEDICAL, AdapterRefusedError("vLLM cannot load 'medical@1': something"))
    with pytest.raises(AdapterRefusedError, match="something"):
        refusals.check(MEDICAL)
    clock.now_s += 2.0
    refusals.check(MEDICAL)


def test_a_refusal_that_is_told_often_does_not_grow() -> None:
    refusals = Refusals()
    error = refusals.add(MEDICAL, ParityError("it answers as the base"))
    for _ in range(50):
        assert is_held(refusals)
    traceback, length = error.__traceback__, 0
    while traceback is not None:
        traceback, length = traceback.tb_next, length + 1
    assert length < 5


@pytest.fixture
def serving(store: AdapterStore, base_folder: Path) -> Serving:
    serving = make_serving(store, base_folder)
    serving.publish("medical")
    return serving


def failing_once(work: Callable[..., object], error: Exception) -> Callable[..., object]:
    left = [error]

    async def fails_once(*args: object) -> object:
        if left:
            raise left.pop()
        return await work(*args)  # type: ignore[misc] # a coroutine function

    return fails_once


@pytest.mark.anyio
@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("a worker's hiccup")])
@pytest.mark.parametrize("method", ["load", "logprobs"])
async def test_a_load_that_failed_in_passing_is_tried_again_and_left_nothing(
    serving: Serving, method: str, error: Exception
) -> None:
    setattr(serving.engine, method, failing_once(getattr(serving.engine, method), error))
    body = chat("medical")
    async with serving.client() as client:
        failed = await client.post("/v1/chat/completions", json=body)
        assert serving.engine.resident == set()
        answered = await client.post("/v1/chat/completions", json=body)
    assert (failed.status_code, failed.json()["error"]["code"], answered.status_code) == (503, "not_ready", 200)
    assert "retry-after" in failed.headers
    labels = {"adapter": "medical", "version": "1"}
    assert serving.metrics.registry.get_sample_value("lorikeet_adapter_load_failures_total", labels) == 1


@pytest.mark.anyio
async def test_a_dead_engine_says_nothing_of_the_version(serving: Serving) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(serving.engine, "load", failing_once(serving.engine.load, NotReadyError("dead")))
        with pytest.raises(NotReadyError, match="dead"):
            await serving.residency.lease(MEDICAL)
    await serving.residency.load(MEDICAL)
