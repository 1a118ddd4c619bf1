"""Fill omitted request fields with the defaults of the version that answers. Pure functions.

What the client sends always wins; null counts as left out, as for vLLM. Two kinds of request take fewer defaults:

- With tools, `ignore_eos` or a response format of its own: no length, stop strings or schema, which fit another kind of
  answer. Plain text, OpenAI's default format, only excludes the schema.
- With several answers (`n`, `best_of`): no temperature 0, at which vLLM gives one.
"""

from dataclasses import dataclass
from typing import Any

from adapters.errors import InvalidAdapterError
from adapters.store.manifest import RequestDefaults
from config.limits import RequestLimits
from config.serve import ServeConfig
from serve.engine.protocol import Endpoint
from serve.errors import InvalidRequestError
from serve.limits.limits import answer_length, check_limits, default_length
from serve.limits.schemas import SCHEMAS, TOOLS

_SYSTEM_ROLES = ("system", "developer")
_OWN_SHAPE = (*SCHEMAS, *TOOLS, "ignore_eos")
_ANSWERS = ("n", "best_of")


@dataclass(frozen=True)
class AnswerLengths:
    """Tokens of an answer: where neither request nor version names a length, and the most that a version may give."""

    default: int
    most: int

    @classmethod
    def of(cls, config: ServeConfig) -> "AnswerLengths":
        return cls(config.limits.default_max_tokens, min(config.limits.max_tokens, config.max_model_len))


@dataclass(frozen=True)
class Filled:
    """A whole request, and which of the version's defaults it took."""

    body: dict[str, Any]
    names: tuple[str, ...]


def fill_defaults(
    body: dict[str, Any], endpoint: Endpoint, defaults: RequestDefaults | None, lengths: AnswerLengths
) -> Filled:
    """A copy of a checked request with the version's defaults, then with the server's own length."""
    taken = {} if defaults is None else _taken(body, endpoint, defaults, lengths)
    filled = dict(body)
    for fields in taken.values():
        filled |= fields
    return Filled(filled | default_length(filled, endpoint, lengths.default), tuple(taken))


def check_defaults(defaults: RequestDefaults, limits: RequestLimits) -> None:
    """Hold a version's defaults to what a client may send; its length is cut instead, request by request.

    Raises:
        InvalidAdapterError: Naming the default, what it is, and the limit.
    """
    fields = defaults.given
    fields.pop("max_tokens", None)
    messages = [{"role": "system", "content": fields.pop("system", "")}]
    try:
        check_limits({"messages": messages, **fields}, "chat/completions", limits)
    except InvalidRequestError as error:
        raise InvalidAdapterError(f"its request defaults exceed what a request may ask for: {error}") from None


def _taken(
    body: dict[str, Any], endpoint: Endpoint, defaults: RequestDefaults, lengths: AnswerLengths
) -> dict[str, dict[str, Any]]:
    """The fields that each default adds, by its name; only those that add one."""
    added = {
        "system": _system(body, endpoint, defaults.system),
        "temperature": _temperature(body, defaults.temperature),
        "top_p": _absent(body, "top_p", defaults.top_p),
    }
    if not _has_own_shape(body):
        added |= {
            "max_tokens": _length(body, endpoint, defaults.max_tokens, lengths.most),
            "stop": _stop(body, defaults.stop),
            "response_format": _response_format(body, endpoint, defaults.response_format),
        }
    return {name: fields for name, fields in added.items() if fields}


def _absent(body: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    return {} if value is None or body.get(field) is not None else {field: value}


def _system(body: dict[str, Any], endpoint: Endpoint, system: str | None) -> dict[str, Any]:
    messages = body.get("input" if endpoint == "responses" else "messages")
    if system is None or endpoint == "completions" or _has_system(messages):
        return {}
    if endpoint == "responses":
        return _absent(body, "instructions", system)
    if not isinstance(messages, list) or not messages:
        return {}  # no conversation: vLLM refuses it
    return {"messages": [{"role": "system", "content": system}, *messages]}


def _has_system(messages: Any) -> bool:
    turns = messages if isinstance(messages, list) else ()
    return any(isinstance(turn, dict) and turn.get("role") in _SYSTEM_ROLES for turn in turns)


def _temperature(body: dict[str, Any], temperature: float | None) -> dict[str, Any]:
    asks_for_several = any(body.get(field) not in (None, 1) for field in _ANSWERS)
    return {} if temperature == 0 and asks_for_several else _absent(body, "temperature", temperature)


def _has_own_shape(body: dict[str, Any]) -> bool:
    shapes = (*(body.get(field) for field in _OWN_SHAPE), _text_format(body))
    return any(shape and not _is_plain_text(shape) for shape in shapes)


def _text_format(body: dict[str, Any]) -> Any:
    text = body.get("text")
    return text.get("format") if isinstance(text, dict) else None


def _is_plain_text(response_format: Any) -> bool:
    return isinstance(response_format, dict) and response_format.get("type") == "text"


def _length(body: dict[str, Any], endpoint: Endpoint, max_tokens: int | None, most: int) -> dict[str, Any]:
    """Nothing beside `min_tokens`, which may be more."""
    return {} if max_tokens is None or body.get("min_tokens") else answer_length(body, endpoint, min(max_tokens, most))


def _stop(body: dict[str, Any], stop: tuple[str, ...]) -> dict[str, Any]:
    """The strings, and that they stay in the answer: training keeps them, vLLM by itself cuts them off."""
    added = _absent(body, "stop", list(stop) or None)
    return added and added | _absent(body, "include_stop_str_in_output", True)


def _response_format(body: dict[str, Any], endpoint: Endpoint, response_format: Any) -> dict[str, Any]:
    if any(map(_is_plain_text, (body.get("response_format"), _text_format(body)))):
        return {}
    if endpoint != "responses" or response_format is None:
        return _absent(body, "response_format", response_format)
    text = body.get("text")
    flat = {"type": response_format["type"], **response_format["json_schema"]}
    return {"text": (text or {}) | {"format": flat}} if text is None or isinstance(text, dict) else {}
