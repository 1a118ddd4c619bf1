"""Bodies of administration requests, and errors in OpenAI's format."""

import json
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from typing_extensions import TypedDict

from serve.api.bodies import BodyReader
from serve.errors import BodyTimeoutError, BodyTooLargeError, InvalidRequestError, ServeError

logger = logging.getLogger(__name__)

ModelT = TypeVar("ModelT", bound=BaseModel)

_MAX_ID_CHARS = 80
_ADMIN = "/admin"
"""Tenant name for administration bodies; no tenant can have it, so none can block an operator."""


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(TypedDict):
    """OpenAI's error object."""

    error: ErrorDetail


def body_reader(model: type[ModelT], max_bytes: int) -> Callable[[Request], Awaitable[ModelT]]:
    """A dependency that reads a small body by the application's `state.bodies`.

    FastAPI itself would read all of it, and before the key is checked. `Guard` has checked its media type.
    """

    async def read(request: Request) -> ModelT:
        bodies: BodyReader = request.app.state.bodies
        return validated(model, await bodies.read(request, _ADMIN, max_bytes=max_bytes))

    return read


def validated(model: type[ModelT], body: Any) -> ModelT:
    """A body as a model.

    Raises:
        RequestValidationError: It is none, as FastAPI itself would raise it.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise RequestValidationError([each | {"loc": ("body", *each["loc"])} for each in error.errors()]) from None


def request_id(request: Request) -> str:
    """The client's request id if it is short, printable ASCII; else a new one."""
    given = request.headers.get("x-request-id", "")
    is_plain = 0 < len(given) <= _MAX_ID_CHARS and given.isascii() and given.isprintable()
    return given if is_plain else uuid4().hex


def error_body(error: ServeError) -> ErrorAnswer:
    return {"error": {"message": str(error), "type": error.type, "param": error.param, "code": error.code}}


def error_response(error: ServeError, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as an answer, with `Retry-After` where waiting helps."""
    more = dict(headers or {})
    if error.retry_after_s is not None:
        more["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        more["www-authenticate"] = "Bearer"
    if isinstance(error, BodyTooLargeError | BodyTimeoutError):
        more["connection"] = "close"  # what is still to come of the body is not read
    return JSONResponse(error_body(error), error.status, more)


def error_event(error: ServeError) -> str:
    """An error in a stream that has begun."""
    return f"data: {json.dumps(error_body(error))}\n\ndata: [DONE]\n\n"


def add_error_handlers(app: FastAPI) -> None:
    """Map errors to responses; tracebacks and paths never reach a client."""
    app.add_exception_handler(ServeError, _answer_serve_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(ClientDisconnect, _answer_disconnected)
    app.add_exception_handler(Exception, _answer_bug)


async def _answer_serve_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServeError)
    return error_response(error)


async def _answer_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:80]}: {error.detail}"
    body: ErrorDetail = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": body}, error.status_code, error.headers)


async def _answer_validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return error_response(InvalidRequestError(f"{place}: {first['msg']}"))


async def _answer_disconnected(_: Request, error: Exception) -> Response:
    return Response(status_code=499)


def unexpected_error() -> ServeError:
    """The error sent to a client for a bug; it has no details."""
    return ServeError("Internal server error; see the server's log.")


async def _answer_bug(request: Request, error: Exception) -> JSONResponse:
    logger.error("Unexpected error", exc_info=error)
    return error_response(unexpected_error(), {"x-request-id": request_id(request)})
