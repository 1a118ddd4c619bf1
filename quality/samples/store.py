"""The quality store: samples, grades, labels, held-out scores, drift checks and trials, in one SQLite file.

A server writes it while commands read and write it. Every write is one transaction: after a crash it is complete or
absent. Any method may wait for another process's write, so an event loop must call it in a thread.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from config.sqlite_file import transaction
from quality.errors import QualityStoreError
from quality.samples.records import (
    DriftCheck,
    Feedback,
    GeneralScore,
    Grade,
    HeldOutScore,
    Label,
    Sample,
    TrialPair,
    Turn,
)
from quality.samples.schema import open_database
from quality.signals import Signals

__all__ = [
    "DriftCheck",
    "Feedback",
    "GeneralScore",
    "Grade",
    "HeldOutScore",
    "Label",
    "QualityStore",
    "Sample",
    "TrialPair",
]

_BUSY_TIMEOUT_S = 10.0
_GOLDEN = 2654435761
_TABLES: dict[type[Any], str] = {
    Sample: "samples",
    Grade: "grades",
    Label: "labels",
    Feedback: "feedback",
    HeldOutScore: "held_out_scores",
    GeneralScore: "general_scores",
    DriftCheck: "drift_checks",
    TrialPair: "trial_pairs",
}

_ABOUT_SAMPLES = (Grade, Label, Feedback)

RecordT = TypeVar(
    "RecordT", bound=Sample | Grade | Label | Feedback | HeldOutScore | GeneralScore | DriftCheck | TrialPair
)


class QualityStore:
    """One SQLite file, safe to share between threads. Methods with `limit` return the newest records, oldest first.

    Raises:
        QualityStoreError: On opening, if the file is not a quality store or a newer program wrote it; in every method,
            if the file cannot be read or written.
    """

    def __init__(self, path: Path, *, busy_timeout_s: float = _BUSY_TIMEOUT_S) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection = open_database(path, busy_timeout_s)
        self._connection.row_factory = sqlite3.Row

    def add_sample(self, sample: Sample) -> int:
        """Returns its id."""
        return self.add_samples((sample,))[0]

    def add_samples(self, samples: Sequence[Sample]) -> list[int]:
        """Add all or none, in one transaction. Returns their ids."""
        return self._add(Sample, samples)

    def add_grade(self, grade: Grade) -> None:
        """Raises KeyError if the sample does not exist (any more)."""
        self._add_about_sample(grade)

    def add_label(self, label: Label) -> None:
        """Raises KeyError if the sample does not exist (any more)."""
        self._add_about_sample(label)

    def add_feedback(self, feedback: Feedback, *, most_of_sample: int) -> bool:
        """Add a user's feedback, or replace it; False if so many other users have given theirs already.

        Raises:
            KeyError: The sample, or the one it is preferred to, does not exist (any more).
        """
        with self._writing() as connection:
            sql = "SELECT count(*) FROM feedback WHERE sample_id = ? AND who != ?"
            if connection.execute(sql, (feedback.sample_id, feedback.who)).fetchone()[0] >= most_of_sample:
                return False
            if feedback.over_id is not None:
                self._require_sample(feedback.over_id)
            self._add_about_sample(feedback)
        return True

    def add_labels(self, labels: Sequence[Label]) -> None:
        """Add all or none. Raises KeyError if a sample does not exist (any more)."""
        with self._writing():
            for label in labels:
                self._add_about_sample(label)

    def remove_label(self, sample_id: int, who: str) -> None:
        """Remove a label if it exists."""
        with self._writing() as connection:
            connection.execute("DELETE FROM labels WHERE sample_id = ? AND who = ?", (sample_id, who))

    def add_judge_tokens(self, judge: str, day: str, num_tokens: int) -> None:
        """Add to a judge's tokens on a day (2026-11-22); a negative number corrects an earlier estimate."""
        sql = (
            "INSERT INTO judge_tokens VALUES (?, ?, max(0, ?)) "
            "ON CONFLICT DO UPDATE SET num_tokens = max(0, num_tokens + ?)"
        )
        with self._writing() as connection:
            connection.execute(sql, (judge, day, num_tokens, num_tokens))

    def judge_tokens(self, judge: str, day: str) -> int:
        """Tokens that a judge has used on a day."""
        with self._reading() as connection:
            sql = "SELECT num_tokens FROM judge_tokens WHERE judge = ? AND day = ?"
            row = connection.execute(sql, (judge, day)).fetchone()
        return int(row[0]) if row else 0

    def add_held_out_scores(self, scores: Sequence[HeldOutScore]) -> None:
        self._add(HeldOutScore, scores)

    def add_general_score(self, score: GeneralScore) -> None:
        self._add(GeneralScore, (score,))

    def add_drift_check(self, check: DriftCheck) -> None:
        self._add(DriftCheck, (check,))

    def add_trial_pairs(self, pairs: Sequence[TrialPair]) -> None:
        self._add(TrialPair, pairs)

    def sample(self, sample_id: int) -> Sample | None:
        found = self._find(Sample, {"id = ?": sample_id}, None)
        return found[0] if found else None

    def sample_of(self, id_hash: str) -> Sample | None:
        """The newest sample whose request or answer has this hash (`privacy.id_hash`)."""
        found = self._find(Sample, {"request_hash = ?": id_hash}, 1) + self._find(
            Sample, {"response_hash = ?": id_hash}, 1
        )
        return max(found, key=lambda sample: sample.id, default=None)

    def samples(
        self,
        adapter: str | None = None,
        version: int | None = None,
        since_s: float | None = None,
        limit: int | None = None,
    ) -> tuple[Sample, ...]:
        return self._find(Sample, _of_version(adapter, version) | _since("at_s", since_s), limit)

    def grades(
        self,
        adapter: str | None = None,
        version: int | None = None,
        since_s: float | None = None,
        limit: int | None = None,
        *,
        judge: str | None = None,
        sample_id: int | None = None,
    ) -> tuple[Grade, ...]:
        """Grades of the samples of a version, by one judge or by all."""
        about = {"judge = ?": judge, "grades.sample_id = ?": sample_id} | _of_version(adapter, version, "samples.")
        return self._find(Grade, about | _since("grades.at_s", since_s), limit)

    def labels(
        self,
        adapter: str | None = None,
        version: int | None = None,
        since_s: float | None = None,
        limit: int | None = None,
        *,
        who: str | None = None,
        sample_id: int | None = None,
    ) -> tuple[Label, ...]:
        """Labels of the samples of a version, by one person or by all."""
        about = {"who = ?": who, "labels.sample_id = ?": sample_id} | _of_version(adapter, version, "samples.")
        return self._find(Label, about | _since("labels.at_s", since_s), limit)

    def feedback(
        self,
        adapter: str | None = None,
        version: int | None = None,
        since_s: float | None = None,
        limit: int | None = None,
        *,
        sample_id: int | None = None,
    ) -> tuple[Feedback, ...]:
        """Feedback on the samples of a version."""
        about = {"feedback.sample_id = ?": sample_id} | _of_version(adapter, version, "samples.")
        return self._find(Feedback, about | _since("feedback.at_s", since_s), limit)

    def held_out_scores(
        self,
        adapter: str | None = None,
        version: int | None = None,
        since_s: float | None = None,
        limit: int | None = None,
    ) -> tuple[HeldOutScore, ...]:
        return self._find(HeldOutScore, _of_version(adapter, version) | _since("at_s", since_s), limit)

    def general_scores(
        self,
        adapter: str | None = None,
        version: int | None = None,
        since_s: float | None = None,
        limit: int | None = None,
    ) -> tuple[GeneralScore, ...]:
        return self._find(GeneralScore, _of_version(adapter, version) | _since("at_s", since_s), limit)

    def drift_checks(
        self,
        adapter: str | None = None,
        version: int | None = None,
        since_s: float | None = None,
        limit: int | None = None,
    ) -> tuple[DriftCheck, ...]:
        return self._find(DriftCheck, _of_version(adapter, version) | _since("at_s", since_s), limit)

    def versions(self) -> tuple[tuple[str, int], ...]:
        """Adapters and versions (0: the base) with any record, sorted."""
        tables = ("samples", "held_out_scores", "general_scores", "drift_checks")
        sql = " UNION ".join(f"SELECT adapter, version FROM {table}" for table in tables) + " ORDER BY 1, 2"
        with self._reading() as connection:
            return tuple((adapter, version) for adapter, version in connection.execute(sql).fetchall())

    def ungraded(self, judge: str, limit: int, share: float = 1.0) -> tuple[Sample, ...]:
        """Samples with text that this judge has not graded, from a fixed random `share` of all samples."""
        nobody = "answer IS NOT NULL AND id NOT IN (SELECT sample_id FROM grades WHERE judge = ?)"
        drawn = f"id * {_GOLDEN} % {1 << 32} < ?"  # Knuth's multiplicative hash: ids in a row spread evenly
        return self._find(Sample, {nobody: judge, drawn: share * (1 << 32)}, limit)

    def unlabelled(self, adapter: str | None, limit: int) -> tuple[Sample, ...]:
        """Samples with text and without a label."""
        nobody = "answer IS NOT NULL AND id NOT IN (SELECT sample_id FROM labels)"
        return self._find(Sample, {nobody: ()} | _of_version(adapter, None), limit)

    def trial_pairs(self, adapter: str, stable: int, canary: int, began_at: str) -> tuple[TrialPair, ...]:
        """Pairs of a trial, in the order of observation."""
        trial = {"adapter = ?": adapter, "stable = ?": stable, "canary = ?": canary, "began_at = ?": began_at}
        return self._find(TrialPair, trial, None)

    def last_drift_check(self, adapter: str, version: int) -> int:
        """Number of the last drift check of a version; 0 before the first."""
        with self._reading() as connection:
            sql = "SELECT max(number) FROM drift_checks WHERE adapter = ? AND version = ?"
            last: int | None = connection.execute(sql, (adapter, version)).fetchone()[0]
        return last or 0

    def retention_time_s(self) -> float | None:
        """The last value of `set_retention_time`, also of an earlier process."""
        with self._reading() as connection:
            row = connection.execute("SELECT at_s FROM retention").fetchone()
        return float(row[0]) if row else None

    def set_retention_time(self, at_s: float) -> None:
        """Store the time that retention counts from, seconds since the epoch."""
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO retention VALUES (1, ?)", (at_s,))

    def prune(self, before_s: float, most_samples: int) -> int:
        """Delete older records, and the oldest samples beyond `most_samples` with their grades and labels.

        The last drift check of each version stays: numbers continue from it. Returns the number of deleted samples.
        """
        with self._writing() as connection:
            gone = connection.execute("DELETE FROM samples WHERE at_s < ?", (before_s,)).rowcount
            oldest = "SELECT id FROM samples ORDER BY at_s DESC, id DESC LIMIT -1 OFFSET ?"
            gone += connection.execute(f"DELETE FROM samples WHERE id IN ({oldest})", (most_samples,)).rowcount
            connection.execute("DELETE FROM held_out_scores WHERE at_s < ?", (before_s,))
            connection.execute("DELETE FROM general_scores WHERE at_s < ?", (before_s,))
            connection.execute("DELETE FROM trial_pairs WHERE at_s < ?", (before_s,))
            connection.execute("DELETE FROM judge_tokens WHERE day < date(?, 'unixepoch')", (before_s,))
            connection.execute(
                "DELETE FROM drift_checks WHERE at_s < ? AND number < (SELECT max(number) FROM drift_checks AS every "
                "WHERE every.adapter = drift_checks.adapter AND every.version = drift_checks.version)",
                (before_s,),
            )
        with self._reading() as connection:  # returns the space, and truncates the log, which holds deleted rows
            connection.executescript("PRAGMA incremental_vacuum")  # `execute` would free one page only
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return gone

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> "QualityStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, record: type[RecordT], rows: Sequence[RecordT], verb: str = "INSERT") -> list[int]:
        columns = [field.name for field in fields(record) if field.name != "id"]
        places = ", ".join("?" * len(columns))
        sql = f"{verb} INTO {_TABLES[record]} ({', '.join(columns)}) VALUES ({places})"
        with self._writing() as connection:
            cursors = [connection.execute(sql, [_stored(getattr(row, name)) for name in columns]) for row in rows]
            return [cursor.lastrowid or 0 for cursor in cursors]

    def _add_about_sample(self, record: Grade | Label | Feedback) -> None:
        with self._writing():
            self._require_sample(record.sample_id)
            self._add(type(record), (record,), "INSERT OR REPLACE")

    def _require_sample(self, sample_id: int) -> None:
        with self._reading() as connection:
            if connection.execute("SELECT 1 FROM samples WHERE id = ?", (sample_id,)).fetchone() is None:
                raise KeyError(f"There is no sample {sample_id}; it may have been deleted by retention.")

    def _find(self, record: type[RecordT], conditions: Mapping[str, Any], limit: int | None) -> tuple[RecordT, ...]:
        """The newest `limit` rows that meet the conditions, oldest first; a condition on None is none."""
        table = _TABLES[record]
        tables = f"{table} JOIN samples ON samples.id = {table}.sample_id" if record in _ABOUT_SAMPLES else table
        asked = {sql: value for sql, value in conditions.items() if value is not None}
        where = " AND ".join(asked) or "1"
        values: list[Any] = [value for value in asked.values() if value != ()]
        sql = f"SELECT {table}.* FROM {tables} WHERE {where} ORDER BY {table}.at_s DESC, {table}.rowid DESC LIMIT ?"
        with self._reading() as connection:
            rows = connection.execute(sql, (*values, -1 if limit is None else limit)).fetchall()
        return tuple(_record(record, row) for row in reversed(rows))

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise QualityStoreError(f"The quality store {str(self.path)!r} fails: {error}") from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; within another one, a part of it."""
        with self._reading() as connection, transaction(connection):
            yield connection


def _of_version(adapter: str | None, version: int | None, table: str = "") -> dict[str, Any]:
    return {f"{table}adapter = ?": adapter, f"{table}version = ?": version}


def _since(column: str, since_s: float | None) -> dict[str, Any]:
    return {f"{column} >= ?": since_s}


def _stored(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # JSON may hold half a character, SQLite may not
    if isinstance(value, Signals):
        return json.dumps(asdict(value))
    if isinstance(value, tuple):
        return _stored(json.dumps(value, ensure_ascii=False)) if value else None
    return json.dumps(dict(value)) if isinstance(value, Mapping) else value


def _record(record: type[RecordT], row: sqlite3.Row) -> RecordT:
    columns: dict[str, Any] = dict(row)
    if "signals" in columns:
        columns["signals"] = Signals(**json.loads(columns["signals"]))
    if "messages" in columns:
        columns["messages"] = tuple(Turn(*turn) for turn in json.loads(columns["messages"] or "[]"))
    if "figures" in columns:
        columns |= {"figures": json.loads(columns["figures"]), "is_drift": bool(columns["is_drift"])}
    return record(**columns)
