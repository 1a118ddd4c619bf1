"""Routes under `/v1/files`."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, BinaryIO, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from adapters.jobs.records import Purpose
from serve.api.openapi import errors
from serve.errors import BodyTimeoutError, BodyTooLargeError, InvalidRequestError, RateLimitedError, StoreFullError
from serve.jobs.access import Trainer
from serve.jobs.answers import DeletedFile, FileAnswer, ListAnswer, file_answer, list_answer
from serve.jobs.arrival import PURPOSES, ArrivingFile
from serve.jobs.errors import UnknownJobError
from serve.jobs.parts import Jobs
from serve.jobs.services import JobServices

router = APIRouter()

_PIECE_BYTES = 256 << 10
UPLOAD_ERRORS = (InvalidRequestError, BodyTimeoutError, BodyTooLargeError, RateLimitedError, StoreFullError)


def form_body(file_field: str, fields: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is a form with a file."""
    properties = {file_field: {"type": "string", "format": "binary"}} | fields
    schema = {"type": "object", "required": [file_field, *required], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


_FIELDS: dict[str, Any] = {"purpose": {"type": "string", "enum": list(PURPOSES)}}
_CONTENT_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file's content.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post("/files", responses=errors(*UPLOAD_ERRORS), openapi_extra=form_body("file", _FIELDS, ["purpose"]))
async def create_file(request: Request, key: Trainer, jobs: Jobs) -> FileAnswer:
    services = jobs.services
    arrival = ArrivingFile(services, jobs.examples, key)
    try:
        fields = await jobs.forms.read(request, key.tenant, "file", services.config.max_file_bytes, arrival.open)
        file = await services.run(arrival.finish, fields)
    finally:
        arrival.discard()
    await services.record("file.created", file.id, key)
    return file_answer(file)


@router.get("/files", responses=errors(InvalidRequestError, UnknownJobError))
async def list_files(
    key: Trainer,
    jobs: Jobs,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Purpose | None = None,
) -> ListAnswer[FileAnswer]:
    is_newest_first = order == "desc"
    page = await jobs.services.run(
        jobs.services.files.list,
        key.tenant,
        purpose=purpose,
        after=after,
        limit=limit,
        is_newest_first=is_newest_first,
    )
    return list_answer(page, file_answer)


@router.get("/files/{file_id}", responses=errors(UnknownJobError))
async def retrieve_file(file_id: str, key: Trainer, jobs: Jobs) -> FileAnswer:
    return file_answer(await jobs.services.run(jobs.services.files.get, key.tenant, file_id))


@router.delete("/files/{file_id}", responses=errors(UnknownJobError))
async def delete_file(file_id: str, key: Trainer, jobs: Jobs) -> DeletedFile:
    await jobs.services.run(jobs.services.files.delete, key.tenant, file_id)
    await jobs.services.record("file.deleted", file_id, key)
    return DeletedFile(id=file_id)


@router.get(
    "/files/{file_id}/content",
    response_class=StreamingResponse,
    responses=errors(UnknownJobError) | _CONTENT_ANSWER,
)
async def file_content(file_id: str, key: Trainer, jobs: Jobs) -> StreamingResponse:
    services = jobs.services
    file = await services.run(services.files.get, key.tenant, file_id)
    content = await services.run(services.files.open, key.tenant, file_id)
    headers = {
        "content-length": str(file.num_bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename)}",
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(_pieces(services, content), media_type="application/octet-stream", headers=headers)


async def _pieces(services: JobServices, content: BinaryIO) -> AsyncIterator[bytes]:
    with content:
        while piece := await services.run(content.read, _PIECE_BYTES):
            yield piece
