"""Names of fine-tuned models, `ft:<base>:<tenant>:<suffix>:<id>`, and which tenant owns an adapter."""

import sqlite3
import threading
from typing import Any

from adapters.jobs.database import JobsDatabase
from adapters.jobs.errors import UnknownIdError
from adapters.jobs.records import Page, TunedModel
from adapters.jobs.rows import MAX_PAGE, cleaned, find, find_page, shown

MODEL_PREFIX = "ft:"

_ID_DIGITS = 8
_MAX_NAME = 512
_MAX_CACHED = 4096
_FIND_MODEL = "SELECT name, owner, version, base, job_id, created_at FROM models WHERE name = ?"
_FIND_OWNER = "SELECT owner FROM adapter_owners WHERE adapter = ?"


def model_name(base: str, owner: str, suffix: str | None, job_id: str, step_number: int | None = None) -> str:
    """The name of a job's model, or with `step_number` of its checkpoint (`…:ckpt-step-40`)."""
    short = job_id.removeprefix("ftjob-")[:_ID_DIGITS]
    name = f"{MODEL_PREFIX}{base}:{owner}:{suffix or ''}:{short}"
    return name if step_number is None else f"{name}:ckpt-step-{step_number}"


class ModelNames:
    """Looks names up. Cheap enough for an event loop, once per request: an index, behind a bounded cache.

    It reads through a connection of its own, so that no lookup waits for a write. The cache is emptied by any change
    of the database, by whichever process.
    """

    def __init__(self, database: JobsDatabase) -> None:
        self._database = database
        self._connection = database.connect()
        self._connection.execute("PRAGMA query_only = ON")
        self._lock = threading.Lock()
        self._changes = -1
        self._cache: dict[tuple[str, str], sqlite3.Row] = {}

    def find(self, name: str) -> TunedModel | None:
        """What a name `ft:…` stands for, whoever owns it; None for any other text."""
        if not name.startswith(MODEL_PREFIX) or len(name) > _MAX_NAME:
            return None
        row = self._look_up(_FIND_MODEL, name)
        return None if row is None else TunedModel(**dict(row))

    def owner_of(self, adapter: str) -> str | None:
        """The tenant whose jobs publish under an adapter's name; None if no job ever did."""
        row = self._look_up(_FIND_OWNER, adapter) if len(adapter) <= _MAX_NAME else None
        return None if row is None else str(row["owner"])

    def list(self, owner: str | None, *, after: str | None = None, limit: int = MAX_PAGE) -> Page[TunedModel]:
        """Newest first, after the model named `after`."""
        with self._database.reading() as connection:
            return find_page(
                connection,
                TunedModel,
                "models",
                {"owner = ?": owner},
                after=after,
                limit=limit,
                id_column="name",
            )

    def names_of(self, version: str) -> tuple[str, ...]:
        """All names of a version, e.g. of `acme-support@3`."""
        with self._database.reading() as connection:
            models = find(connection, TunedModel, "models", {"version = ?": version}, "ORDER BY seq")
        return tuple(model.name for model in models)

    def remove(self, owner: str | None, name: str) -> TunedModel:
        """Remove a name; the caller has removed its version before.

        Raises:
            UnknownIdError: No such name.
        """
        with self._database.writing() as connection:
            found = find(connection, TunedModel, "models", {"name = ?": name, "owner = ?": owner})
            if not found:
                raise UnknownIdError(
                    f"The model {shown(name)!r} does not exist.", code="model_not_found", param="model"
                )
            connection.execute("DELETE FROM models WHERE name = ?", (name,))
        return found[0]

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _look_up(self, sql: str, name: str) -> Any:
        key = (sql, name)
        with self._lock, self._database.translated():
            changes = self._connection.execute("PRAGMA data_version").fetchone()[0]
            if changes != self._changes or len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
                self._changes = changes
            if key in self._cache:
                return self._cache[key]
            row = self._connection.execute(sql, (cleaned(name),)).fetchone()
            if row is not None:  # names of strangers are kept nowhere
                self._cache[key] = row
            return row
