"""Traverse the parsed JSON of a request. Nothing here recurses, so no body can exhaust the stack."""

from collections.abc import Iterator
from typing import Any

from serve.errors import InvalidRequestError

CONTAINERS = (dict, list)
_MAX_NUMBER_CHARS = 5000  # pydantic reads no number of more than 4,300


def check_depth(field: str, value: Any, most: int) -> None:
    depth = sum(1 for _ in levels(value))
    if depth > most:
        raise too_much(field, f"nests {depth} levels deep", most)


def levels(value: Any) -> Iterator[list[Any]]:
    """The objects and lists of a document, level by level."""
    level = [value] if isinstance(value, CONTAINERS) else []
    while level:
        yield level
        level = [child for node in level for child in children(node) if isinstance(child, CONTAINERS)]


def children(node: Any) -> Any:
    return node.values() if isinstance(node, dict) else node


def all_children(value: Any) -> Iterator[Any]:
    """Every entry of every list and object in a document."""
    return (child for level in levels(value) for node in level for child in children(node))


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a document."""
    return (node for level in levels(value) for node in level if isinstance(node, dict))


def count_chars(value: Any) -> int:
    """Characters of all text in a document, names included; anything else counts as one, and so does an empty text."""
    if isinstance(value, str):
        return len(value)
    num_chars = 0
    for level in levels(value):
        for node in level:
            num_chars += sum(map(len, node)) if isinstance(node, dict) else 0
            num_chars += sum((len(child) or 1) if isinstance(child, str) else 1 for child in children(node))
    return num_chars


def count_values(value: Any) -> int:
    """Entries of all lists and objects in a document."""
    return sum(len(node) for level in levels(value) for node in level)


def count_entries(value: Any) -> int:
    """Entries of all lists in a document."""
    return sum(len(node) for level in levels(value) for node in level if isinstance(node, list))


def texts(value: Any) -> Iterator[str]:
    """Of a text or of a list of texts, as clients may write `stop`."""
    entries = value if isinstance(value, list) else (value,)
    return (entry for entry in entries if isinstance(entry, str))


def as_number(value: Any) -> float | None:
    """What vLLM's validation would read as a number; None where it would not. Booleans are no numbers here."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) <= _MAX_NUMBER_CHARS:
        try:
            return float(value)
        except ValueError:
            return None
    return None


def shown(value: float) -> str:
    """A number, shortened if it is huge."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if abs(value) < 10**18 else "over 10**18"


def too_much(field: str, got: str, most: int) -> InvalidRequestError:
    return InvalidRequestError(f"`{field}` {got}; this server accepts at most {most}.", param=field)
