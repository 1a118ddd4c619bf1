"""One answered question, and what a metric is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class ToolUse:
    """A call of a tool: its name, and its arguments as an object."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """One held-out question with an answer to it.

    Attributes:
        id: Names the item in reports.
        in_scope: False: the right answer is the domain's refusal.
        slices: Values that figures are split by.
        context: Turns before and after the question, for a judge and for people; "" if there are none.
    """

    id: str
    question: str
    expected: str
    answer: str
    in_scope: bool = True
    expected_calls: tuple[ToolUse, ...] = ()
    calls: tuple[ToolUse, ...] = ()
    slices: Mapping[str, str] = field(default_factory=dict)
    context: str = ""

    @property
    def prompt(self) -> str:
        """All that was asked."""
        return f"{self.context}\n\n{self.question}" if self.context else self.question

    @property
    def whole_answer(self) -> str:
        """Text and tool calls, as a judge and people read them."""
        return _with_calls(self.answer, self.calls)

    @property
    def whole_expected(self) -> str:
        return _with_calls(self.expected, self.expected_calls)


def _with_calls(text: str, calls: Sequence[ToolUse]) -> str:
    lines = [json.dumps({"name": c.name, "arguments": dict(c.arguments)}, ensure_ascii=False) for c in calls]
    return "\n".join([text, *lines] if text else lines)


@lru_cache(maxsize=4096)  # a bootstrap asks for each of them a thousand times
def label(text: str) -> str:
    """The class that a text names: without outer white space, case or a final full stop."""
    return " ".join(text.casefold().split()).removesuffix(".")


@dataclass(frozen=True)
class LeftOut:
    """Why a metric has no score for an item."""

    reason: str


Kind = Literal["share", "mean", "corpus"]
"""`share`: each score is 0 or 1. `mean`: scores are averaged. `corpus`: the figure is not a mean of scores."""


class Metric(Protocol):
    """A way to score answers."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def higher_is_better(self) -> bool: ...

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest score; None: unbounded."""
        ...

    def scores(self, items: Sequence[Item]) -> list[float | LeftOut]:
        """One score an item, in order."""
        ...

    def value(self, items: Sequence[Item], scores: Sequence[float]) -> float:
        """The figure of items that have scores."""
        ...
