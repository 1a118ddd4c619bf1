"""Strict JSON: no duplicate keys, NaN or infinity."""

import json
from collections import Counter
from typing import Any


def load_json(content: bytes) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError: Invalid JSON, a duplicate key, NaN or infinity.
        RecursionError: Nested too deeply.
    """
    return json.loads(content, object_pairs_hook=_unique, parse_constant=_refuse)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:80]!r} occurs twice")
    return entries


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")
