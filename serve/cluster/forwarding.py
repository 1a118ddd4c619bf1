"""What other replicas answer reaches the one that runs the quality monitor: samples, drift, and a canary's trial."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from serve.monitor.monitor import Monitor
from serve.records import AnsweredRequest, GenerationRecord, Source

logger = logging.getLogger(__name__)

_SEND_EVERY_S = 0.5
_SEND_TIMEOUT_S = 5.0
_MAX_KEPT = 2000

Record = GenerationRecord | AnsweredRequest
Send = Callable[[Sequence[Record]], Awaitable[bool]]
"""To the replica with the monitor; False where none has taken them."""


class AnswerForwarder:
    """An observer that sends records on, twice a second. While nobody takes them, the newest are kept.

    Args:
        send: In their order.
    """

    def __init__(self, send: Send, max_kept: int = _MAX_KEPT) -> None:
        self._send = send
        self._kept: deque[Record] = deque(maxlen=max_kept)
        self._num_lost = 0
        self._is_away = False

    def generation_started(self, lora_name: str | None, source: Source) -> None:
        """The monitor waits for the end."""

    def generation_finished(self, record: GenerationRecord) -> None:
        if record.source != "monitor":
            self._keep(record)

    def request_finished(self, record: AnsweredRequest) -> None:
        self._keep(record)

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self.flush()
            await asyncio.sleep(_SEND_EVERY_S)

    async def flush(self) -> None:
        """Send what there is."""
        if not self._kept:
            return
        records = list(self._kept)
        self._kept.clear()
        try:
            is_taken = await asyncio.wait_for(self._send(records), _SEND_TIMEOUT_S)
        except Exception as error:  # boundary: the next time may do better
            logger.debug("The quality monitor's replica was not reached: %r", error)
            is_taken = False
        if not is_taken:
            self._put_back(records)
        self._note(is_away=not is_taken)

    def _keep(self, record: Record) -> None:
        self._num_lost += len(self._kept) == self._kept.maxlen
        self._kept.append(record)

    def _put_back(self, records: Sequence[Record]) -> None:
        newer = list(self._kept)
        self._kept.clear()
        for record in (*records, *newer):
            self._keep(record)

    def _note(self, *, is_away: bool) -> None:
        if is_away and not self._is_away:
            logger.warning(
                "No replica takes this one's answers for the quality monitor; the last %d are kept", _MAX_KEPT
            )
        elif self._is_away and not is_away:
            logger.info("The quality monitor gets this replica's answers again; %d were lost", self._num_lost)
            self._num_lost = 0
        self._is_away = is_away


def observe(monitor: Monitor, records: Sequence[Record]) -> None:
    """Tell the monitor what another replica answered."""
    for record in records:
        if isinstance(record, GenerationRecord):
            monitor.generation_finished(record)
        else:
            monitor.request_finished(record)
