"""OpenAI's batches over HTTP: `/v1/batches`."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from adapters.jobs.records import Batch, BatchStatus, new_id
from config.model import Config
from serve.access.keys import KeyRecord
from serve.api.openapi import errors, model_body
from serve.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    InvalidRequestError,
)
from serve.jobs.access import Trainer, body_of
from serve.jobs.answers import Identified, ListAnswer, list_answer
from serve.jobs.errors import JobsQuotaError, JobsRequestError, UnknownJobError
from serve.jobs.parts import Jobs

router = APIRouter()

WINDOW_S = 24 * 3600

_UNKNOWN = errors(UnknownJobError)
_BODY_ERRORS = errors(UnknownJobError, InvalidRequestError, BodyTimeoutError, BodyTooLargeError, JobsQuotaError)

MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class OutputExpiry(Config):
    """`output_expires_after` of a new batch."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=30 * 24 * 3600)


class NewBatch(Config):
    """The body of a request for a batch."""

    input_file_id: str = Field(min_length=1, max_length=80, description="A file of purpose `batch`.")
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16)
    output_expires_after: OutputExpiry | None = None


class BatchErrorAnswer(BaseModel):
    """An error of the input."""

    code: str
    message: str
    line: int | None
    param: str | None


class BatchErrors(BaseModel):
    """Why a batch has failed."""

    object: Literal["list"] = "list"
    data: list[BatchErrorAnswer]


class RequestCounts(BaseModel):
    """Numbers of a batch's requests."""

    total: int
    completed: int
    failed: int


class BatchUsage(BaseModel):
    """Tokens of a batch's answers."""

    input_tokens: int
    input_tokens_details: dict[str, int] = {"cached_tokens": 0}
    output_tokens: int
    output_tokens_details: dict[str, int] = {"reasoning_tokens": 0}
    total_tokens: int


class BatchAnswer(Identified):
    """A batch."""

    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


def batch_answer(batch: Batch) -> BatchAnswer:
    shared = batch.model_dump(include=set(BatchAnswer.model_fields) & set(Batch.model_fields) - {"errors"})
    faults = [BatchErrorAnswer(**fault.model_dump()) for fault in batch.errors]
    num_tokens = batch.input_tokens + batch.output_tokens
    return BatchAnswer(
        **shared,
        errors=BatchErrors(data=faults) if faults else None,
        request_counts=RequestCounts(total=batch.num_total, completed=batch.num_completed, failed=batch.num_failed),
        usage=BatchUsage(input_tokens=batch.input_tokens, output_tokens=batch.output_tokens, total_tokens=num_tokens),
    )


@router.post("/batches", responses=_BODY_ERRORS, openapi_extra=model_body(NewBatch))
async def create(key: Trainer, jobs: Jobs, body: Annotated[NewBatch, Depends(body_of(NewBatch))]) -> BatchAnswer:
    services = jobs.services
    file = await services.run(services.files.get, key.tenant, body.input_file_id, param="input_file_id")
    if file.purpose != "batch":
        raise JobsRequestError(
            f"The file {file.id!r} has the purpose {file.purpose!r}. Upload it with purpose 'batch'.",
            400,
            "invalid_input_file",
            "input_file_id",
        )
    batch = _new_batch(body, key, jobs.base, int(time.time()))
    batch = await services.run(services.batches.submit, batch, max_unfinished=services.config.max_jobs_per_tenant)
    await services.record("batch.created", batch.id, key)
    jobs.wake_batches()
    return batch_answer(batch)


@router.get("/batches", responses=_UNKNOWN | errors(InvalidRequestError))
async def list_batches(
    key: Trainer,
    jobs: Jobs,
    after: Annotated[str | None, Query(max_length=80)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ListAnswer[BatchAnswer]:
    page = await jobs.services.run(jobs.services.batches.list, key.tenant, after=after, limit=limit)
    return list_answer(page, batch_answer)


@router.get("/batches/{batch_id}", responses=_UNKNOWN)
async def retrieve(batch_id: str, key: Trainer, jobs: Jobs) -> BatchAnswer:
    return batch_answer(await jobs.services.run(jobs.services.batches.get, key.tenant, batch_id))


@router.post("/batches/{batch_id}/cancel", responses=_UNKNOWN | errors(InvalidRequestError))
async def cancel(batch_id: str, key: Trainer, jobs: Jobs) -> BatchAnswer:
    batch = await jobs.services.run(jobs.services.batches.cancel, key.tenant, batch_id)
    await jobs.services.record("batch.cancel", batch.id, key)
    return batch_answer(batch)


def _new_batch(body: NewBatch, key: KeyRecord, base: str, now: int) -> Batch:
    fields: dict[str, Any] = body.model_dump(exclude={"output_expires_after"})
    expires_after_s = body.output_expires_after.seconds if body.output_expires_after else None
    return Batch(
        id=new_id("batch_"),
        owner=key.tenant,
        key_id=key.id,
        base=base,
        **fields,
        created_at=now,
        expires_at=now + WINDOW_S,
        expires_after_s=expires_after_s,
    )
