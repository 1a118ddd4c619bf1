"""Removes what ended jobs and batches have left, after a while: events, result files and counted seconds.

The jobs and batches themselves stay listed, with the names of their models and checkpoints. No published version is
touched, no file that a client has uploaded, and no file that an unfinished job or batch uses.
"""

from adapters.jobs.database import JobsDatabase
from adapters.jobs.records import ENDED_BATCH
from adapters.jobs.rows import status_list

_OLD_BATCHES = f"""
FROM batches WHERE status IN ({status_list(ENDED_BATCH)})
    AND coalesce(completed_at, failed_at, expired_at, cancelled_at) <= :before
"""
_OLD_FILES = f"""
SELECT value FROM jobs, json_each(jobs.result_files) WHERE finished_at <= :before
UNION SELECT output_file_id {_OLD_BATCHES} UNION SELECT error_file_id {_OLD_BATCHES}
"""
_DELETE_FILES = f"""
UPDATE files SET deleted_at = :now, filename = '', status_details = NULL
WHERE deleted_at IS NULL AND purpose IN ('fine-tune-results', 'batch_output')
    AND id IN ({_OLD_FILES}) AND id NOT IN (SELECT file_id FROM holds)
"""
_DELETE_EVENTS = "DELETE FROM events WHERE job_id IN (SELECT id FROM jobs WHERE finished_at <= :before)"
_HOUR_S = 3600


def prune(database: JobsDatabase, keep_s: float, now: float) -> int:
    """Remove what ended at least `keep_s` seconds ago; the next `FileStore.sweep` removes the files' content.

    Works on a full disk, too. Returns the number of deleted files.
    """
    times = {"before": int(now - keep_s), "now": int(now)}

    def remove() -> int:
        with database.writing() as connection:
            connection.execute(_DELETE_EVENTS, {"before": times["before"]})
            connection.execute("DELETE FROM used_seconds WHERE hour < ?", (times["before"] // _HOUR_S,))
            return connection.execute(_DELETE_FILES, times).rowcount

    return database.with_reserve(remove)
