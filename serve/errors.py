"""Errors of the server, each with its HTTP status and OpenAI's `type` and `code`.

ServeError                                      500  server_error
├── InvalidRequestError    (ValueError)         400  invalid_request_error
├── ModelNotFoundError     (LookupError)        404  model_not_found
├── AdapterRefusedError    (RuntimeError)       422  adapter_refused: it does not do what it was trained to do
├── EngineRequestError                          as vLLM says
└── NotReadyError          (RuntimeError)       503  starting, draining, or the engine is gone
"""


class ServeError(Exception):
    """Anything that the server answers with an error."""

    status = 500
    type = "server_error"
    code: str | None = None
    param: str | None = None


class InvalidRequestError(ServeError, ValueError):
    """A body that is no request."""

    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ModelNotFoundError(ServeError, LookupError):
    """No such base, adapter, version or alias."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"
    param = "model"


class AdapterRefusedError(ServeError, RuntimeError):
    """A published version that this server will not answer with, and why."""

    status = 422
    type = "invalid_request_error"
    code = "adapter_refused"
    param = "model"


class EngineRequestError(ServeError):
    """What vLLM said of a request that it did not take."""

    def __init__(self, message: str, status: int, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.type = "invalid_request_error" if status < 500 else "server_error"
        self.param = param


class NotReadyError(ServeError, RuntimeError):
    """The engine is starting, stopping or dead."""

    status = 503
    type = "server_error"
    code = "not_ready"
