"""Errors of files, uploads and jobs as responses, with OpenAI's codes.

ServeError
├── JobsRequestError                  status and code of a JobsError, see below
├── ExampleFileError                  400  invalid_file_format, invalid_n_examples, invalid_training_file, …
└── BaseNotTrainableError             400  model_not_available

Errors of the jobs store and their responses (`response_error`):

UnknownIdError                        404  of files: no code; of jobs: fine_tune_not_found
FileTooLargeError                     413  file_too_large
QuotaExceededError                    429  quota_exceeded
JobsDiskError                         507  insufficient_storage
JobsStoreError                        503  not_ready
every other JobsError                 400  its own code
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from adapters.jobs.errors import (
    FileTooLargeError,
    JobsDiskError,
    JobsError,
    JobsStoreError,
    QuotaExceededError,
    UnknownIdError,
)
from serve.errors import InvalidRequestError, NotReadyError, ServeError, StoreFullError

logger = logging.getLogger(__name__)

_QUOTA_RETRY_S = 60.0


class JobsRequestError(ServeError):
    """A request that the jobs store refuses."""

    type = "invalid_request_error"

    def __init__(self, message: str, status: int, code: str | None, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class JobsQuotaError(JobsRequestError):
    """A tenant with too many bytes or unfinished jobs."""

    status = 429
    retry_after_s = _QUOTA_RETRY_S


class UnknownJobError(JobsRequestError):
    """The tenant has no such file, upload, job or batch."""

    status = 404


class ExampleFileError(InvalidRequestError):
    """A file that cannot be trained on."""

    def __init__(self, message: str, code: str, param: str) -> None:
        super().__init__(message, param)
        self.code = code


class BaseNotTrainableError(InvalidRequestError):
    """A model that cannot be fine-tuned."""

    code = "model_not_available"


@contextmanager
def errors_as_responses() -> Iterator[None]:
    """Raise errors of the jobs store as errors for clients."""
    try:
        yield
    except JobsError as error:
        raise response_error(error) from None


def response_error(error: JobsError) -> ServeError:
    """The error for a client whose request the jobs store refuses."""
    message = str(error)
    if isinstance(error, UnknownIdError):
        code = _FILE_CODES.get(error.param or "", None if error.code == "not_found" else error.code)
        return UnknownJobError(message, 404, code, "id" if error.param == "file_id" else error.param)
    if isinstance(error, QuotaExceededError):
        return JobsQuotaError(message, 429, error.code, error.param)
    if isinstance(error, JobsDiskError | JobsStoreError):  # its paths are for the operator alone
        logger.error("%s", message)
        if isinstance(error, JobsDiskError):
            return StoreFullError("The server's disk is full; nothing was changed. Delete files, or ask its operator.")
        return NotReadyError("Files and jobs cannot be read or written now; see the server's log. Try again later.")
    status = 413 if isinstance(error, FileTooLargeError) else 400
    return JobsRequestError(message, status, error.code, error.param)


_FILE_CODES = {"training_file": "invalid_training_file", "validation_file": "invalid_validation_file"}
"""OpenAI's codes for unknown files of a job, by the request's field."""
