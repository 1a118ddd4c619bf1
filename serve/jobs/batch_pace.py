"""Limits the sequences of batches: free capacity only, and at most a quarter while clients are active."""

import asyncio
from collections import Counter
from collections.abc import Callable

from serve.access.admission import ClientLoad

QUIET_AFTER_S = 5.0
"""Seconds without a client's request after which batches may use more sequences."""

_LOOK_EVERY_S = 0.05


def max_batch_sequences(load: ClientLoad) -> int:
    """Maximum number of sequences that batches may have in the engine; running lines are not stopped.

    While a client's request is queued, no line starts. While clients are active, batches get a quarter of the
    sequences; after `QUIET_AFTER_S` that doubles each second. An eighth always stays free for clients.
    """
    if load.num_waiting:
        return 0
    beside = max(1, load.max_sequences // 4)
    calm_s = min(load.quiet_s - QUIET_AFTER_S, 30.0)
    most = beside if calm_s < 0 else int(beside * 2**calm_s)
    return max(0, min(most, load.max_sequences - load.max_sequences // 8 - load.num_sequences))


class Pacer:
    """Grants sequences to lines of batches, evenly between tenants.

    Args:
        load: Current load by clients.
    """

    def __init__(self, load: Callable[[], ClientLoad]) -> None:
        self._load = load
        self._running: Counter[str] = Counter()
        self._waiting: dict[asyncio.Future[None], tuple[str, int]] = {}

    @property
    def num_running(self) -> int:
        return self._running.total()

    async def take(self, owner: str, num_sequences: int) -> None:
        """Wait for this number of sequences, and take them."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = owner, num_sequences
        self._start_ready()
        try:
            while not turn.done():  # the load changes without notification
                await asyncio.wait((turn,), timeout=_LOOK_EVERY_S)
                self._start_ready()
        except asyncio.CancelledError:
            if self._waiting.pop(turn, None) is None:
                self.give(owner, num_sequences)
            raise

    def give(self, owner: str, num_sequences: int) -> None:
        """Return sequences."""
        self._running[owner] -= num_sequences
        self._running += Counter()  # drops tenants at zero
        self._start_ready()

    def _start_ready(self) -> None:
        """Start lines while there is room. A line that needs more than the limit runs alone."""
        most = max_batch_sequences(self._load()) if self._waiting else 0
        while self._waiting and self.num_running < most:
            turn = min(self._waiting, key=lambda turn: self._running[self._waiting[turn][0]])
            owner, num_sequences = self._waiting[turn]
            if self.num_running and self.num_running + num_sequences > most:
                return
            del self._waiting[turn]
            self._running[owner] += num_sequences
            turn.set_result(None)
