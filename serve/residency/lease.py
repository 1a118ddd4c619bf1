"""One loaded version, and a request's hold on it."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from adapters.fingerprint import Fingerprint
from adapters.store.manifest import Manifest
from serve.residency.parity import Parity


@dataclass
class Resident:
    """One loaded version. `in_flight` counts requests; times in seconds, `last_used_at` since the epoch."""

    manifest: Manifest
    fingerprint: Fingerprint | None
    parity: Parity | None
    load_s: float
    hold: ExitStack
    is_pinned: bool = False
    in_flight: int = 0
    last_used_at: float = field(default_factory=time.time)


class ResidencyLease:
    """A request's hold on a resident version: it is not unloaded before `release`.

    Args:
        released: Called once, at the release.
    """

    def __init__(self, resident: Resident, released: Callable[[], None], *, is_cold: bool) -> None:
        self.manifest = resident.manifest
        self.is_cold = is_cold
        self._released = released
        self._resident: Resident | None = resident
        resident.in_flight += 1
        resident.last_used_at = time.time()

    def release(self) -> None:
        """Release the lease; a second call does nothing."""
        resident, self._resident = self._resident, None
        if resident is not None:
            resident.in_flight -= 1
            resident.last_used_at = time.time()
            self._released()

    def __enter__(self) -> "ResidencyLease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
