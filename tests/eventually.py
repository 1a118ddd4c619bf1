"""Waits for what background tasks do, and fails where it does not come."""

import asyncio
from collections.abc import Callable


async def eventually(is_true: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Let other tasks run until `is_true` is.

    Raises:
        TimeoutError: It has not become true.
    """
    async with asyncio.timeout(timeout_s):
        while not is_true():
            await asyncio.sleep(0.01)
