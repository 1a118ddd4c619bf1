"""JSON that every reader understands alike: no key twice, no NaN, no infinity."""

import json
from collections import Counter
from typing import Any


def load_json(content: bytes) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError: No JSON, a key twice in one object, or a number that is none.
        RecursionError: Nested too deeply.
    """
    return json.loads(content, object_pairs_hook=_unique, parse_constant=_refuse)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:80]!r} stands twice")
    return entries


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")
