"""The running generations of one request; its sequences are free when all of them have ended."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 10.0


class OpenGenerations:
    """Those that were asked for, and how many have begun and not ended.

    vLLM's streams leave the generations that they read to the garbage collector, which ends them some time later.
    """

    def __init__(self) -> None:
        self._asked: list[AsyncGenerator[Any, None]] = []
        self._num_open = 0
        self._ended = asyncio.Event()

    def add(self, generation: AsyncGenerator[Any, None]) -> None:
        """One that was asked for, begun or not."""
        self._asked.append(generation)

    @contextmanager
    def running(self) -> Iterator[None]:
        """One runs for the length of the block."""
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1
            self._ended.set()

    async def aclose(self) -> None:
        """End all that have not ended, and return when the engine has been told."""
        for generation in self._asked:
            try:
                await generation.aclose()
            except RuntimeError:  # a task reads it, which was cancelled and has not run since
                continue
            except Exception:  # boundary: the others are to end, too, and a dead engine works on none
                logger.warning("A generation failed", exc_info=True)
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                while self._num_open:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            logger.error("%d generations still run %g s after their requests ended", self._num_open, _CLOSE_TIMEOUT_S)
