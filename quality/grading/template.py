"""Texts with `{{ item.field }}` and `{{ sample.output_text }}`, filled in without evaluating anything."""

import json
import re
from collections.abc import Mapping
from typing import Any

_PLACE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PATH = re.compile(r"(item|sample)((?:\.\w+|\[\d+\]|\[(?:'[^']*'|\"[^\"]*\")\])+)")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|\['([^']*)'\]|\[\"([^\"]*)\"\]")
_SAMPLE = ("output_text", "output_json")


class TemplateError(ValueError):
    """A placeholder that names nothing."""


def check_template(text: str) -> str:
    """Check that each placeholder is a path into `item` or `sample`.

    Raises:
        ValueError: One is not.
    """
    for place in _PLACE.findall(text):
        root, steps = _path(place)
        if root == "sample" and (not steps or steps[0] not in _SAMPLE):
            raise ValueError(f"{{{{{place}}}}} must begin with sample.output_text, sample.output_json or item.")
    return text


def render(text: str, item: Mapping[str, Any], output: str) -> str:
    """The text with its placeholders filled in; what is no text is written as JSON.

    Raises:
        TemplateError: A field of `item` or of the answer's JSON is missing.
    """
    return _PLACE.sub(lambda place: _filled(place.group(1), item, output), text)


def missing_fields(text: str, item: Mapping[str, Any]) -> list[str]:
    """Placeholders of `item` that a row has no value for."""
    missing = []
    for place in _PLACE.findall(text):
        root, steps = _path(place)
        try:
            if root == "item":
                _value(item, steps, place)
        except TemplateError:
            missing.append(place.strip())
    return missing


def _filled(place: str, item: Mapping[str, Any], output: str) -> str:
    root, steps = _path(place)
    value = _value(item, steps, place) if root == "item" else _of_answer(output, steps, place)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _of_answer(output: str, steps: list[str | int], place: str) -> Any:
    if steps[0] == "output_text":
        return output
    try:
        parsed = json.loads(output)
    except (ValueError, RecursionError):
        raise TemplateError(f"{{{{{place}}}}}: the answer is not JSON") from None
    return _value(parsed, steps[1:], place)


def _path(place: str) -> tuple[str, list[str | int]]:
    found = _PATH.fullmatch(place.strip())
    if found is None:
        raise ValueError(f"{{{{{place}}}}} must be a path such as item.reference_answer or sample.output_text")
    return found[1], [int(s[2]) if s[2] else s[1] or s[3] or s[4] for s in _STEP.finditer(found[2])]


def _value(value: Any, steps: list[str | int], place: str) -> Any:
    for step in steps:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            raise TemplateError(f"{{{{{place}}}}} is missing") from None
    return value
