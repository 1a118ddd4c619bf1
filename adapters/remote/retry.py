"""Trying again what a network may have broken: bounded, with waits that grow and differ between clients."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Retry:
    """How often and how long; the wait before attempt n is `first_wait_s * 2**n`, less a random part up to half."""

    num_attempts: int = 4
    first_wait_s: float = 0.25
    max_wait_s: float = 8.0
    sleep: Callable[[float], None] = time.sleep
    random: Random = field(default_factory=Random)

    def call(self, work: Callable[[], Result], *, what: str, is_final: Callable[[Exception], bool]) -> Result:
        """Do the work until it succeeds.

        Args:
            what: Names the work in the log.
            is_final: Whether an error would only come again, e.g. for wrong credentials.

        Raises:
            Exception: What the last attempt raised, or the first final error.
        """
        for attempt in range(self.num_attempts - 1):
            try:
                return work()
            except Exception as error:
                if is_final(error):
                    raise
                wait_s = self._wait_s(attempt)
                logger.info("%s failed (%s); trying again in %.2f s", what, error, wait_s)
                self.sleep(wait_s)
        return work()

    def _wait_s(self, attempt: int) -> float:
        longest_s = min(self.first_wait_s * 2.0**attempt, self.max_wait_s)
        return longest_s * self.random.uniform(0.5, 1.0)
