"""Log formats (human or JSON lines), and the log line of each request."""

import hashlib
import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from serve.records import AnsweredRequest, GenerationRecord, RequestContext

logger = logging.getLogger(__name__)

LogFormat = Literal["human", "json"]

_HUMAN = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_CHATTY = ("httpx", "watchfiles")
_encode = json.JSONEncoder().encode

logged_request: ContextVar[RequestContext | None] = ContextVar("logged_request", default=None)
"""The request that a task works for. Only log lines read it, and nothing is passed on by it."""


def set_up_logging(level: str, log_format: LogFormat) -> None:
    """Log to stderr from here on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(_HUMAN))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """One JSON object a line; a line that is written for a request says which."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        context = logged_request.get()
        if context is not None:
            line |= _who(context)
        if isinstance(request := getattr(record, "request", None), AnsweredRequest):
            line |= _request_fields(request)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


def log_request(record: AnsweredRequest) -> None:
    """One line per answered request: what it was, how it ended, where its time went; never its text or its key."""
    logger.info(
        "%d %s %s by %s in %.3f s, request %s",
        record.status,
        record.reason or record.outcome,
        record.endpoint,
        record.served_name or "no model",
        record.duration_s,
        record.context.request_id,
        extra={"request": record},
    )


def tenant_hash(tenant: str) -> str:
    """What logs call a tenant: `printf %s TENANT | sha256sum | cut -c 1-12`."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:12]


def _who(context: RequestContext) -> dict[str, str]:
    return {"request_id": context.request_id, "tenant": tenant_hash(context.tenant)}


def _request_fields(record: AnsweredRequest) -> dict[str, Any]:
    context = record.context
    adapter, _, version = (record.served_name or "").partition("@")
    return {
        **_who(context),
        "endpoint": record.endpoint,
        "adapter": adapter or None,
        "version": int(version) if version else None,
        "status": record.status,
        "outcome": record.outcome,
        "reason": record.reason,
        "is_cold": context.is_cold,
        "duration_s": _rounded(record.duration_s),
        **{f"{phase}_s": _rounded(seconds) for phase, seconds in context.phases_s.items()},
        **(_generation_fields(record.generation) if record.generation else {}),
    }


def _generation_fields(record: GenerationRecord) -> dict[str, Any]:
    phases = ("queue_s", "prefill_s", "decode_s", "ttft_s")
    return {
        **{phase: _rounded(getattr(record, phase)) for phase in phases},
        "num_prompt_tokens": record.num_prompt_tokens,
        "num_cached_tokens": record.num_cached_tokens,
        "num_completion_tokens": record.num_completion_tokens,
        "finish_reasons": record.finish_reasons,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
