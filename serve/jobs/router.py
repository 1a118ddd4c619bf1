"""All routes of files, uploads, fine-tuning jobs and batches."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from serve.api.openapi import errors
from serve.errors import (
    ConflictError,
    ForbiddenError,
    ModelNotFoundError,
    NotReadyError,
    RateLimitedError,
    StoreFullError,
    UnauthorizedError,
)
from serve.jobs import batch_routes, files, fine_tuning, uploads
from serve.jobs.access import Trainer, require_trainer
from serve.jobs.answers import DeletedModel
from serve.jobs.parts import Jobs


async def _charge(key: Trainer, jobs: Jobs) -> None:
    (await jobs.limiter.take(key)).release()


jobs_router = APIRouter(
    prefix="/v1",
    dependencies=[Depends(require_trainer), Depends(_charge)],
    responses=errors(UnauthorizedError, ForbiddenError, RateLimitedError, NotReadyError),
)
"""For keys that may train. The application's `state.jobs` has the `JobParts`."""

for _part in (files, uploads, fine_tuning, batch_routes):
    jobs_router.include_router(_part.router)


@jobs_router.delete("/models/{reference}", responses=errors(ModelNotFoundError, ConflictError, StoreFullError))
async def delete_model(
    reference: Annotated[str, Path(json_schema_extra={"pattern": "^[^/]+$"})], key: Trainer, jobs: Jobs
) -> DeletedModel:
    await jobs.deletion.delete(reference, key)
    await jobs.services.record("model.deleted", reference, key)
    return DeletedModel(id=reference)
