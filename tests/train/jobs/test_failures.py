import errno
from pathlib import Path

import pytest

from adapters.errors import BaseNotFoundError, InvalidAdapterError, StoreDiskError
from adapters.jobs.errors import JobsDiskError
from config.errors import ConfigError
from train.errors import DataError, DivergenceError, RecipeError, TrainingMemoryError
from train.jobs.errors import InvalidJobError
from train.jobs.failures import failure_of


@pytest.mark.parametrize(
    ("error", "code", "param"),
    [
        (InvalidJobError("x", "invalid_n_examples", "training_file"), "invalid_n_examples", "training_file"),
        (DataError("x"), "invalid_training_file", "training_file"),
        (RecipeError("x"), "invalid_hyperparameters", "method"),
        (ConfigError("x"), "invalid_hyperparameters", "method"),
        (DivergenceError("x"), "training_diverged", None),
        (TrainingMemoryError("x"), "out_of_memory", None),
        (BaseNotFoundError("x"), "model_not_found", "model"),
        (InvalidAdapterError("x"), "training_failed", None),
        (ZeroDivisionError("x"), "server_error", None),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", None),
        (OSError(errno.EFBIG, "File too large"), "disk_full", None),
        (StoreDiskError("x"), "disk_full", None),
        (JobsDiskError("x"), "disk_full", None),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "disk_full", None),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), "disk_full", None),
        (OSError(errno.EACCES, "Permission denied"), "server_error", None),
    ],
)
def test_errors_have_the_codes_of_clients(error: Exception, code: str, param: str | None, tmp_path: Path) -> None:
    failure = failure_of(error, tmp_path / "jobs")
    assert (failure.code, failure.param) == (code, param)


def test_a_full_disk_is_found_behind_another_error(tmp_path: Path) -> None:
    error = ValueError("could not save")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert failure_of(error, tmp_path).code == "disk_full"


def test_words_of_a_file_do_not_look_like_a_full_disk(tmp_path: Path) -> None:
    assert failure_of(DataError("line 3: found 'No space left'"), tmp_path).code == "invalid_training_file"
