"""Bounded retries with exponential backoff and jitter."""

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
    """Retry policy; the wait before attempt n is `first_wait_s * 2**n`, reduced by up to half at random."""

    num_attempts: int = 4
    first_wait_s: float = 0.25
    max_wait_s: float = 8.0
    sleep: Callable[[float], None] = time.sleep
    random: Random = field(default_factory=Random)

    def call(self, work: Callable[[], Result], *, what: str, is_final: Callable[[Exception], bool]) -> Result:
        """Run the work until it succeeds or the attempts are used up.

        Args:
            what: Names the work in the log.
            is_final: Whether a retry cannot help, e.g. with wrong credentials.

        Raises:
            Exception: The error of the last attempt, or the first final error.
        """
        for attempt in range(self.num_attempts - 1):
            try:
                return work()
            except Exception as error:
                if is_final(error):
                    raise
                wait_s = self._wait_s(attempt)
                logger.info("%s failed (%s); retrying in %.2f s", what, error, wait_s)
                self.sleep(wait_s)
        return work()

    def _wait_s(self, attempt: int) -> float:
        longest_s = min(self.first_wait_s * 2.0**attempt, self.max_wait_s)
        return longest_s * self.random.uniform(0.5, 1.0)
