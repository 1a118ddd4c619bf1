"""Background loops: a failure is logged and counted, and the loop restarts with exponential backoff."""

import asyncio
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

Loop = Callable[[], Coroutine[Any, Any, None]]
"""Runs until it is cancelled."""

_MAX_LINES_PER_MINUTE = 10
_HEALTHY_AFTER_S = 60.0


@dataclass
class Backoff:
    """Pauses that double, seconds: `first_s`, and at most `longest_s`."""

    first_s: float = 1.0
    longest_s: float = 60.0
    num_failures: int = 0

    def next_s(self) -> float:
        self.num_failures += 1
        return min(self.longest_s, self.first_s * 2.0 ** min(self.num_failures - 1, 60))

    def reset(self) -> None:
        self.num_failures = 0


@dataclass
class _Minute:
    """What a task has had logged since then."""

    began_s: float
    num: int = 0
    num_left_out: int = 0


class Failures:
    """Failures of background tasks: each is counted and logged, with a rate limit on log lines.

    Of one task, ten lines and one traceback are logged a minute.

    Args:
        count: Told the task's name, which is one of few, and how many more failures it has: none when it begins.
    """

    def __init__(
        self, count: Callable[[str, int], None] = lambda task, num: None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._count = count
        self._clock = clock
        self._minutes: dict[str, _Minute] = {}

    def begin(self, task: str) -> None:
        """Show a task that has not failed yet."""
        self._count(task, 0)

    def note(self, task: str, error: BaseException, message: str = "") -> None:
        """Count a failure and log it; may be called in any thread.

        Args:
            message: What failed; by default the task.
        """
        self._count(task, 1)
        minute = self._minutes.setdefault(task, _Minute(self._clock()))
        if self._clock() - minute.began_s >= 60.0:
            minute = self._minutes[task] = _Minute(self._clock(), num_left_out=minute.num_left_out)
        minute.num += 1
        if minute.num > _MAX_LINES_PER_MINUTE:
            minute.num_left_out += 1
            return
        more = f" ({minute.num_left_out} similar lines suppressed)" if minute.num_left_out else ""
        minute.num_left_out = 0
        line = f"{message or f'{task} failed'}{more}: {error!r}"
        logger.error("%s", line, exc_info=error if minute.num == 1 else None)


def task_of(work: Any) -> str:
    """The name of a background task, as metrics have it: that of the class whose method it is (`store_watcher`)."""
    owner = getattr(work, "__self__", None)
    name = work.__qualname__.partition(".")[0] if owner is None else type(owner).__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


async def keep_running(
    loop: Loop,
    failures: Failures,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run a loop until this task is cancelled; where it ends by itself, with an error or without, start it again."""
    backoff = Backoff()
    failures.begin(task_of(loop))
    while True:
        start_s = clock()
        try:
            await loop()
            error: BaseException = RuntimeError("The task ended unexpectedly.")
        except BaseException as failure:  # boundary of every loop
            if is_told_to_end(failure):
                raise
            error = failure
        if clock() - start_s > _HEALTHY_AFTER_S:
            backoff.reset()
        failures.note(task_of(loop), error)
        await sleep(backoff.next_s())


def is_told_to_end(error: BaseException) -> bool:
    """Whether an error is a requested cancellation.

    Not one is a cancellation of something that this task has only waited for, or a panic in a library written in Rust.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(error, (GeneratorExit, KeyboardInterrupt, SystemExit))


async def watch_thread(work: Callable[[], None], stop: Callable[[], None], name: str) -> None:
    """Run `work` in a thread of its own until this task is cancelled, then call `stop` and wait for its end.

    Args:
        stop: Tells it to end; may block, as it is called in another thread.

    Raises:
        Exception: What ended the thread before.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def tell(error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as failure:  # the thread's boundary
            error = failure
        finally:
            loop.call_soon_threadsafe(tell, error)

    thread = threading.Thread(target=run, name=name, daemon=True)

    def end() -> None:
        if thread.is_alive():
            stop()
        thread.join()

    thread.start()
    try:
        error = await asyncio.shield(ended)
    finally:
        await asyncio.to_thread(end)
    raise error or RuntimeError(f"The thread {name!r} ended unexpectedly.")
