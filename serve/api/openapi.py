"""Schemas of `/openapi.json` for bodies, errors and keys, derived from the server's own limits and errors.

A completion's body is described by its main fields, with the bounds of this server, and by the fields that it refuses.
Whatever else it holds goes to vLLM, which knows OpenAI's other fields and judges them.
"""

import copy
from functools import cache
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter

from adapters.reference import NAME_PATTERN
from config.limits import RequestLimits
from serve.api.responses import ErrorAnswer
from serve.engine.protocol import Endpoint
from serve.errors import ForeignHostError, MediaTypeError, NotReadyError, RateLimitedError, ServeError
from serve.limits.limits import LOGPROBS, REFUSED_FIELDS, largest_numbers, most_entries

Schema = dict[str, Any]

NAME: Schema = {"pattern": f"^{NAME_PATTERN}$"}
REFERENCE: Schema = {"pattern": f"^{NAME_PATTERN}(@[a-z0-9-]+)?$"}
"""`json_schema_extra` of a parameter. Not enforced: what is no name is a 404, as an unknown name is."""

_BOOLEAN: Schema = {"type": ["boolean", "null"]}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_NUMBER: Schema = {"type": ["integer", "null"]}
_TEXT: Schema = {"type": ["string", "null"]}
_MESSAGE: Schema = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string"},
        "content": {"type": ["string", "array", "null"], "items": {"type": "object"}, "description": "Text only."},
    },
}
_TOOL: Schema = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
    },
}
_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, `lk-…`. A server without keys listens on loopback only and requires none.",
}
_ERROR_CONTENT: Schema = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
_ERROR_SCHEMAS: Schema = TypeAdapter.json_schemas(
    [("error", "serialization", TypeAdapter(ErrorAnswer))], ref_template="#/components/schemas/{model}"
)[1]["$defs"]
"""Written once: a `model` of `responses` FastAPI would build again for each error of each route."""
_RETRY_AFTER = {"retry-after": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
_ANSWER_HEADERS = {
    "x-lorikeet-adapter": "The adapter version that answered, or the base model's name.",
    "x-lorikeet-digest": "SHA-256 digest of the version's files.",
    "x-lorikeet-cold": "1 if this request waited for its adapter to load.",
    "x-request-id": "The client's request id, or a generated one.",
}
_DEFAULTS_HEADER: Schema = {
    "x-lorikeet-defaults": {
        "description": "Fields filled in from the version's request defaults, as `system,temperature`; absent if there "
        "were none.",
        "schema": {"type": "string"},
    }
}

METRICS_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Metrics in Metrics in Prometheus' text format.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}
"""`responses` of the route that is scraped."""


class DescribedApp(FastAPI):
    """An application that describes its errors as it sends them, not as FastAPI would."""

    def openapi(self) -> dict[str, Any]:
        described = super().openapi()
        components = described["components"]
        components["schemas"] |= _ERROR_SCHEMAS
        components["securitySchemes"] = {"key": _KEY}
        operations = [operation for path in described["paths"].values() for operation in path.items()]
        for method, operation in operations:
            answers = operation["responses"]
            if "HTTPValidationError" in str(answers.get("422")):
                del answers["422"]  # a 400 here, in OpenAI's shape
            if "401" in answers:
                operation["security"] = [{"key": []}]
            answers.setdefault("403", _refusal(ForeignHostError))
            if method == "post":
                answers["415"] = _refusal(MediaTypeError)
            for content in operation.get("requestBody", {}).get("content", {}).values():
                components["schemas"] |= content["schema"].pop("$defs", {})  # where `model_body` refers to
        for unused in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(unused, None)
        return described


def _refusal(kind: type[ServeError]) -> Schema:
    """Response of `Guard`, on any route."""
    return {"description": kind.__doc__, "content": _ERROR_CONTENT}


def errors(*kinds: type[ServeError]) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that raises these."""
    return {kind.status: _error(kind) for kind in kinds}


def completion_answer() -> dict[int | str, dict[str, Any]]:
    """`responses` of a completion that succeeds: one JSON object, or events where `stream` is true."""
    answer: Schema = {"type": "object", "required": ["model"], "properties": {"model": {"type": "string"}}}
    headers = {
        name: {"description": text, "required": True, "schema": {"type": "string"}}
        for name, text in _ANSWER_HEADERS.items()
    } | _DEFAULTS_HEADER
    content = {"application/json": {"schema": answer}, "text/event-stream": {"schema": {}}}
    return {200: {"description": "OpenAI's response, produced by vLLM.", "headers": headers, "content": content}}


def completion_body(endpoint: Endpoint, limits: RequestLimits) -> dict[str, Any]:
    """`openapi_extra` of a completion's route."""
    fields = {name: field | _bounds(name, limits) for name, field in _fields(endpoint, limits).items()}
    prompt = next(iter(fields))
    return _body({"type": "object", "required": ["model", prompt], "properties": fields | _refused_fields()})


def model_body(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is a model."""
    return _body(copy.deepcopy(_schema_of(model)))


@cache
def _schema_of(model: type[BaseModel]) -> Schema:
    return model.model_json_schema(ref_template="#/components/schemas/{model}")


def _error(kind: type[ServeError]) -> dict[str, Any]:
    headers = {"headers": _RETRY_AFTER} if kind in (RateLimitedError, NotReadyError) else {}
    return {"description": kind.__doc__ or kind.__name__, "content": _ERROR_CONTENT} | headers


def _body(schema: Schema) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _fields(endpoint: Endpoint, limits: RequestLimits) -> dict[str, Schema]:
    """The main fields of a request, the prompt first."""
    text: Schema = {"type": "string", "minLength": 1, "maxLength": limits.max_prompt_chars}
    stop: Schema = {"type": ["string", "null"], "maxLength": limits.max_stop_chars}
    token_ids = _list({"type": "integer", "minimum": 0}, limits.max_prompt_chars)
    prompts = [text, token_ids, *(_list(prompt, limits.max_prompts) for prompt in (text, token_ids))]
    of_endpoint: dict[Endpoint, dict[str, Schema]] = {
        "chat/completions": {
            "messages": _list(_MESSAGE, limits.max_messages),
            **dict.fromkeys(("max_tokens", "max_completion_tokens", "top_logprobs"), _NUMBER),
            "n": _COUNT,
            "logprobs": _BOOLEAN,
            "tools": _list(_TOOL, limits.max_tools),
        },
        "completions": {
            "prompt": {"anyOf": prompts},
            **dict.fromkeys(("max_tokens", "logprobs"), _NUMBER),
            "n": _COUNT,
        },
        "responses": {
            "input": {"anyOf": [text, _list({"type": "object"}, limits.max_messages)]},
            "instructions": _TEXT,
            **dict.fromkeys(("max_output_tokens", "top_logprobs"), _NUMBER),
        },
    }
    return of_endpoint[endpoint] | {
        "model": {
            "type": "string",
            "description": "`medical`, `medical@3`, `medical@canary`, or the base model's name.",
        },
        "stream": _BOOLEAN,
        "stop": {"anyOf": [stop, _list(stop, limits.max_stop)], "description": "Empty strings and null are ignored."},
        "logit_bias": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
        "user": _TEXT | {"description": "Requests with the same user stay on the same side of a canary split."},
    }


def _list(items: Schema, most: int) -> Schema:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


def _bounds(field: str, limits: RequestLimits) -> Schema:
    """What `check_limits` holds a field to. Each of these keywords speaks of its own type only."""
    numbers, entries = largest_numbers(limits), most_entries(limits)
    bounds: Schema = {"maximum": numbers[field]} if field in numbers else {}
    if field in LOGPROBS:
        bounds["minimum"] = 0
    if field in entries:
        bounds |= {"maxItems": entries[field], "maxProperties": entries[field]}
    return bounds


def _refused_fields() -> dict[str, Schema]:
    return {name: {"not": {}, "description": f"Refused: {why}."} for name, why in REFUSED_FIELDS.items()}
