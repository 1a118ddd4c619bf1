"""Errors of the server, each with its HTTP status and OpenAI's `type` and `code`.

ServeError                                      500  server_error
├── InvalidRequestError    (ValueError)         400  invalid_request_error
│   ├── BodyTooLargeError                       413  body_too_large
│   ├── BodyTimeoutError   (TimeoutError)       408  body_timeout: received too slowly
│   └── GrammarError                            400  grammar_refused: the requested grammar costs too much
├── UnauthorizedError      (PermissionError)    401  invalid_api_key: missing, malformed, unknown or revoked
├── ForbiddenError         (PermissionError)    403  insufficient_permissions
│   ├── ForeignHostError                        403  host_not_allowed: sent to a host name that is not this server's
│   └── CrossSiteError                          403  cross_site: sent by another site's web page
├── MediaTypeError         (ValueError)         415  unsupported_media_type: the content type is not JSON
├── ModelNotFoundError     (LookupError)        404  model_not_found
├── NotKeptError           (LookupError)        404  response_not_found: responses are not stored
├── UnknownAnswerError     (LookupError)        404  answer_not_found: feedback on no sampled answer of the key
├── ConflictError          (RuntimeError)       409  an administration request conflicts with the current state
├── AdapterRefusedError    (RuntimeError)       422  adapter_refused: the adapter failed a check
│   ├── ParityError                             422  its answers differ from those measured in training
│   ├── NotFiniteError                          422  its logits are NaN or infinite
│   └── QuarantinedError                        422  quarantined until an operator lifts it
├── BaseNotFiniteError     (ArithmeticError)    500  the base model's logits are NaN or infinite
├── RateLimitedError       (RuntimeError)       429  rate_limit_exceeded: over a key's limit, or queued for too long
├── EngineRequestError                          as vLLM says
├── StoreFullError         (OSError)            507  insufficient_storage: the adapter store's disk takes no more
├── NotReadyError          (RuntimeError)       503  starting, draining, or the engine has stopped
│   └── AdapterUnavailableError                 503  a version that cannot be loaded now, for a transient reason
└── DeadlineError          (TimeoutError)       504  the answer exceeded the request timeout

EngineStartError           (RuntimeError)       ends the server: its engine never started
AddressError               (OSError)            ends the server: another program listens on its port

What the adapter store says to an operator (`answer_of_store`):

AdapterNotFoundError, InvalidReferenceError     404  ModelNotFoundError
StoreDiskError                                  507  StoreFullError
every other AdapterError                        409  ConflictError

A version that fails the store's checks while it is loaded is an AdapterRefusedError, by residency/refusals.py.
"""

from adapters.errors import AdapterError, AdapterNotFoundError, InvalidReferenceError, StoreDiskError


class ServeError(Exception):
    """Base class of errors sent to a client."""

    status = 500
    type = "server_error"
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None

    @property
    def reason(self) -> str:
        """Label for metrics and logs, from a small fixed set."""
        return self.code or self.type


class InvalidRequestError(ServeError, ValueError):
    """An invalid request."""

    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BodyTooLargeError(InvalidRequestError):
    """A body over the limit. It was not read completely, so the connection is closed after the response."""

    status = 413
    code = "body_too_large"

    def __init__(self, got: str, most: int) -> None:
        super().__init__(f"The body has {got} bytes; this server accepts at most {most}. Send less in one request.")


class BodyTimeoutError(InvalidRequestError, TimeoutError):
    """A body that was not received in time. The connection is closed after the response."""

    status = 408
    code = "body_timeout"


class GrammarError(InvalidRequestError):
    """A schema or grammar that is none, or that takes too long to compile or to hold an answer to."""

    code = "grammar_refused"


class UnauthorizedError(ServeError, PermissionError):
    """A request without a valid API key."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class ForbiddenError(ServeError, PermissionError):
    """A valid key without the required permission."""

    status = 403
    type = "invalid_request_error"
    code = "insufficient_permissions"


class ForeignHostError(ForbiddenError):
    """A request to a host name that is not this server's, as DNS rebinding sends it."""

    code = "host_not_allowed"


class CrossSiteError(ForbiddenError):
    """A request that another site's web page made a browser send."""

    code = "cross_site"


class MediaTypeError(ServeError, ValueError):
    """A body whose content type is not JSON."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class ModelNotFoundError(ServeError, LookupError):
    """Unknown base, adapter, version or alias."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"
    param = "model"


class NotKeptError(ServeError, LookupError):
    """A stored response was requested; responses are not stored."""

    status = 404
    type = "invalid_request_error"
    code = "response_not_found"

    def __init__(self) -> None:
        super().__init__(
            "This server does not store responses, so none can be retrieved by its id. Keep what you need on "
            "the client, and send the earlier turns as `input`."
        )


class UnknownAnswerError(ServeError, LookupError):
    """Feedback on an answer that is not among the key's sampled answers."""

    status = 404
    type = "invalid_request_error"
    code = "answer_not_found"

    def __init__(self, answer_id: str) -> None:
        super().__init__(
            f"No sampled answer of this key has the request or response id {answer_id[:80]!r}. Only the sampled share "
            "of the answers is stored (`quality.sample_rate`, `quality.reservoir`), until retention deletes it."
        )


class ConflictError(ServeError, RuntimeError):
    """An administration request that conflicts with the current state."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class StoreFullError(ServeError, OSError):
    """The disk of the adapter store is full, over its quota or read-only; nothing was changed."""

    status = 507
    type = "server_error"
    code = "insufficient_storage"


def answer_of_store(error: AdapterError) -> ModelNotFoundError | StoreFullError | ConflictError:
    """The answer to an operator whose request the adapter store refuses."""
    if isinstance(error, (AdapterNotFoundError, InvalidReferenceError)):
        return ModelNotFoundError(str(error))
    if isinstance(error, StoreDiskError):
        return StoreFullError(str(error))
    return ConflictError(str(error))


class AdapterRefusedError(ServeError, RuntimeError):
    """A published version that failed a check."""

    status = 422
    type = "invalid_request_error"
    code = "adapter_refused"
    param = "model"


class ParityError(AdapterRefusedError):
    """A version whose answers differ from those measured in training."""


class NotFiniteError(AdapterRefusedError):
    """A version that computed NaN or infinity instead of log-probabilities."""

    def __init__(self, lora_name: str) -> None:
        super().__init__(
            f"{lora_name!r} computes values that are not finite (NaN or infinity): its weights overflow. Use "
            "another version, and retrain or re-import this adapter."
        )
        self.lora_name = lora_name


class QuarantinedError(AdapterRefusedError):
    """A version that computed non-finite values and is still quarantined."""


class BaseNotFiniteError(ServeError, ArithmeticError):
    """The base model itself computed NaN or infinity."""

    code = "not_finite"

    def __init__(self) -> None:
        super().__init__("The base model computed values that are not finite (NaN or infinity). Retry the request.")


def not_finite_error(lora_name: str | None) -> NotFiniteError | BaseNotFiniteError:
    """Of a version, or of the base model."""
    return BaseNotFiniteError() if lora_name is None else NotFiniteError(lora_name)


class RateLimitedError(ServeError, RuntimeError):
    """A limit is exceeded; the same request may succeed after `retry_after_s` seconds.

    Args:
        reason: What there is too much of: a key's `requests`, `tokens` or `concurrency`, or the server's `queue_full`,
            `queue_timeout` or `bodies`.
    """

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retry_after_s: float

    def __init__(self, message: str, retry_after_s: float, reason: str) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self._reason = reason

    @property
    def reason(self) -> str:
        return self._reason


class EngineRequestError(ServeError):
    """vLLM's own refusal of a request."""

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
    retry_after_s = 5.0


class AdapterUnavailableError(NotReadyError):
    """A version that could not be loaded for a transient reason; the load is retried."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(ServeError, TimeoutError):
    """An answer that exceeded the request timeout."""

    status = 504
    type = "server_error"
    code = "deadline_exceeded"


class EngineStartError(RuntimeError):
    """The engine never started, and is not retried."""


class AddressError(OSError):
    """An address that this server cannot listen on."""
