"""Scorers of one answer: exact match and format validity."""

import json
from typing import Any, NoReturn

from jsonschema.validators import validator_for
from referencing import Registry

from quality.patterns import LinearPattern
from quality.schema_patterns import check_patterns, in_linear_time

_MAX_PATTERN_CHARS = 2000  # of what a pattern matches as a whole


class _NotJsonError(ValueError):
    """The text is not a JSON value."""


def is_exact_match(answer: str, expected: str) -> bool:
    """Whether both are the same JSON value, or, if either is not JSON, the same stripped text.

    Key order and white space do not count; `1` equals `1.0`, and `true` does not equal `1`.
    """
    try:
        return _is_same_json(_parse_json(answer), _parse_json(expected))
    except _NotJsonError:
        return answer.strip() == expected.strip()


class AnswerFormat:
    """A domain's answer format: one JSON value that its JSON schema accepts, and text that its pattern matches as a
    whole; without both, any text.

    Raises:
        jsonschema.SchemaError: The schema itself is broken.
        re.error: The pattern is, or one in the schema; or it cannot be matched in linear time.
    """

    def __init__(self, schema: dict[str, Any] | None, pattern: str | None = None) -> None:
        self._pattern = LinearPattern(pattern) if pattern is not None else None
        self._validator = None
        if schema is None:
            return
        validator_class = validator_for(schema)
        validator_class.check_schema(schema)
        check_patterns(schema)
        # An empty registry: a `$ref` must never make us fetch something.
        self._validator = in_linear_time(validator_class)(schema, registry=Registry())

    def accepts(self, answer: str) -> bool:
        """Whether the stripped answer matches the format; without a format, whether it is not empty."""
        text = answer.strip()
        if self._pattern is not None and (len(text) > _MAX_PATTERN_CHARS or not self._pattern.is_whole(text)):
            return False
        if self._validator is None:
            return bool(text) or self._pattern is not None
        try:
            return bool(self._validator.is_valid(_parse_json(answer)))
        except _NotJsonError:
            return False


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # a model may well write ten thousand brackets
        raise _NotJsonError(str(error)) from error


def _refuse_constant(constant: str) -> NoReturn:
    raise _NotJsonError(f"{constant} is not valid JSON")  # Python would read NaN and Infinity


def _is_same_json(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_is_same_json(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_is_same_json, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right)
