"""vLLM's errors in our own words: nobody outside of this package knows the others."""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.v1.engine.exceptions import EngineDeadError

from serve.errors import EngineRequestError, EngineStartError, InvalidRequestError, NotReadyError, ServeError


def invalid_request(error: ValidationError) -> InvalidRequestError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or None
    return InvalidRequestError(f"{where or 'The request'}: {first['msg']}", param=where)


def engine_request_error(response: ErrorResponse) -> EngineRequestError:
    return EngineRequestError(response.error.message, response.error.code, response.error.param)


def engine_is_dead() -> NotReadyError:
    return NotReadyError("The engine is not running; try again in a minute.")


@contextmanager
def errors_in_our_words() -> Iterator[None]:
    """Raises ServeError for whatever is raised within."""
    try:
        yield
    except ServeError:
        raise
    except EngineDeadError:
        raise engine_is_dead() from None
    except Exception as error:  # boundary: vLLM passes on whatever its processes raise
        raise engine_request_error(create_error_response(error)) from error


@contextmanager
def refused_configurations() -> Iterator[None]:
    """Raises EngineStartError for what vLLM refuses by its configuration: another start would end likewise."""
    try:
        yield
    except ValueError as error:  # pydantic's too
        first = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else str(error)
        reason = first.removeprefix("Value error, ").strip().partition("\n")[0]
        raise EngineStartError(f"vLLM cannot serve this base with these settings: {reason}") from error
