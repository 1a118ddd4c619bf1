"""Metrics of one answer beside the expected one: equality, fields, spans, format, refusals, tool calls, numbers."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from quality.metrics.item import Item, Kind, LeftOut, ToolUse
from quality.patterns import LinearPattern
from quality.scorers import AnswerFormat, is_exact_match

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+−]?\.\d+")


@dataclass(frozen=True)
class ByItem:
    """A metric whose figure is the mean of a function of each item; the function may refuse an item."""

    name: str
    of: Callable[[Item], float | LeftOut]
    kind: Kind = "share"
    higher_is_better: bool = True
    bounds: tuple[float, float] | None = (0.0, 1.0)

    def scores(self, items: Sequence[Item]) -> list[float | LeftOut]:
        return [self._score(item) for item in items]

    def value(self, items: Sequence[Item], scores: Sequence[float]) -> float:
        return fmean(scores)

    def _score(self, item: Item) -> float | LeftOut:
        try:
            return self.of(item)
        except RecursionError:  # a model may well write a thousand brackets
            return 0.0


def exact_match() -> ByItem:
    """1 for the same JSON value or, if either is not JSON, the same stripped text."""
    return ByItem("exact_match", lambda item: float(is_exact_match(item.answer, item.expected)))


def json_fields() -> ByItem:
    """Share of the fields of both JSON values, by path, that are equal; 0 for an answer that is not JSON."""
    return ByItem("json_fields", _json_fields, "mean")


def span_f1() -> ByItem:
    """F1 of the values in JSON answers, by key and without order: `{"drugs": ["a", "b"]}` has two spans.

    A value counts once for each time that it occurs. Two answers without any span agree fully.
    """
    return ByItem("span_f1", _span_f1, "mean")


def token_f1() -> ByItem:
    """F1 of the words of two texts, without case, order and punctuation (as SQuAD's; articles count)."""
    return ByItem("token_f1", lambda item: _f1(Counter(_words(item.answer)), Counter(_words(item.expected))), "mean")


def valid_format(answer_format: AnswerFormat) -> ByItem:
    """1 for an answer that the domain's schema and pattern accept."""
    return ByItem("valid_format", lambda item: float(answer_format.accepts(item.answer)))


def refusal(text: str) -> ByItem:
    """1 for an out-of-scope question that is refused, and for another one that is not.

    Slices `scope` tell both errors apart: what is answered and should not be, what is refused and should not be.
    """
    return ByItem("refusal", lambda item: float(is_exact_match(item.answer, text) != item.in_scope))


def tool_calls() -> ByItem:
    """1 if the same tools are called with the same arguments, in any order."""
    return ByItem("tool_calls", _tool_calls)


def regex(pattern: str) -> ByItem:
    """1 if the whole stripped answer matches (RE2 syntax)."""
    compiled = LinearPattern(pattern)
    return ByItem("regex", lambda item: float(compiled.is_whole(item.answer.strip())))


def numeric(tolerance: float, relative: float) -> ByItem:
    """1 if the last number of the answer is that of the expected answer, within absolute or relative tolerance."""

    def close(item: Item) -> float | LeftOut:
        wanted, found = last_number(item.expected), last_number(item.answer)
        if wanted is None:
            return LeftOut("the expected answer has no number")
        return float(found is not None and math.isclose(found, wanted, rel_tol=relative, abs_tol=tolerance))

    return ByItem("numeric", close)


def length() -> ByItem:
    """Words of the answer; neither more nor fewer are better by themselves."""
    return ByItem("length", lambda item: float(len(item.answer.split())), "mean", False, None)


def last_number(text: str) -> float | None:
    """The last number of a text; commas group digits."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("−", "-")) if found else None


def _json_fields(item: Item) -> float | LeftOut:
    wanted = _parsed(item.expected)
    if wanted is None:
        return LeftOut("the expected answer is not JSON")
    found = _parsed(item.answer)
    if found is None:
        return 0.0
    expected, answered = dict(_leaves(wanted[0])), dict(_leaves(found[0]))
    paths = expected.keys() | answered.keys()
    same = sum(path in expected and path in answered and expected[path] == answered[path] for path in paths)
    return same / len(paths) if paths else 1.0


def _span_f1(item: Item) -> float | LeftOut:
    wanted = _parsed(item.expected)
    if wanted is None:
        return LeftOut("the expected answer is not JSON")
    found = _parsed(item.answer)
    return 0.0 if found is None else _f1(_spans(found[0]), _spans(wanted[0]))


def _tool_calls(item: Item) -> float:
    def of(calls: Sequence[Any]) -> Counter[str]:
        return Counter(json.dumps([call.name, _plain(call.arguments)], sort_keys=True) for call in calls)

    return float(of(item.calls) == of(item.expected_calls))


def _f1(found: Counter[Any], wanted: Counter[Any]) -> float:
    if not found and not wanted:
        return 1.0
    common = sum((found & wanted).values())
    return 2 * common / (sum(found.values()) + sum(wanted.values()))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _parsed(text: str) -> tuple[Any] | None:
    try:
        return (json.loads(text, parse_constant=_refuse),)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, canonical value) of each leaf; an empty list or object is a leaf."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{path}/{key}")
    elif isinstance(value, list) and value:
        for number, part in enumerate(value):
            yield from _leaves(part, f"{path}/{number}")
    else:
        yield path, json.dumps(_plain(value), sort_keys=True)


def _spans(value: Any, path: str = "") -> Counter[tuple[str, str]]:
    """Values by the keys that lead to them, whatever their place in a list."""
    if isinstance(value, dict):
        return sum((_spans(part, f"{path}/{key}") for key, part in value.items()), Counter())
    if isinstance(value, list):
        return sum((_spans(part, path) for part in value), Counter())
    return Counter([(path, json.dumps(_plain(value)))])


def _plain(value: Any) -> Any:
    """A JSON value in which 1.0 is 1, as JSON's numbers are one kind."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def tool_use(name: object, arguments: object) -> ToolUse:
    """A call as a model wrote it: arguments as JSON text; anything but an object counts as `{"": text}`."""
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        parsed = None
    return ToolUse(str(name), parsed if isinstance(parsed, dict) else {"": str(arguments)})
