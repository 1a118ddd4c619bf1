"""How many bytes a tenant has stored, and may still send."""

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable

from adapters.jobs.errors import FileTooLargeError, QuotaExceededError

_LOOK_AGAIN_BYTES = 1 << 20

_USED_BYTES = """
SELECT (SELECT coalesce(sum(num_bytes), 0) FROM files WHERE owner = :owner AND deleted_at IS NULL)
    + (SELECT coalesce(sum(num_bytes), 0) FROM uploads WHERE owner = :owner AND status = 'pending')
    + (SELECT coalesce(sum(num_bytes), 0) FROM (
        SELECT DISTINCT holds.file_id, holds.num_bytes FROM holds JOIN files ON files.id = holds.file_id
        WHERE holds.owner = :owner AND files.deleted_at IS NOT NULL))
"""

_NUM_FILES = """
SELECT (SELECT count(*) FROM files WHERE owner = :owner AND deleted_at IS NULL)
    + (SELECT count(*) FROM uploads WHERE owner = :owner AND status = 'pending')
"""


def stored_bytes(connection: sqlite3.Connection, owner: str) -> int:
    """Of files, of pending uploads as announced, and of deleted files that a job or batch still uses."""
    return int(connection.execute(_USED_BYTES, {"owner": owner}).fetchone()[0])


def num_files(connection: sqlite3.Connection, owner: str) -> int:
    """Files and pending uploads."""
    return int(connection.execute(_NUM_FILES, {"owner": owner}).fetchone()[0])


class TenantBytes:
    """Bytes that arrive at the moment, by tenant: many uploads at once get no more than the quota together.

    Args:
        stored: Bytes of a tenant that are stored.
    """

    def __init__(self, stored: Callable[[str], int], max_bytes: int | None) -> None:
        self._stored = stored
        self._max_bytes = max_bytes
        self._arriving: Counter[str] = Counter()
        self._lock = threading.Lock()

    def check(self, owner: str, num_bytes: int = 1) -> None:
        """Check that a tenant may store this much more.

        Raises:
            QuotaExceededError: It may not.
        """
        with self._lock:
            arriving = self._arriving[owner]
        if self._max_bytes is not None and self._stored(owner) + arriving + num_bytes > self._max_bytes:
            raise quota_exceeded(self._max_bytes)

    def count(self, owner: str, num_bytes: int) -> None:
        with self._lock:
            self._arriving[owner] += num_bytes
            if self._arriving[owner] <= 0:
                del self._arriving[owner]


class Allowance:
    """What one arriving file may still take.

    Args:
        tenant: None: it counts for no quota.
    """

    def __init__(self, owner: str, tenant: TenantBytes | None, max_bytes: int | None) -> None:
        self._owner = owner
        self._tenant = tenant
        self._max_bytes = max_bytes
        self._taken = 0
        self._checked_at = 0
        if tenant is not None:
            tenant.check(owner)

    def take(self, num_bytes: int) -> None:
        """Raises FileTooLargeError or QuotaExceededError."""
        if self._max_bytes is not None and self._taken + num_bytes > self._max_bytes:
            raise FileTooLargeError(f"The file is larger than {self._max_bytes} bytes, the maximum size of a file.")
        self._taken += num_bytes
        if self._tenant is None:
            return
        self._tenant.count(self._owner, num_bytes)
        if self._checked_at == 0 or self._taken - self._checked_at > _LOOK_AGAIN_BYTES:
            self._checked_at = self._taken
            self._tenant.check(self._owner, 0)

    def close(self) -> None:
        if self._tenant is not None:
            self._tenant.count(self._owner, -self._taken)
        self._taken = 0


def quota_exceeded(max_bytes: int) -> QuotaExceededError:
    return QuotaExceededError(
        f"Your files together would exceed {max_bytes} bytes, the maximum of a tenant. "
        "Delete files that you do not need, and try again."
    )
