"""Scorers of one answer: right or not, in the agreed format or not."""

import json
from typing import Any, NoReturn

from jsonschema.validators import validator_for
from referencing import Registry


class _NotJsonError(ValueError):
    """The text is no JSON value."""


def is_exact_match(answer: str, expected: str) -> bool:
    """Whether both are the same JSON value, or, where either is no JSON, the same stripped text.

    Key order and white space do not count; `1` equals `1.0`, and `true` does not equal `1`.
    """
    try:
        return _is_same_json(_parse_json(answer), _parse_json(expected))
    except _NotJsonError:
        return answer.strip() == expected.strip()


class AnswerFormat:
    """A domain's answer format: one JSON value that its JSON schema accepts; without a schema, any text.

    Raises:
        jsonschema.SchemaError: The schema itself is broken.
    """

    def __init__(self, schema: dict[str, Any] | None) -> None:
        self._validator = None
        if schema is None:
            return
        validator_class = validator_for(schema)
        validator_class.check_schema(schema)
        # An empty registry: a `$ref` must never make us fetch something.
        self._validator = validator_class(schema, registry=Registry())

    def accepts(self, answer: str) -> bool:
        """Whether the whole answer is such a value, or, without a schema, not blank."""
        if self._validator is None:
            return bool(answer.strip())
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
    raise _NotJsonError(f"{constant} is no JSON")  # Python would read NaN and Infinity


def _is_same_json(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_is_same_json(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_is_same_json, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right)
