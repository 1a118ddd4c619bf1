"""Linear-time regular expressions for JSON Schema, replacing jsonschema's own."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from jsonschema import ValidationError
from jsonschema.validators import extend

from quality.patterns import LinearPattern


def check_patterns(schema: Any) -> None:
    """Check that every pattern of a schema can be matched in linear time.

    Raises:
        re.error: A pattern cannot.
    """
    pending = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            by_pattern = node.get("patternProperties")
            names = list(by_pattern) if isinstance(by_pattern, dict) else []
            if names and isinstance(node.get("unevaluatedProperties"), dict | bool):
                raise re.error("`patternProperties` beside `unevaluatedProperties`: use `additionalProperties`")
            for pattern in [*names, node.get("pattern")]:
                if isinstance(pattern, str):
                    LinearPattern(pattern)
        pending += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


@lru_cache(maxsize=16)
def in_linear_time(validator_class: Any) -> Any:
    """The same dialect of JSON Schema, with its three keywords that hold patterns replaced."""
    extended: Any = extend  # of no type
    return extended(
        validator_class,
        {
            "pattern": _pattern,
            "patternProperties": _pattern_properties,
            "additionalProperties": _additional_properties,
        },
    )


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not LinearPattern(pattern).is_in(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, by_pattern: dict[str, Any], instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, subschema in by_pattern.items():
        for name, value in instance.items():
            if LinearPattern(pattern).is_in(name):
                yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, subschema: Any, instance: Any, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    patterns = [LinearPattern(pattern) for pattern in schema.get("patternProperties", ())]
    for name, value in instance.items():
        if name not in schema.get("properties", ()) and not any(pattern.is_in(name) for pattern in patterns):
            if subschema is False:
                yield ValidationError(f"Additional properties are not allowed ({name!r} was unexpected)")
            else:
                yield from validator.descend(value, subschema, path=name)
