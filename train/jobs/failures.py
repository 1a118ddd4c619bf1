"""Why a training ended, as the error of its job: OpenAI's code where it has one, a message, and the field at fault."""

import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from adapters.errors import AdapterError, BaseNotFoundError, StoreDiskError
from adapters.jobs.errors import JobsDiskError, UnknownIdError
from adapters.jobs.records import JobFailure
from config.errors import ConfigError, DatasetError
from quality.errors import MetricError
from train.errors import DataError, DivergenceError, RecipeError, TrainError, TrainingMemoryError
from train.jobs.errors import InvalidJobError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LIBRARY_HAS_NO_ROOM = re.compile(
    r"StorageFull|No space left|code: 28\b|File too large|code: 27\b|failed writing file|file write failed"
)
"""Messages of libraries that report a full disk only as text: safetensors, and torch's archives."""
_LEAST_FREE_BYTES = 1 << 20


def failure_of(error: BaseException, folder: Path) -> JobFailure:
    """The error of the job.

    Args:
        folder: Where the training writes.
    """
    if _is_disk_full(error, folder):
        return JobFailure(code="disk_full", message=f"The server's disk is full: {error}. Try again when it has room.")
    if isinstance(error, InvalidJobError):
        return JobFailure(code=error.code, message=str(error), param=error.param)
    for kinds, code, param in _CODES:
        if isinstance(error, kinds):
            return JobFailure(code=code, message=str(error), param=param)
    return JobFailure(code="server_error", message=f"The training failed: {type(error).__name__}: {error}")


_CODES: tuple[tuple[tuple[type[BaseException], ...], str, str | None], ...] = (
    ((UnknownIdError,), "invalid_training_file", "training_file"),
    ((DataError, DatasetError), "invalid_training_file", "training_file"),
    ((DivergenceError,), "training_diverged", None),
    ((TrainingMemoryError, MemoryError), "out_of_memory", None),
    ((RecipeError, ConfigError, MetricError), "invalid_hyperparameters", "method"),
    ((BaseNotFoundError,), "model_not_found", "model"),
    ((AdapterError, TrainError), "training_failed", None),
)


def _is_disk_full(error: BaseException, folder: Path) -> bool:
    for one in _chain(error):
        if isinstance(one, JobsDiskError | StoreDiskError):
            return True
        if isinstance(one, OSError) and one.errno in _NO_ROOM:
            return True
        if not isinstance(one, TrainError | AdapterError) and _LIBRARY_HAS_NO_ROOM.search(str(one)):
            return True
    is_known = isinstance(error, TrainError | AdapterError | ConfigError | DatasetError | MetricError)
    return not is_known and shutil.disk_usage(_existing(folder)).free < _LEAST_FREE_BYTES


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
