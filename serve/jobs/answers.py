"""Files, uploads, jobs, events and checkpoints as OpenAI's objects."""

from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel

from adapters.jobs.records import (
    Checkpoint,
    FileStatus,
    Job,
    JobEvent,
    JobFailure,
    JobStatus,
    Page,
    StoredFile,
    Upload,
    UploadPart,
    UploadStatus,
)


class Identified(BaseModel):
    """An object with an id."""

    id: str


AnswerT = TypeVar("AnswerT", bound=Identified)
RecordT = TypeVar("RecordT")


class FileAnswer(Identified):
    """A file."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: FileStatus
    status_details: str | None


class DeletedFile(Identified):
    """A file that has been deleted."""

    object: Literal["file"] = "file"
    deleted: bool = True


class DeletedModel(Identified):
    """A fine-tuned model that has been deleted."""

    object: Literal["model"] = "model"
    deleted: bool = True


class UploadAnswer(Identified):
    """An upload; `file` is the completed file."""

    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: UploadStatus
    file: FileAnswer | None


class PartAnswer(Identified):
    """A part of an upload."""

    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class JobAnswer(Identified):
    """A fine-tuning job. `lorikeet` and the status `paused` are extensions."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobFailure | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: dict[str, Any]
    integrations: list[dict[str, Any]] = []
    lorikeet: dict[str, Any]
    metadata: dict[str, str] | None
    method: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: JobStatus
    trained_tokens: int | None
    training_file: str
    user_provided_suffix: str | None
    validation_file: str | None


class EventAnswer(Identified):
    """An event of a job."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    data: dict[str, Any] | None
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]


class CheckpointAnswer(Identified):
    """A checkpoint of a job, which can be used as a model."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float | None]
    step_number: int


class ListAnswer(BaseModel, Generic[AnswerT]):
    """A page of a list; for the next page, send its `last_id` as `after`."""

    object: Literal["list"] = "list"
    data: list[AnswerT]
    has_more: bool
    first_id: str | None
    last_id: str | None


def list_answer(page: Page[RecordT], answer: Callable[[RecordT], AnswerT]) -> ListAnswer[AnswerT]:
    """A page of records, each as its answer."""
    data = [answer(item) for item in page.items]
    first_id, last_id = (data[0].id, data[-1].id) if data else (None, None)
    return ListAnswer(data=data, has_more=page.has_more, first_id=first_id, last_id=last_id)


def file_answer(file: StoredFile) -> FileAnswer:
    shared = file.model_dump(include=set(FileAnswer.model_fields) & set(StoredFile.model_fields))
    return FileAnswer(bytes=file.num_bytes, **shared)


def upload_answer(upload: Upload, file: StoredFile | None = None) -> UploadAnswer:
    shared = upload.model_dump(include=set(UploadAnswer.model_fields) & set(Upload.model_fields))
    return UploadAnswer(bytes=upload.num_bytes, file=file_answer(file) if file else None, **shared)


def part_answer(part: UploadPart) -> PartAnswer:
    return PartAnswer(id=part.id, created_at=part.created_at, upload_id=part.upload_id)


def job_answer(job: Job) -> JobAnswer:
    shared = job.model_dump(include=set(JobAnswer.model_fields) & set(Job.model_fields))
    settings = job.method.get(job.method.get("type", ""), {})
    return JobAnswer(
        **shared,
        hyperparameters=settings.get("hyperparameters", {}),
        organization_id=job.owner,
        user_provided_suffix=job.suffix,
    )


def event_answer(event: JobEvent) -> EventAnswer:
    return EventAnswer.model_validate(event.model_dump(include=set(EventAnswer.model_fields) - {"object"}))


def checkpoint_answer(checkpoint: Checkpoint) -> CheckpointAnswer:
    return CheckpointAnswer(
        fine_tuning_job_id=checkpoint.job_id,
        **checkpoint.model_dump(include=set(CheckpointAnswer.model_fields) - {"object", "fine_tuning_job_id"}),
    )
