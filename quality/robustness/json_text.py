"""Perturb the string values of a JSON text; keys, numbers and layout stay, so that it is JSON afterwards."""

import json
import re
from collections.abc import Callable

_STRING = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?')


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or list."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def with_each_value(text: str, change: Callable[[str], str]) -> str:
    """The JSON text with each string value changed."""
    return _STRING.sub(lambda found: found.group() if found.group(2) else _changed(found.group(1), change), text)


def with_longest_value(text: str, change: Callable[[str], str]) -> str:
    """The JSON text with its longest string value changed; as it is if it has none."""
    values = [found for found in _STRING.finditer(text) if not found.group(2)]
    if not values:
        return text
    longest = max(values, key=lambda found: len(found.group(1)))
    start, end = longest.span(1)
    return text[:start] + _changed(longest.group(1), change) + text[end:]


def _changed(literal: str, change: Callable[[str], str]) -> str:
    value = json.loads(literal, strict=False)
    changed = change(value)
    return literal if changed == value else json.dumps(changed, ensure_ascii=False)
