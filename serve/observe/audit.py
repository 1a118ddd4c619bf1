"""The audit log: who changed which file, job or model, and when. One line each; ids and names, never content."""

import json
import logging
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

logger = logging.getLogger("audit")

Action = Literal[
    "file.created",
    "file.deleted",
    "upload.created",
    "upload.completed",
    "upload.cancelled",
    "job.created",
    "job.cancel",
    "job.pause",
    "job.resume",
    "batch.created",
    "batch.cancel",
    "model.deleted",
]


class AuditLog:
    """Writes changes of state to the log, and to a file of JSON Lines where there is one.

    Args:
        path: Appended to, mode 0600. Each entry is one write, so that several processes may share it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._writing = threading.Lock()

    def record(self, action: Action, subject: str, *, tenant: str, key_id: str) -> None:
        """Record a change that has been made; `subject` is the id or name of what has changed."""
        logger.info("%s %s by key %s of %r", action, subject, key_id, tenant)
        if self._path is None:
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {"at": at, "action": action, "subject": subject, "tenant": tenant, "key": key_id}
        try:
            self._append(self._path, json.dumps(entry) + "\n")
        except OSError as error:  # the change is made, and the line above tells of it
            logger.error("The audit log %s was not written: %s", self._path, error)

    def _append(self, path: Path, line: str) -> None:
        with self._writing:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)
