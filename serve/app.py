"""The HTTP application: an allow-list of OpenAI's routes, health and metrics, and one table from error to status."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from starlette.exceptions import HTTPException

from serve.disconnect import run_until_disconnect
from serve.engine.protocol import Endpoint, Engine
from serve.errors import InvalidRequestError, ModelNotFoundError, NotReadyError, ServeError
from serve.metrics import ServeMetrics
from serve.resolver import Resolved, Resolver, ServedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What the application is made of."""

    engine: Engine
    resolver: Resolver
    metrics: ServeMetrics
    max_body_bytes: int


def create_app(parts: Parts) -> FastAPI:
    """The application; the engine starts with it, in the background, and stops with it."""
    app = FastAPI(title="Lorikeet", lifespan=_lifespan(parts), docs_url=None, redoc_url=None)
    _add_completion_routes(app, parts)
    _add_model_routes(app, parts)
    _add_operator_routes(app, parts)
    app.add_exception_handler(ServeError, _answer_serve_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(Exception, _answer_bug)
    return app


def _lifespan(parts: Parts) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(_start_engine(parts))
        try:
            yield
        finally:
            parts.metrics.ready.set(0)
            starting.cancel()
            await parts.engine.stop()

    return lifespan


async def _start_engine(parts: Parts) -> None:
    start = time.perf_counter()
    try:
        await parts.engine.start()
    except Exception:
        logger.exception("The engine did not start; /ready stays 503. Mend the cause above and start again.")
        return
    seconds = time.perf_counter() - start
    parts.metrics.engine_start_seconds.set(seconds)
    parts.metrics.ready.set(1)
    logger.info("Ready after %.1f s", seconds)


def _add_completion_routes(app: FastAPI, parts: Parts) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await _complete(parts, "chat/completions", request)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _complete(parts, "completions", request)

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        return await _complete(parts, "responses", request)


def _add_model_routes(app: FastAPI, parts: Parts) -> None:
    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_card(model) for model in parts.resolver.models()]}

    @app.get("/v1/models/{reference}")
    def model(reference: str) -> dict[str, Any]:
        for served in parts.resolver.models():
            if served.reference == reference:
                return _model_card(served)
        raise ModelNotFoundError(f"The model {reference[:80]!r} does not exist. GET /v1/models lists what does.")


def _add_operator_routes(app: FastAPI, parts: Parts) -> None:
    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    def ready() -> dict[str, str]:
        if not parts.engine.is_ready:
            raise NotReadyError("The engine is starting or gone; see the server's log.")
        return {"status": "ready"}

    @app.get("/metrics")
    def metrics() -> Response:
        own, engine = generate_latest(parts.metrics.registry), generate_latest(REGISTRY)
        return Response(own + engine, media_type=CONTENT_TYPE_LATEST)


async def _complete(parts: Parts, endpoint: Endpoint, request: Request) -> Response:
    """Answer one request: read, resolve, make resident, let the engine answer."""
    request_id = request.headers.get("x-request-id") or uuid4().hex
    served_name: str | None = None
    try:
        body = await _read_body(request, parts.max_body_bytes)
        if not parts.engine.is_ready:
            raise NotReadyError("The server is starting; ask /ready, or try again in a minute.")
        resolved = await parts.resolver.resolve(body.get("model"))
        served_name = resolved.served_name
        body["model"] = served_name
        answer = await run_until_disconnect(request, parts.engine.answer(endpoint, body, request))
    except ServeError as error:
        outcome = "client_error" if error.status < 500 else "server_error"
        parts.metrics.request_finished(served_name, endpoint, outcome)
        return _error_response(error, {"x-request-id": request_id})
    if answer is None:
        parts.metrics.request_finished(served_name, endpoint, "cancelled")
        return Response(status_code=499)  # nobody reads it: the client has gone
    headers = {**resolved.headers, "x-request-id": request_id}
    if isinstance(answer.body, dict):
        parts.metrics.request_finished(served_name, endpoint, "ok")
        return JSONResponse(answer.body, headers=headers)
    stream = _counted(answer.body, parts.metrics, resolved, endpoint)
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def _counted(
    stream: AsyncGenerator[str, None], metrics: ServeMetrics, resolved: Resolved, endpoint: Endpoint
) -> AsyncGenerator[str, None]:
    outcome = "cancelled"
    try:
        async with aclosing(stream):
            async for event in stream:
                yield event
        outcome = "ok"
    finally:
        metrics.request_finished(resolved.served_name, endpoint, outcome)


async def _read_body(request: Request, max_bytes: int) -> dict[str, Any]:
    """The JSON object of a request; read in pieces, so that a large one is refused before it is in memory."""
    received = bytearray()
    async for piece in request.stream():
        received += piece
        if len(received) > max_bytes:
            raise InvalidRequestError(f"The body is larger than {max_bytes} bytes.")
    try:
        body = json.loads(received)
    except (ValueError, RecursionError):
        raise InvalidRequestError("The body is not JSON.") from None
    if not isinstance(body, dict):
        raise InvalidRequestError(f"The body must be a JSON object, not {type(body).__name__}.")
    return body


def _model_card(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.reference,
        "object": "model",
        "created": 0,
        "owned_by": "lorikeet",
        "root": str(model.target) if model.target else model.reference,
    }


def _error_response(error: ServeError, headers: dict[str, str] | None = None) -> JSONResponse:
    body = {"message": str(error), "type": error.type, "param": error.param, "code": error.code}
    return JSONResponse({"error": body}, error.status, headers)


async def _answer_serve_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServeError)
    return _error_response(error)


async def _answer_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    body = {
        "message": f"{request.method} {request.url.path[:80]}: {error.detail}",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    return JSONResponse({"error": body}, error.status_code)


async def _answer_validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _error_response(InvalidRequestError(str(error.errors()[0]["msg"])))


async def _answer_bug(_: Request, error: Exception) -> JSONResponse:
    logger.error("Unexpected error", exc_info=error)
    return _error_response(ServeError("Something went wrong in the server; its log says what."))
