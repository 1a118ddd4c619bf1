"""Remove empty stop strings: OpenAI's clients send them, vLLM refuses them."""

from typing import Any


def without_empty_stops(body: dict[str, Any]) -> dict[str, Any]:
    """The field `stop` without `""` and null, null where nothing is left of it; no field where there are none of them.

    So an empty string counts as left out, as null does; an empty list stays what the client sent.
    """
    stop = body.get("stop")
    if stop == "":
        return {"stop": None}
    if not isinstance(stop, list) or not any(_is_empty(entry) for entry in stop):
        return {}
    return {"stop": [entry for entry in stop if not _is_empty(entry)] or None}


def _is_empty(entry: Any) -> bool:
    return entry is None or entry == ""
