"""Routes under `/v1/fine_tuning`."""

import asyncio
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from adapters.jobs.records import Job
from serve.access.keys import KeyRecord
from serve.api.openapi import errors, model_body
from serve.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    InvalidRequestError,
    RateLimitedError,
    StoreFullError,
)
from serve.jobs.access import Trainer, body_of
from serve.jobs.answers import (
    CheckpointAnswer,
    EventAnswer,
    JobAnswer,
    ListAnswer,
    checkpoint_answer,
    event_answer,
    job_answer,
    list_answer,
)
from serve.jobs.errors import UnknownJobError
from serve.jobs.job_request import MAX_METADATA, JobRequest
from serve.jobs.parts import Jobs
from serve.jobs.services import JobServices

router = APIRouter()

_STOP_WAIT_S = 5.0
_STOP_POLL_S = 0.1
"""The worker of a running job sees the request within seconds."""

_CREATE_ERRORS = (
    InvalidRequestError,
    UnknownJobError,
    BodyTimeoutError,
    BodyTooLargeError,
    RateLimitedError,
    StoreFullError,
)
_Wanted = Annotated[JobRequest, Depends(body_of(JobRequest))]
_Limit = Annotated[int, Query(ge=1, le=100)]
_Action = Literal["cancel", "pause", "resume"]
_EVENTS_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ListAnswer[EventAnswer],
        "description": "Events, newest first; with `stream=true` server-sent events, oldest first.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.post("/fine_tuning/jobs", responses=errors(*_CREATE_ERRORS), openapi_extra=model_body(JobRequest))
async def create_job(key: Trainer, jobs: Jobs, wanted: _Wanted) -> JobAnswer:
    job = await jobs.services.run(jobs.submission.submit, wanted, key)
    await jobs.services.record("job.created", job.id, key)
    return job_answer(job)


@router.get("/fine_tuning/jobs", responses=errors(InvalidRequestError, UnknownJobError))
async def list_jobs(
    request: Request, key: Trainer, jobs: Jobs, after: str | None = None, limit: _Limit = 20
) -> ListAnswer[JobAnswer]:
    services = jobs.services
    metadata = _asked_metadata(request)
    has_none = request.query_params.get("metadata") == "null"
    page = await services.run(
        services.queue.list, key.tenant, after=after, limit=limit, metadata=metadata, has_no_metadata=has_none
    )
    return list_answer(page, job_answer)


@router.get("/fine_tuning/jobs/{fine_tuning_job_id}", responses=errors(UnknownJobError))
async def retrieve_job(fine_tuning_job_id: str, key: Trainer, jobs: Jobs) -> JobAnswer:
    return job_answer(await jobs.services.run(jobs.services.queue.get, key.tenant, fine_tuning_job_id))


@router.get(
    "/fine_tuning/jobs/{fine_tuning_job_id}/events",
    response_model=None,
    responses=errors(InvalidRequestError, UnknownJobError) | _EVENTS_ANSWER,
)
async def list_events(
    request: Request,
    fine_tuning_job_id: str,
    key: Trainer,
    jobs: Jobs,
    after: str | None = None,
    limit: _Limit = 20,
    stream: bool = False,
) -> Response:
    services = jobs.services
    page = await services.run(services.queue.events, key.tenant, fine_tuning_job_id, after=after, limit=limit)
    if stream:
        jobs.streams.check_room(key.tenant)
        check_key = partial(request.app.state.authenticate, request)
        events = jobs.streams.events(key, fine_tuning_job_id, check_key)
        return StreamingResponse(events, media_type="text/event-stream")
    return JSONResponse(list_answer(page, event_answer).model_dump(mode="json"))


@router.get(
    "/fine_tuning/jobs/{fine_tuning_job_id}/checkpoints", responses=errors(InvalidRequestError, UnknownJobError)
)
async def list_checkpoints(
    fine_tuning_job_id: str, key: Trainer, jobs: Jobs, after: str | None = None, limit: _Limit = 10
) -> ListAnswer[CheckpointAnswer]:
    services = jobs.services
    page = await services.run(services.queue.checkpoints, key.tenant, fine_tuning_job_id, after=after, limit=limit)
    return list_answer(page, checkpoint_answer)


_ACTION_ERRORS = errors(InvalidRequestError, UnknownJobError)


@router.post("/fine_tuning/jobs/{fine_tuning_job_id}/cancel", responses=_ACTION_ERRORS)
async def cancel_job(fine_tuning_job_id: str, key: Trainer, jobs: Jobs) -> JobAnswer:
    return await _act("cancel", fine_tuning_job_id, key, jobs.services)


@router.post("/fine_tuning/jobs/{fine_tuning_job_id}/pause", responses=_ACTION_ERRORS)
async def pause_job(fine_tuning_job_id: str, key: Trainer, jobs: Jobs) -> JobAnswer:
    return await _act("pause", fine_tuning_job_id, key, jobs.services)


@router.post("/fine_tuning/jobs/{fine_tuning_job_id}/resume", responses=_ACTION_ERRORS)
async def resume_job(fine_tuning_job_id: str, key: Trainer, jobs: Jobs) -> JobAnswer:
    return await _act("resume", fine_tuning_job_id, key, jobs.services)


async def _act(action: _Action, job_id: str, key: KeyRecord, services: JobServices) -> JobAnswer:
    job = await services.run(services.queue.ask, key.tenant, job_id, action)
    await services.record(_AUDITED[action], job_id, key)
    return job_answer(await _stopped(services, key, job))


_AUDITED: dict[_Action, Literal["job.cancel", "job.pause", "job.resume"]] = {
    "cancel": "job.cancel",
    "pause": "job.pause",
    "resume": "job.resume",
}


async def _stopped(services: JobServices, key: KeyRecord, job: Job) -> Job:
    """The job once its worker has carried out the request, or after `_STOP_WAIT_S`."""
    deadline = asyncio.get_running_loop().time() + _STOP_WAIT_S
    while job.requested is not None and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(_STOP_POLL_S)
        job = await services.run(services.queue.get, key.tenant, job.id)
    return job


def _asked_metadata(request: Request) -> dict[str, str] | None:
    """The filter `metadata[key]=value`, as OpenAI's clients send it.

    Raises:
        InvalidRequestError: More than a job can have.
    """
    found = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    if len(found) > MAX_METADATA:
        raise InvalidRequestError(f"A job has at most {MAX_METADATA} metadata. Got {len(found)}.", "metadata")
    return found or None
