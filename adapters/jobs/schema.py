"""Tables of the jobs database, and migrations of older files."""

import sqlite3
from pathlib import Path

from adapters.jobs.errors import JobsStoreError
from adapters.store.durable import file_lock
from config.sqlite_file import SqliteFormat

_FIRST = """
CREATE TABLE files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, purpose TEXT NOT NULL, filename TEXT NOT NULL,
    num_bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER,
    status TEXT NOT NULL, status_details TEXT, deleted_at INTEGER
);
CREATE INDEX files_by_owner ON files (owner, seq);
CREATE INDEX files_by_content ON files (sha256);
CREATE INDEX files_by_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE holds (
    holder TEXT NOT NULL, file_id TEXT NOT NULL, owner TEXT NOT NULL, sha256 TEXT NOT NULL, num_bytes INTEGER NOT NULL,
    PRIMARY KEY (holder, file_id)
);
CREATE INDEX holds_by_content ON holds (sha256);
CREATE INDEX holds_by_owner ON holds (owner);
CREATE TABLE uploads (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, purpose TEXT NOT NULL, filename TEXT NOT NULL,
    num_bytes INTEGER NOT NULL, mime_type TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    file_expires_after_s INTEGER, status TEXT NOT NULL, file_id TEXT
);
CREATE INDEX uploads_pending ON uploads (owner) WHERE status = 'pending';
CREATE TABLE parts (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, upload_id TEXT NOT NULL, num_bytes INTEGER NOT NULL, created_at INTEGER NOT NULL
);
CREATE INDEX parts_by_upload ON parts (upload_id);
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, model TEXT NOT NULL, base TEXT NOT NULL, base_name TEXT,
    adapter TEXT NOT NULL, from_version TEXT, training_file TEXT NOT NULL, validation_file TEXT, suffix TEXT,
    seed INTEGER NOT NULL, metadata TEXT, method TEXT NOT NULL, lorikeet TEXT NOT NULL, status TEXT NOT NULL,
    created_at INTEGER NOT NULL, started_at INTEGER, finished_at INTEGER, estimated_finish INTEGER,
    trained_tokens INTEGER, fine_tuned_model TEXT, version TEXT, result_files TEXT NOT NULL,
    error TEXT, worker TEXT, heartbeat_at REAL, requested TEXT, num_losses INTEGER NOT NULL
);
CREATE INDEX jobs_by_owner ON jobs (owner, seq);
CREATE INDEX jobs_unfinished ON jobs (status, owner) WHERE status NOT IN ('succeeded', 'failed', 'cancelled');
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, job_id TEXT NOT NULL, number INTEGER NOT NULL, key TEXT, created_at INTEGER NOT NULL,
    level TEXT NOT NULL, type TEXT NOT NULL, message TEXT NOT NULL, data TEXT,
    UNIQUE (job_id, number), UNIQUE (job_id, key)
);
CREATE TABLE checkpoints (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, job_id TEXT NOT NULL, created_at INTEGER NOT NULL, step_number INTEGER NOT NULL,
    metrics TEXT NOT NULL, fine_tuned_model_checkpoint TEXT NOT NULL, version TEXT,
    UNIQUE (job_id, step_number)
);
CREATE TABLE batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, key_id TEXT NOT NULL, endpoint TEXT NOT NULL,
    input_file_id TEXT NOT NULL,
    completion_window TEXT NOT NULL, metadata TEXT, model TEXT, status TEXT NOT NULL, num_total INTEGER NOT NULL,
    num_completed INTEGER NOT NULL, num_failed INTEGER NOT NULL, input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, output_file_id TEXT, error_file_id TEXT, errors TEXT NOT NULL,
    created_at INTEGER NOT NULL, in_progress_at INTEGER, expires_at INTEGER, finalizing_at INTEGER,
    completed_at INTEGER, failed_at INTEGER, expired_at INTEGER, cancelling_at INTEGER, cancelled_at INTEGER,
    expires_after_s INTEGER, worker TEXT, heartbeat_at REAL
);
CREATE INDEX batches_by_owner ON batches (owner, seq);
CREATE INDEX batches_unfinished ON batches (status, owner)
    WHERE status NOT IN ('completed', 'failed', 'expired', 'cancelled');
CREATE TABLE models (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, version TEXT NOT NULL, base TEXT NOT NULL, job_id TEXT NOT NULL,
    created_at INTEGER NOT NULL
);
CREATE INDEX models_by_version ON models (version);
CREATE INDEX models_by_owner ON models (owner, seq);
CREATE TABLE adapter_owners (adapter TEXT PRIMARY KEY, owner TEXT NOT NULL);
CREATE TABLE used_seconds (
    owner TEXT NOT NULL, hour INTEGER NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (owner, hour)
);
CREATE TABLE pressure (id INTEGER PRIMARY KEY CHECK (id = 1), at REAL NOT NULL, p99_ratio REAL NOT NULL)
"""

_SECOND = """
ALTER TABLE jobs ADD COLUMN key_id TEXT NOT NULL DEFAULT '';
ALTER TABLE batches ADD COLUMN base TEXT
"""

# A partial index serves only queries that repeat its condition, which none did.
_THIRD = """
DROP INDEX jobs_unfinished;
DROP INDEX batches_unfinished;
CREATE INDEX jobs_by_status ON jobs (status);
CREATE INDEX batches_by_status ON batches (status)
"""

FORMAT = SqliteFormat(
    application_id=0x6C726B6A,  # "lrkj"
    migrations=(_FIRST, _SECOND, _THIRD),
    error=JobsStoreError,
    way_out="Move it away.",
)


def connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """Connect to a file; creates it, or upgrades it to the current schema.

    Raises:
        JobsStoreError: It is another program's file, or a newer program wrote it.
        sqlite3.Error, OSError: It cannot be opened.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)  # SQLite gives its other files the same mode
    connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    try:
        with file_lock(path.with_name(f"{path.name}.lock")):  # SQLite does not wait for others to change its mode
            FORMAT.check(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the writer
            FORMAT.migrate(connection, path)
        connection.execute("PRAGMA synchronous = FULL")  # a power failure loses no event that was reported
    except BaseException:
        connection.close()
        raise
    connection.row_factory = sqlite3.Row
    return connection
