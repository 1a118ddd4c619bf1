"""Records of files, jobs and batches. Ids, statuses and times (whole seconds since the epoch) are OpenAI's."""

import secrets
from typing import Any, Generic, Literal, TypeVar, get_args

from pydantic import Field

from adapters.store.record import Record

Purpose = Literal["fine-tune", "fine-tune-results", "batch", "batch_output", "evals", "user_data"]
FileStatus = Literal["uploaded", "processed", "error"]
UploadStatus = Literal["pending", "completed", "cancelled", "expired"]
JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
JobRequest = Literal["cancel", "pause"]
BatchStatus = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
]
EventLevel = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]
IdKind = Literal["file-", "upload_", "part_", "ftjob-", "ftevent-", "ftckpt_", "batch_"]

ENDED_JOB = frozenset[JobStatus]({"succeeded", "failed", "cancelled"})
ENDED_BATCH = frozenset[BatchStatus]({"completed", "failed", "expired", "cancelled"})
UNFINISHED_JOB: tuple[JobStatus, ...] = tuple(status for status in get_args(JobStatus) if status not in ENDED_JOB)
UNFINISHED_BATCH: tuple[BatchStatus, ...] = tuple(s for s in get_args(BatchStatus) if s not in ENDED_BATCH)

ItemT = TypeVar("ItemT")


def new_id(kind: IdKind) -> str:
    """A random id with its prefix, e.g. `file-` and 24 hexadecimal digits."""
    return f"{kind}{secrets.token_hex(12)}"


class Page(Record, Generic[ItemT]):
    """A part of a list, and whether more follows."""

    items: tuple[ItemT, ...]
    has_more: bool


class StoredFile(Record):
    """A file that is complete on disk."""

    id: str
    owner: str = Field(description="Tenant.")
    purpose: Purpose
    filename: str
    num_bytes: int = Field(ge=0)
    sha256: str
    created_at: int
    expires_at: int | None = None
    status: FileStatus = "processed"
    status_details: str | None = None


class Upload(Record):
    """A file that arrives in parts."""

    id: str
    owner: str
    purpose: Purpose
    filename: str
    num_bytes: int = Field(ge=1, description="Size of the whole file, as announced.")
    mime_type: str = ""
    created_at: int
    expires_at: int = Field(description="Of the upload; a pending one becomes `expired` then.")
    file_expires_after_s: int | None = Field(None, description="Life of the file that comes of it, seconds.")
    status: UploadStatus = "pending"
    file_id: str | None = None


class UploadPart(Record):
    id: str
    upload_id: str
    num_bytes: int = Field(ge=0)
    created_at: int


class JobFailure(Record):
    """Why a job has failed."""

    code: str
    message: str
    param: str | None = None


class Job(Record):
    """A fine-tuning job."""

    id: str
    owner: str = Field(description="Tenant.")
    key_id: str = Field("", description="Of the API key that created it; revoking that key cancels the job.")
    model: str = Field(description="As the client wrote it.")
    base: str = Field(description="Name of the prepared base.")
    base_name: str | None = Field(None, description="Its name for clients, in the names of models; None: `base`.")
    adapter: str = Field(description="Name under which its versions are published.")
    from_version: str | None = Field(None, description="Version that training goes on from, e.g. `medical@3`.")
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int
    metadata: dict[str, str] | None = None
    method: dict[str, Any] = Field(description="As OpenAI's, with the hyperparameters that `auto` stands for.")
    lorikeet: dict[str, Any] = Field(default_factory=dict, description="Our additions: domain, gates, alias.")
    status: JobStatus = "validating_files"
    created_at: int
    started_at: int | None = None
    finished_at: int | None = None
    estimated_finish: int | None = None
    trained_tokens: int | None = None
    fine_tuned_model: str | None = Field(None, description="E.g. `ft:smollm2-135m:acme:support:1a2b3c`.")
    version: str | None = Field(None, description="What that name stands for, e.g. `acme-support@3`.")
    result_files: tuple[str, ...] = ()
    error: JobFailure | None = None
    worker: str | None = Field(None, description="Who has claimed it; set while `running` only.")
    heartbeat_at: float | None = None
    requested: JobRequest | None = Field(None, description="What the worker is asked to do.")
    num_losses: int = Field(0, ge=0, description="Workers that died with it since its last checkpoint.")

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED_JOB


class JobEvent(Record):
    id: str
    job_id: str
    number: int = Field(ge=1, description="Position among the events of the job.")
    key: str | None = Field(None, description="Of two events of a job with the same key only the first is kept.")
    created_at: int
    level: EventLevel
    type: EventType
    message: str
    data: dict[str, Any] | None = None


class Checkpoint(Record):
    """A checkpoint of a job that can be asked as a model."""

    id: str
    job_id: str
    created_at: int
    step_number: int = Field(ge=0)
    metrics: dict[str, float | None]
    fine_tuned_model_checkpoint: str
    version: str | None = None


class TunedModel(Record):
    """A name `ft:…`, and the version that it stands for."""

    name: str
    owner: str
    version: str
    base: str
    job_id: str
    created_at: int


class BatchFault(Record):
    """A line of a batch's input that cannot be a request."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Batch(Record):
    """Requests in a file, answered when there is room."""

    id: str
    owner: str
    key_id: str = Field("", description="Of the API key that created it: its lines may ask what that key may.")
    base: str | None = Field(None, description="Name of the prepared base of its models; None: any server runs it.")
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None = None
    model: str | None = None
    status: BatchStatus = "validating"
    num_total: int = 0
    num_completed: int = 0
    num_failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: tuple[BatchFault, ...] = ()
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    expires_after_s: int | None = Field(None, description="Life of its output files, seconds.")
    worker: str | None = None
    heartbeat_at: float | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED_BATCH


class FileLimits(Record):
    """Bounds of a `FileStore`; None: no bound."""

    max_file_bytes: int | None = None
    max_bytes_per_tenant: int | None = None
    max_files_per_tenant: int = Field(10_000, description="Files and pending uploads; each has a row to look up.")
    file_expiry_s: int | None = Field(None, description="Life of a file whose upload names none, seconds.")
