"""Routes under `/v1/uploads`: large files in parts."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from adapters.jobs.incoming import IncomingPart
from adapters.jobs.records import StoredFile
from adapters.jobs.uploads import MAX_PART_BYTES
from serve.access.keys import KeyRecord
from serve.api.openapi import errors, model_body
from serve.errors import InvalidRequestError
from serve.jobs.access import Trainer, body_of
from serve.jobs.answers import PartAnswer, UploadAnswer, part_answer, upload_answer
from serve.jobs.arrival import MAX_EXPIRY_S, MIN_EXPIRY_S, UploadPurpose, check_content, checked_filename
from serve.jobs.errors import UnknownJobError
from serve.jobs.examples import ExampleFiles
from serve.jobs.files import UPLOAD_ERRORS, form_body
from serve.jobs.parts import Jobs
from serve.jobs.services import JobServices

router = APIRouter()

_MAX_PARTS = 10_000


class ExpiresAfter(BaseModel):
    """When the file is deleted, seconds after its creation."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)


class NewUpload(BaseModel):
    """A file that will arrive in parts."""

    model_config = ConfigDict(extra="forbid")

    bytes: int = Field(ge=1, le=2**53)
    filename: str = Field(min_length=1, max_length=1024)
    mime_type: str = Field(max_length=255)
    purpose: UploadPurpose
    expires_after: ExpiresAfter | None = None


class Completion(BaseModel):
    """The parts of an upload, in order."""

    model_config = ConfigDict(extra="forbid")

    part_ids: list[Annotated[str, Field(max_length=128)]] = Field(min_length=1, max_length=_MAX_PARTS)
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


_New = Annotated[NewUpload, Depends(body_of(NewUpload))]
_Completion = Annotated[Completion, Depends(body_of(Completion))]
_CHANGE_ERRORS = (*UPLOAD_ERRORS, UnknownJobError)


@router.post("/uploads", responses=errors(*UPLOAD_ERRORS), openapi_extra=model_body(NewUpload))
async def create_upload(key: Trainer, jobs: Jobs, wanted: _New) -> UploadAnswer:
    services = jobs.services
    upload = await services.run(
        services.uploads.create,
        key.tenant,
        wanted.purpose,
        checked_filename(wanted.filename),
        wanted.bytes,
        wanted.mime_type,
        file_expires_after_s=wanted.expires_after.seconds if wanted.expires_after else None,
    )
    await services.record("upload.created", upload.id, key)
    return upload_answer(upload)


@router.post("/uploads/{upload_id}/parts", responses=errors(*_CHANGE_ERRORS), openapi_extra=form_body("data", {}, []))
async def add_part(upload_id: str, request: Request, key: Trainer, jobs: Jobs) -> PartAnswer:
    services = jobs.services
    with _ArrivingPart() as arriving:

        async def begin(_: str, __: dict[str, str]) -> IncomingPart:
            arriving.part = await services.run(services.uploads.begin_part, key.tenant, upload_id)
            return arriving.part

        await jobs.forms.read(request, key.tenant, "data", MAX_PART_BYTES, begin)
        assert arriving.part is not None
        return part_answer(await services.run(arriving.part.finish))


@router.post("/uploads/{upload_id}/complete", responses=errors(*_CHANGE_ERRORS), openapi_extra=model_body(Completion))
async def complete_upload(upload_id: str, key: Trainer, jobs: Jobs, wanted: _Completion) -> UploadAnswer:
    services = jobs.services
    file = await services.run(_complete, services, jobs.examples, key, upload_id, wanted)
    await services.record("upload.completed", upload_id, key)
    await services.record("file.created", file.id, key)
    return upload_answer(await services.run(services.uploads.get, key.tenant, upload_id), file)


@router.post("/uploads/{upload_id}/cancel", responses=errors(InvalidRequestError, UnknownJobError))
async def cancel_upload(upload_id: str, key: Trainer, jobs: Jobs) -> UploadAnswer:
    upload = await jobs.services.run(jobs.services.uploads.cancel, key.tenant, upload_id)
    await jobs.services.record("upload.cancelled", upload_id, key)
    return upload_answer(upload)


class _ArrivingPart:
    """A part that is discarded at the end unless it was finished."""

    def __init__(self) -> None:
        self.part: IncomingPart | None = None

    def __enter__(self) -> "_ArrivingPart":
        return self

    def __exit__(self, *_: object) -> None:
        if self.part is not None:
            self.part.discard()


def _complete(
    services: JobServices, examples: ExampleFiles, key: KeyRecord, upload_id: str, wanted: Completion
) -> StoredFile:
    """Join the parts and check the content; one that is refused leaves the upload pending."""
    purpose = services.uploads.get(key.tenant, upload_id).purpose
    with services.uploads.complete(key.tenant, upload_id, wanted.part_ids, wanted.md5) as incoming:
        facts = None
        if purpose == "fine-tune":
            incoming.flush()
            with incoming.path.open("rb") as content:
                facts = check_content(content)
        file = incoming.finish()
    if facts is not None:
        examples.learn(file, facts)
    return file
