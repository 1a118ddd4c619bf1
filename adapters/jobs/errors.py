"""Errors of files, jobs and batches; `code` and `param` are those of OpenAI's error object.

JobsError
├── JobsStoreError       (OSError)       the database or its folder cannot be opened, read or written
├── JobsDiskError        (OSError)       the disk is full; nothing was changed
├── UnknownIdError       (LookupError)   the tenant has no such file, upload, job, batch or model
├── InvalidUploadError   (ValueError)    sizes, parts or checksum of an upload do not match
├── FileTooLargeError    (ValueError)    the file is larger than the server allows
├── QuotaExceededError   (RuntimeError)  the tenant has too many bytes, files or unfinished jobs
├── NameTakenError       (ValueError)    the adapter's name belongs to another tenant
├── InvalidStatusError   (RuntimeError)  the status does not allow the action, e.g. cancelling a job that has ended
└── ClaimLostError       (RuntimeError)  another worker has the job or batch, or it has ended
"""


class JobsError(Exception):
    """Base class of the errors of `adapters/jobs`.

    Args:
        code: Overrides the class's code.
        param: The request's field that is at fault, e.g. `training_file`.
    """

    code: str = "jobs_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code


class JobsStoreError(JobsError, OSError):
    """The database or its folder cannot be opened, read or written."""

    code = "jobs_store_unavailable"


class JobsDiskError(JobsError, OSError):
    """The disk is full, over quota or read-only."""

    code = "disk_full"


class UnknownIdError(JobsError, LookupError):
    """The tenant has no object with this id. Another tenant's id gets the same error as an unknown one."""

    code = "not_found"


class InvalidUploadError(JobsError, ValueError):
    """An upload whose sizes, parts or checksum do not match."""

    code = "invalid_upload"


class FileTooLargeError(JobsError, ValueError):
    """A file larger than the server allows."""

    code = "file_too_large"


class QuotaExceededError(JobsError, RuntimeError):
    """A tenant with too many bytes, files or unfinished jobs."""

    code = "quota_exceeded"


class NameTakenError(JobsError, ValueError):
    """An adapter name that belongs to another tenant."""

    code = "invalid_suffix"


class InvalidStatusError(JobsError, RuntimeError):
    """An action that the current status does not allow."""

    code = "invalid_status"


class ClaimLostError(JobsError, RuntimeError):
    """The worker has lost its claim on the job or batch: it must stop and write nothing more."""

    code = "claim_lost"
