"""How much clients feel of a training: one row, which the server writes and a training reads."""

import time
from collections.abc import Callable

from adapters.jobs.database import JobsDatabase

FRESH_S = 15.0
"""An older row tells nothing: no server runs, or none has clients."""


class Pressure:
    """Clients' p99 inter-token latency as a multiple of the one without training.

    Args:
        clock: Seconds since the epoch; it must be the same for all processes.
    """

    def __init__(self, database: JobsDatabase, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def write(self, p99_ratio: float) -> None:
        """Raises JobsDiskError."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT INTO pressure (id, at, p99_ratio) VALUES (1, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET at = excluded.at, p99_ratio = excluded.p99_ratio",
                (self._clock(), p99_ratio),
            )

    def read(self) -> float:
        """The latest multiple; 1 if there is no fresh one."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT at, p99_ratio FROM pressure").fetchone()
        is_fresh = row is not None and abs(self._clock() - row["at"]) <= FRESH_S
        return float(row["p99_ratio"]) if is_fresh else 1.0
