"""What the jobs database says of models: which version a name `ft:…` stands for, and which model a batch asks first."""

from contextlib import suppress
from typing import Any

import jiter

from adapters.jobs.database import JobsDatabase
from adapters.jobs.errors import JobsError
from adapters.jobs.files import FileStore
from adapters.jobs.models import MODEL_PREFIX, ModelNames
from config.home import Home
from serve.jobs.services import DATABASE_FILE


class JobModels:
    """Looks them up, to find the base that a request is for. What is unknown has none: a replica says so.

    Args:
        max_line_bytes: A batch's first line that is longer has no model.

    Raises:
        JobsError: The database cannot be opened.
    """

    def __init__(self, home: Home, max_line_bytes: int) -> None:
        database = JobsDatabase(home.jobs / DATABASE_FILE)
        self._names = ModelNames(database)
        self._files = FileStore(database, home.jobs)
        self._max_line_bytes = max_line_bytes

    def reference(self, model: str) -> str:
        """The version that a name `ft:…` stands for; any other text as it is."""
        if not model.startswith(MODEL_PREFIX):
            return model
        with suppress(JobsError):
            tuned = self._names.find(model)
            return model if tuned is None else tuned.version
        return model

    def model_of_batch(self, body: bytes) -> str:
        """The model of the first line of a new batch's input; "" if there is none. Blocks on the disk.

        Args:
            body: Of the request that creates the batch.
        """
        with suppress(JobsError, OSError, ValueError):
            file_id = _field(jiter.from_json(body), "input_file_id")
            with self._files.open(None, file_id) as lines:
                first = lines.readline(self._max_line_bytes)
            return _field(jiter.from_json(first), "body", "model")
        return ""


def _field(value: Any, *names: str) -> str:
    """The text below these keys.

    Raises:
        ValueError: There is none.
    """
    for name in names:
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"no {name!r}")
        value = value[name]
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value
