"""Estimate the cost of a grammar in linear time, without compiling it.

Measured with xgrammar 0.2.8: properties, alternatives and repeated items are cheap; patterns cost the square of their
length, and those that can read one text in many ways cost ever more with each token of the answer.
"""

import re
from dataclasses import dataclass
from typing import Any

from serve.errors import InvalidRequestError
from serve.limits.documents import shown

_OPEN = r"\((?:\?(?:P?<\w{0,64}>|<?[=!]|[a-zA-Z-]{0,8}:|>))?"
_TOKEN = re.compile(rf"\\.|{_OPEN}|\{{\d*(?:,\d*)?\}}|.", re.DOTALL)
_NUMBER = re.compile(r"\d+")
_REPEATS = frozenset("?*+")
_ANCHORS = frozenset(("^", "$", r"\b", r"\B"))

_UNBOUNDED_TIMES = 16
"""What `*` and `+` count for around something that itself varies in length."""
_AMBIGUITY = 3
_LARGEST = 10**18

_BOUND_COST = 4
_NAMED_PARTS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_ALTERNATIVES = ("enum", "anyOf", "oneOf", "allOf", "prefixItems", "choice", "type")
BOUNDS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})


class GrammarBudget:
    """Cost budget of all grammars of a request."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._spent = 0

    def spend(self, field: str, cost: int) -> None:
        """Count a part.

        Raises:
            InvalidRequestError: All that was counted is too much.
        """
        self._spent += cost
        if self._spent > self._most:
            raise InvalidRequestError(
                f"`{field}` brings the cost of the request's grammars (properties, alternatives, bounds and expanded "
                f"patterns) to {shown(self._spent)}; this server accepts at most {self._most}.",
                param=field,
            )


@dataclass
class PatternCost:
    """`size` is characters, a class as one, repetitions written out; what can be read in many ways counts more."""

    size: int
    repeats_nothing: bool
    """It repeats a group that may be empty, as `(a?)*`: each text can be read in any number of ways."""


def node_cost(node: dict[str, Any]) -> int:
    """Of one object of a JSON schema, without its patterns and what is below it."""
    parts = sum(len(node[name]) for name in _NAMED_PARTS if isinstance(node.get(name), dict))
    alternatives = sum(len(node[name]) for name in _ALTERNATIVES if isinstance(node.get(name), list))
    return parts + alternatives + _BOUND_COST * len(BOUNDS.intersection(node))


@dataclass
class _Item:
    """A part of an expression; `num_varying` counts what varies in length within it."""

    size: int = 0
    num_varying: int = 0
    can_be_empty: bool = False
    is_group: bool = False
    is_repeated: bool = False


class _Group:
    """An open group: what stands in it, of which the last item may still be repeated."""

    def __init__(self) -> None:
        self._sum = _Item()
        self._is_branch_empty = True
        self.last: _Item | None = None

    def add(self, item: _Item) -> None:
        if self.last is not None:
            self._sum.size += self.last.size
            self._sum.num_varying += self.last.num_varying
            self._is_branch_empty &= self.last.can_be_empty
        self.last = item

    def next_branch(self) -> None:
        self.add(_Item(1, can_be_empty=True))
        self._sum.can_be_empty |= self._is_branch_empty
        self._is_branch_empty = True

    def closed(self) -> _Item:
        self.add(_Item())
        can_be_empty = self._sum.can_be_empty or self._is_branch_empty
        return _Item(self._sum.size, self._sum.num_varying, can_be_empty, is_group=True)


def pattern_cost(pattern: str) -> PatternCost:
    """What a regular expression costs; one that is none costs about its length."""
    groups, is_class, repeats_nothing = [_Group()], False, False
    for token in _TOKEN.findall(pattern):
        last = groups[-1].last
        if is_class:
            is_class = token != "]"
        elif token == "[":
            is_class = True
            groups[-1].add(_Item(1))
        elif token[0] == "(":
            groups.append(_Group())
        elif token == ")":
            closed = groups.pop().closed() if len(groups) > 1 else _Item(1)
            groups[-1].add(_Item(2, can_be_empty=True))
            groups[-1].add(closed)
        elif token == "|":
            groups[-1].next_branch()
        elif last is not None and (token in _REPEATS or (token[0] == "{" and len(token) > 2)):
            groups[-1].last = _repeated(last, token)
            repeats_nothing |= last.is_group and last.can_be_empty and _most_times(token) > 1
        else:
            groups[-1].add(_Item(1, can_be_empty=token in _ANCHORS))
    return PatternCost(sum(group.closed().size for group in groups), repeats_nothing)


def _repeated(item: _Item, token: str) -> _Item:
    """An item with its quantifier: `?`, `*`, `+` or `{2,50}`."""
    if item.is_repeated and token in _REPEATS:
        return item  # `*?` and `*+` repeat nothing more
    numbers = _NUMBER.findall(token)
    most = _most_times(token)
    times = most if numbers else 1  # `x*` is written out as it is
    if item.num_varying and most > 1:
        times = most * _AMBIGUITY * (1 + item.num_varying) ** 2
    varies = token[0] != "{" or "," in token
    return _Item(
        min(item.size * times, _LARGEST) + (token in _REPEATS),
        item.num_varying + varies,
        item.can_be_empty or token in ("?", "*") or token.startswith(("{,", "{0")),
        item.is_group,
        is_repeated=True,
    )


def _most_times(quantifier: str) -> int:
    """How often an item comes at most; an estimate where there is no end."""
    if quantifier == "?":
        return 1
    is_endless = quantifier[0] != "{" or quantifier.endswith(",}")
    return max(1, _UNBOUNDED_TIMES * is_endless, *(int(number[:9]) for number in _NUMBER.findall(quantifier)))
