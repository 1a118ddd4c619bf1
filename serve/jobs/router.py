"""All routes of files, uploads, fine-tuning jobs and batches."""

from fastapi import APIRouter, Depends

from adapters.store.store import AdapterStore
from serve.access.ownership import ModelAccess
from serve.access.tenants import KeyLimiter
from serve.api.openapi import errors
from serve.errors import ForbiddenError, NotReadyError, RateLimitedError, UnauthorizedError
from serve.jobs.access import Trainer, require_trainer
from serve.jobs.batch_routes import add_batch_routes
from serve.jobs.batch_runner import BatchRunner
from serve.jobs.deletion import ModelDeletion, add_model_routes
from serve.jobs.examples import ExampleFiles
from serve.jobs.files import add_file_routes
from serve.jobs.fine_tuning import add_action_routes, add_job_routes
from serve.jobs.forms import FormReader
from serve.jobs.services import JobServices
from serve.jobs.submission import JobSubmission
from serve.jobs.uploads import add_upload_routes
from serve.residency.residency import Residency
from serve.routing.resolver import Resolver


def jobs_router(
    services: JobServices,
    store: AdapterStore,
    residency: Residency,
    resolver: Resolver,
    access: ModelAccess,
    limiter: KeyLimiter,
    *,
    base: str,
    base_name: str,
    body_timeout_s: float,
    batches: BatchRunner,
    max_form_bytes: int | None = None,
) -> APIRouter:
    """Routes for keys that may train; `limiter` counts their requests.

    Args:
        max_form_bytes: Maximum body of an upload, if a proxy in front of this server limits it.
    """

    async def charge(key: Trainer) -> None:
        (await limiter.take(key)).release()

    router = APIRouter(
        prefix="/v1",
        dependencies=[Depends(require_trainer), Depends(charge)],
        responses=errors(UnauthorizedError, ForbiddenError, RateLimitedError, NotReadyError),
    )
    examples = ExampleFiles(services.files)
    forms = FormReader(body_timeout_s, services.run, max_form_bytes)
    submission = JobSubmission(services, examples, store, resolver, access, base=base, base_name=base_name)
    add_file_routes(router, services, examples, forms)
    add_upload_routes(router, services, examples, forms)
    add_job_routes(router, services, submission)
    add_action_routes(router, services)
    add_batch_routes(router, services, base, batches.wake)
    add_model_routes(router, services, ModelDeletion(services, store, residency))
    return router
