"""Strict JSON: no NaN, no duplicate keys, no half surrogate pairs; faults in words.

Python's own parser accepts all three. Jiter refuses them and is faster, but says little about the reason: a text that
it refuses is parsed again by Python's parser to find it.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import jiter

_SURROGATE = re.compile("[\ud800-\udfff]")


class JsonError(Exception):
    """A text that is not strict JSON."""

    def __init__(self, found: str, wanted: str, field: str = "") -> None:
        super().__init__(found)
        self.found = found
        self.wanted = wanted
        self.field = field


def parse_json(content: bytes) -> Any:
    """The value of a UTF-8 JSON text.

    Raises:
        JsonError: It is not strict JSON.
        UnicodeDecodeError: It is not UTF-8.
    """
    try:
        value = jiter.from_json(content, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as error:
        raise _explained(content, str(error)) from None
    if not _is_finite(value):  # jiter reads 1e999 as infinity
        refuse_infinite(value)
    return value


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def refuse_infinite(value: Any, where: str = "") -> None:
    """Raise `JsonError` if a number inside is NaN or infinite."""
    for path, leaf in leaves(value, where):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            found = "NaN" if math.isnan(leaf) else "Infinity, or a number too large for a float"
            raise JsonError(found, "a finite number or null", _ascii(path))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All keys and values inside that are neither object nor list, each with its path (`a.b[0]`)."""
    stack = [(path, value)]
    while stack:
        where, node = stack.pop()
        if isinstance(node, dict):
            yield from ((where, key) for key in node)
            stack += [(f"{where}.{key}" if where else str(key), child) for key, child in node.items()]
        elif isinstance(node, list):
            stack += [(f"{where}[{index}]", child) for index, child in enumerate(node)]
        else:
            yield where, node


def _explained(content: bytes, message: str) -> JsonError:
    """The reason why jiter refused a text."""
    try:
        value = json.loads(content.decode(), object_pairs_hook=_without_duplicates)
        refuse_infinite(value)
    except JsonError as fault:
        return fault
    except UnicodeDecodeError:
        raise
    except json.JSONDecodeError as error:
        return JsonError(f"text that is not JSON ({error.msg} at column {error.colno})", "one JSON value")
    except (ValueError, RecursionError):
        return JsonError(f"JSON that cannot be read ({message})", "values of usual size and nesting")
    for path, leaf in leaves(value):
        if isinstance(leaf, str) and (half := _SURROGATE.search(leaf)):
            return JsonError(
                f"half of a surrogate pair (\\u{ord(half.group()):04x})", "complete characters", _ascii(path)
            )
    return JsonError(f"JSON that cannot be read ({message})", "one JSON value")


def _ascii(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for key, value in pairs:
        if key in keys:
            raise JsonError("two values for one key", "each key once", _ascii(key))
        keys[key] = value
    return keys
