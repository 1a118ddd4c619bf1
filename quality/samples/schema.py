"""Tables of the quality store, and migrations of older files."""

import sqlite3
from contextlib import suppress
from pathlib import Path

from config.sqlite_file import SqliteFormat
from quality.errors import QualityStoreError

_FIRST = """
CREATE TABLE samples (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_s REAL NOT NULL, request_id TEXT, adapter TEXT NOT NULL, version INTEGER NOT NULL, tenant_hash TEXT,
    source TEXT NOT NULL, privacy TEXT NOT NULL, num_prompt_tokens INTEGER NOT NULL, ttft_s REAL, e2e_s REAL NOT NULL,
    signals TEXT NOT NULL, prompt TEXT, answer TEXT
);
CREATE INDEX samples_by_version ON samples (adapter, version, at_s);
CREATE INDEX samples_by_time ON samples (at_s);
CREATE TABLE grades (
    sample_id INTEGER NOT NULL REFERENCES samples (id) ON DELETE CASCADE,
    judge TEXT NOT NULL, at_s REAL NOT NULL, score REAL NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (sample_id, judge)
);
CREATE TABLE labels (
    sample_id INTEGER NOT NULL REFERENCES samples (id) ON DELETE CASCADE,
    who TEXT NOT NULL, at_s REAL NOT NULL, score REAL NOT NULL, note TEXT NOT NULL,
    PRIMARY KEY (sample_id, who)
);
CREATE TABLE probe_scores (
    at_s REAL NOT NULL, adapter TEXT NOT NULL, version INTEGER NOT NULL, probe INTEGER NOT NULL, score REAL NOT NULL
);
CREATE INDEX probe_scores_by_version ON probe_scores (adapter, version, at_s);
CREATE TABLE general_scores (
    at_s REAL NOT NULL, adapter TEXT NOT NULL, version INTEGER NOT NULL, nll REAL NOT NULL
);
CREATE INDEX general_scores_by_version ON general_scores (adapter, version, at_s);
CREATE TABLE drift_looks (
    at_s REAL NOT NULL, adapter TEXT NOT NULL, version INTEGER NOT NULL, look INTEGER NOT NULL,
    num_exchanges INTEGER NOT NULL, is_drift INTEGER NOT NULL, reason TEXT NOT NULL, figures TEXT NOT NULL
);
CREATE INDEX drift_looks_by_version ON drift_looks (adapter, version, at_s);
"""

_JUDGE_TOKENS = """
CREATE TABLE judge_tokens (
    judge TEXT NOT NULL, day TEXT NOT NULL, num_tokens INTEGER NOT NULL, PRIMARY KEY (judge, day)
)
"""

_TRIAL_PAIRS = """
CREATE TABLE trial_pairs (
    at_s REAL NOT NULL, adapter TEXT NOT NULL, stable INTEGER NOT NULL, canary INTEGER NOT NULL, began_at TEXT NOT NULL,
    kind TEXT NOT NULL, stable_value REAL NOT NULL, canary_value REAL NOT NULL, probe INTEGER
);
CREATE INDEX trial_pairs_by_trial ON trial_pairs (adapter, stable, canary, began_at)
"""

_TRIAL_USERS = """
ALTER TABLE trial_pairs ADD COLUMN stable_user TEXT;
ALTER TABLE trial_pairs ADD COLUMN canary_user TEXT;
ALTER TABLE trial_pairs ADD COLUMN num_requests INTEGER NOT NULL DEFAULT 1
"""

_RETENTION = "CREATE TABLE IF NOT EXISTS retention (one INTEGER PRIMARY KEY CHECK (one = 1), at_s REAL NOT NULL)"

_HELD_OUT_NAMES = """
ALTER TABLE probe_scores RENAME TO held_out_scores;
ALTER TABLE held_out_scores RENAME COLUMN probe TO question;
ALTER TABLE trial_pairs RENAME COLUMN probe TO question;
DROP INDEX probe_scores_by_version;
CREATE INDEX held_out_scores_by_version ON held_out_scores (adapter, version, at_s)
"""

_DRIFT_NAMES = """
ALTER TABLE drift_looks RENAME TO drift_checks;
ALTER TABLE drift_checks RENAME COLUMN look TO number;
DROP INDEX drift_looks_by_version;
CREATE INDEX drift_checks_by_version ON drift_checks (adapter, version, at_s)
"""

_FEEDBACK = """
ALTER TABLE samples ADD COLUMN messages TEXT;
ALTER TABLE samples ADD COLUMN request_hash TEXT;
ALTER TABLE samples ADD COLUMN response_hash TEXT;
CREATE INDEX samples_by_request ON samples (request_hash) WHERE request_hash IS NOT NULL;
CREATE INDEX samples_by_response ON samples (response_hash) WHERE response_hash IS NOT NULL;
CREATE TABLE feedback (
    sample_id INTEGER NOT NULL REFERENCES samples (id) ON DELETE CASCADE,
    who TEXT NOT NULL, at_s REAL NOT NULL, score REAL, correction TEXT,
    over_id INTEGER REFERENCES samples (id) ON DELETE CASCADE,
    PRIMARY KEY (sample_id, who)
);
CREATE INDEX feedback_by_over ON feedback (over_id) WHERE over_id IS NOT NULL
"""

FORMAT = SqliteFormat(
    application_id=0x6C726B74,  # "lrkt"
    migrations=(
        _FIRST,
        _JUDGE_TOKENS,
        _TRIAL_PAIRS,
        _TRIAL_USERS,
        _RETENTION,
        _HELD_OUT_NAMES,
        _DRIFT_NAMES,
        _FEEDBACK,
    ),
    error=QualityStoreError,
    way_out="Move it away, or name another file.",
)


def open_database(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """Connect to a file; creates it, or upgrades it to the current schema.

    Raises:
        QualityStoreError: It is not a quality store, a newer program wrote it, or it cannot be opened.
    """
    connection = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # it may hold what people wrote; SQLite gives its other files the same mode
        _close_to_others(path)
        connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
        FORMAT.check(connection, path)
        _configure(connection)
        FORMAT.migrate(connection, path)
    except (sqlite3.Error, OSError) as error:
        if connection is not None:
            connection.close()
        if isinstance(error, QualityStoreError):
            raise
        raise QualityStoreError(f"The quality store {str(path)!r} cannot be opened: {error}") from error
    return connection


def _close_to_others(path: Path) -> None:
    """Remove access of others to an existing file, unless another user owns it."""
    if path.stat().st_mode & 0o077:
        with suppress(PermissionError):
            path.chmod(0o600)


def _configure(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts for a new file only
    connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the writer
    connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last rows, never the file
    connection.execute("PRAGMA secure_delete = ON")  # what retention deletes is overwritten, not only forgotten
    connection.execute("PRAGMA foreign_keys = ON")
