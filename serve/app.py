"""The HTTP application: an allow-list of routes, authentication, and background tasks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Request
from fastapi.responses import Response

from adapters.store.store import AdapterStore
from serve.access.keys import KeyRecord, KeyRing
from serve.access.ownership import ModelAccess
from serve.api.admin import AdminParts, admin_router, require_admin
from serve.api.bodies import CloseUnread
from serve.api.completions import Completions
from serve.api.feedback import FeedbackAnswer, FeedbackBody, FeedbackRoute
from serve.api.guard import Guard, WebRules
from serve.api.metrics_port import metrics_answer
from serve.api.model_cards import ModelCard, ModelCards, ModelList
from serve.api.openapi import METRICS_ANSWER, DescribedApp, completion_answer, completion_body, errors, model_body
from serve.api.responses import add_error_handlers
from serve.background import Loop, keep_running
from serve.engine.protocol import Endpoint, Engine
from serve.errors import (
    AdapterRefusedError,
    BodyTimeoutError,
    BodyTooLargeError,
    ConflictError,
    DeadlineError,
    ForbiddenError,
    InvalidRequestError,
    ModelNotFoundError,
    NotKeptError,
    NotReadyError,
    RateLimitedError,
    StoreFullError,
    UnauthorizedError,
    UnknownAnswerError,
)
from serve.jobs.parts import JobParts
from serve.jobs.router import jobs_router
from serve.monitor.monitor import Monitor
from serve.observe.metrics import ServeMetrics
from serve.residency.residency import Residency
from serve.routing.shadow import Shadow
from serve.supervisor import Supervisor

_COMPLETION_ERRORS = (
    InvalidRequestError,
    BodyTimeoutError,
    BodyTooLargeError,
    UnauthorizedError,
    ModelNotFoundError,
    AdapterRefusedError,
    RateLimitedError,
    NotReadyError,
    DeadlineError,
)
_FEEDBACK_ERRORS = (
    InvalidRequestError,
    BodyTimeoutError,
    BodyTooLargeError,
    UnauthorizedError,
    UnknownAnswerError,
    ConflictError,
    RateLimitedError,
    NotReadyError,
    StoreFullError,
)


@dataclass(frozen=True)
class Parts:
    """The components of the application.

    `background` is kept running beside the engine's supervisor; `monitor` is None where there is none. Without `jobs`,
    files and jobs are not served. `begin_drain` ends what would keep a stopping server.
    """

    engine: Engine
    store: AdapterStore
    models: ModelCards
    residency: Residency
    completions: Completions
    keys: KeyRing
    shadow: Shadow
    metrics: ServeMetrics
    supervisor: Supervisor
    rules: WebRules
    access: ModelAccess
    monitor: Monitor | None = None
    background: Sequence[Loop] = ()
    jobs: JobParts | None = None
    begin_drain: Callable[[], None] = lambda: None


def create_app(parts: Parts, on_failure: Callable[[BaseException], None] = lambda error: None) -> FastAPI:
    """The application; the engine starts with it, in the background, and stops with it.

    Args:
        on_failure: Called where there will never be an engine, with the reason.
    """
    app = DescribedApp(
        title="Lorikeet", lifespan=_lifespan(parts, on_failure), docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.bodies = parts.completions.bodies
    app.state.authenticate = partial(_client, parts)
    app.state.admin = AdminParts(parts.store, parts.residency, parts.engine, parts.monitor)
    app.state.jobs = parts.jobs
    _add_completion_routes(app, parts)
    _add_feedback_route(app, parts)
    _add_model_routes(app, parts)
    _add_health_routes(app, parts)
    app.add_middleware(Guard, rules=parts.rules, refused=parts.metrics.key_refused)
    app.add_middleware(CloseUnread)  # the last one is the outermost: also around what the guard refuses
    for router in (*([jobs_router] if parts.jobs else []), admin_router):
        app.router.routes.extend(router.routes)  # `include_router` would build each of them again
    add_error_handlers(app)
    return app


def _lifespan(parts: Parts, on_failure: Callable[[BaseException], None]) -> Any:
    async def supervise() -> None:
        try:
            await parts.supervisor.run()
        except Exception as error:  # whatever it is, nobody else would hear of it: boundary
            on_failure(error)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(supervise())]
        tasks += [asyncio.create_task(keep_running(loop, parts.metrics.failures)) for loop in parts.background]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await parts.shadow.stop()
            await parts.supervisor.stop()

    return lifespan


def _client(parts: Parts, request: Request) -> KeyRecord:
    try:
        return parts.keys.authenticate(request.headers.get("authorization"))
    except UnauthorizedError as error:
        parts.metrics.key_refused(error)
        raise


def _add_completion_routes(app: FastAPI, parts: Parts) -> None:
    def described(endpoint: Endpoint) -> dict[str, Any]:
        body = completion_body(endpoint, parts.completions.limits)
        return {"responses": completion_answer() | errors(*_COMPLETION_ERRORS), "openapi_extra": body}

    @app.post("/v1/chat/completions", **described("chat/completions"))
    async def chat_completions(request: Request) -> Response:
        return await parts.completions.answer("chat/completions", request, _client(parts, request))

    @app.post("/v1/completions", **described("completions"))
    async def completions(request: Request) -> Response:
        return await parts.completions.answer("completions", request, _client(parts, request))

    @app.post("/v1/responses", **described("responses"))
    async def responses(request: Request) -> Response:
        return await parts.completions.answer("responses", request, _client(parts, request))

    @app.get("/v1/responses/{response_id}", status_code=404, responses=errors(UnauthorizedError, NotKeptError))
    def response(response_id: str, request: Request) -> None:
        _client(parts, request)
        raise NotKeptError


def _add_feedback_route(app: FastAPI, parts: Parts) -> None:
    route = FeedbackRoute(parts.completions.bodies, parts.completions.tenants, parts.monitor)

    @app.post("/v1/feedback", responses=errors(*_FEEDBACK_ERRORS), openapi_extra=model_body(FeedbackBody))
    async def feedback(request: Request) -> FeedbackAnswer:
        return await route.take(request, _client(parts, request))


def _add_model_routes(app: FastAPI, parts: Parts) -> None:
    @app.get("/v1/models", responses=errors(UnauthorizedError))
    def models(request: Request) -> ModelList:
        tenant = _client(parts, request)
        return parts.models.all(lambda name: parts.access.may_use(tenant, name))

    @app.get("/v1/models/{reference}", responses=errors(UnauthorizedError, ModelNotFoundError))
    def model(reference: Annotated[str, Path(json_schema_extra={"pattern": "^[^/]+$"})], request: Request) -> ModelCard:
        tenant = _client(parts, request)
        return parts.models.one(reference, lambda name: parts.access.may_use(tenant, name))


def _add_health_routes(app: FastAPI, parts: Parts) -> None:
    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", responses=errors(NotReadyError))
    def ready() -> dict[str, str]:
        if not parts.engine.is_ready:
            raise NotReadyError("The engine is starting or has stopped; see the server's log.")
        return {"status": "ready"}

    @app.get(
        "/metrics",
        response_class=Response,
        responses=errors(UnauthorizedError, ForbiddenError) | METRICS_ANSWER,
        dependencies=[Depends(require_admin)],
    )
    def metrics() -> Response:
        return metrics_answer(parts.metrics)
