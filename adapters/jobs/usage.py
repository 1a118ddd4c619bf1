"""Seconds that workers spend on each tenant's jobs, by the hour, and who is next by them."""

import sqlite3

from adapters.jobs.records import Job
from adapters.jobs.rows import loaded

DAY_S = 86400.0
_HOUR_S = 3600

_SPEND = """
INSERT INTO used_seconds VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET seconds = seconds + excluded.seconds
"""

_NEXT = """
SELECT jobs.* FROM jobs
LEFT JOIN (SELECT owner, count(*) AS running FROM jobs WHERE status = 'running' GROUP BY owner) AS busy
    ON busy.owner = jobs.owner
LEFT JOIN (SELECT owner, sum(seconds) AS seconds FROM used_seconds WHERE hour > :since GROUP BY owner) AS used
    ON used.owner = jobs.owner
WHERE status = 'queued' AND (:most IS NULL OR coalesce(seconds, 0) < :most)
ORDER BY coalesce(running, 0), coalesce(seconds, 0), jobs.seq LIMIT 1
"""


def spend(connection: sqlite3.Connection, job: Job, now: float, most_s: float) -> None:
    """Count the time since a running job's last heartbeat for its owner, but no more than `most_s`."""
    seconds = min(most_s, max(0.0, now - (now if job.heartbeat_at is None else job.heartbeat_at)))
    connection.execute(_SPEND, (job.owner, int(now // _HOUR_S), seconds))


def used_seconds(connection: sqlite3.Connection, owner: str, now: float, within_s: float) -> float:
    sql = "SELECT coalesce(sum(seconds), 0) FROM used_seconds WHERE owner = ? AND hour > ?"
    return float(connection.execute(sql, (owner, _first_hour(now, within_s))).fetchone()[0])


def next_job(connection: sqlite3.Connection, now: float, max_owner_seconds: float | None) -> Job | None:
    """The queued job of the owner with the fewest running jobs, then with the fewest seconds in the last day."""
    bounds = {"since": _first_hour(now, DAY_S), "most": max_owner_seconds}
    row = connection.execute(_NEXT, bounds).fetchone()
    return None if row is None else loaded(Job, row)


def _first_hour(now: float, within_s: float) -> int:
    return int((now - within_s) // _HOUR_S)
