"""Limits of structured outputs: schemas, patterns and grammars, one by one and in total."""

import json
from collections.abc import Iterator
from typing import Any

from config.limits import RequestLimits
from serve.errors import InvalidRequestError
from serve.limits.documents import as_number, check_depth, objects, shown, texts, too_much
from serve.limits.grammar_cost import BOUNDS, GrammarBudget, node_cost, pattern_cost

TOOLS = ("tools", "functions")
SCHEMAS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
_EMBEDDED_JSON = frozenset({"json", "structural_tag", "guided_json"})
_PATTERNS = frozenset({"pattern", "regex", "whitespace_pattern", "guided_regex"})
_SWITCHED = {
    "regex": "a free regular expression",
    "guided_regex": "a free regular expression",
    "grammar": "a client-defined grammar",
    "guided_grammar": "a client-defined grammar",
    "structural_tag": "a structural tag",
}
"""Refused unless enabled in `limits`: some inputs take seconds per token."""


def check_schemas(body: dict[str, Any], limits: RequestLimits) -> None:
    """Refuse schemas and grammars that are too large, cost too much together, or are not switched on.

    Raises:
        InvalidRequestError: As `check_limits`.
    """
    budget = GrammarBudget(limits.max_grammar_cost)
    for field, schema in _schemas(body):
        _check_schema(field, schema, limits, budget)
    _check_switched_on(body, limits)


def _schemas(body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Everything that becomes a grammar, with the field's name."""
    for field in SCHEMAS:
        yield field, body.get(field)
    if isinstance(text := body.get("text"), dict):
        yield "text.format", text.get("format")
    for field in TOOLS:
        if isinstance(tools := body.get(field), list):
            yield from ((f"{field}.{number}", tool) for number, tool in enumerate(tools))


def _check_schema(field: str, schema: Any, limits: RequestLimits, budget: GrammarBudget) -> None:
    if not schema:
        return
    size_bytes = len(json.dumps(schema))
    if size_bytes > limits.max_schema_bytes:
        raise too_much(field, f"has {size_bytes} bytes", limits.max_schema_bytes)
    for document in (schema, *_embedded(field, schema)):
        check_depth(field, document, limits.max_schema_depth)
        for node in objects({field: document}):
            _check_repeats(field, node, limits.max_schema_repeats)
            budget.spend(field, node_cost(node))
            for pattern in _patterns(node):
                budget.spend(field, _checked_cost(field, pattern, limits.max_pattern_chars))
            for grammar in _grammars(node):
                budget.spend(field, max(len(grammar), pattern_cost(grammar).size))


def _embedded(field: str, schema: Any) -> Iterator[Any]:
    """Schemas that stand in a schema as text; vLLM says what is wrong with text that is no JSON."""
    named = schema.items() if isinstance(schema, dict) else ((field, schema),)
    for name, text in named:
        if name in _EMBEDDED_JSON and isinstance(text, str):
            try:
                yield json.loads(text)
            except ValueError:
                continue
            except RecursionError:
                raise InvalidRequestError(f"`{field}` is nested too deeply to be read.", param=field) from None


def _check_repeats(field: str, node: dict[str, Any], most: int) -> None:
    for name in BOUNDS.intersection(node):
        value = as_number(node[name])
        if value is not None and value > most:
            raise too_much(field, f"has a `{name}` of {shown(value)}", most)


def _patterns(node: dict[str, Any]) -> Iterator[str]:
    for name in _PATTERNS.intersection(node):
        if isinstance(node[name], str):
            yield node[name]
    if isinstance(by_pattern := node.get("patternProperties"), dict):
        yield from by_pattern


def _grammars(node: dict[str, Any]) -> Iterator[str]:
    """Grammars in EBNF or Lark, whose repetitions are written as those of patterns."""
    return (node[name] for name in ("grammar", "guided_grammar") if isinstance(node.get(name), str))


def _checked_cost(field: str, pattern: str, most: int) -> int:
    """What a regular expression costs, which is not too much for one."""
    if len(pattern) > most:
        raise too_much(field, f"has a regular expression of {len(pattern)} characters", most)
    cost = pattern_cost(pattern)
    if cost.repeats_nothing:
        raise InvalidRequestError(
            f"`{field}` has a regular expression that repeats a group that may be empty, as `(a?)*` does, so a "
            f"text matches in any number of ways: {pattern[:80]!r}. Write it as `a*`.",
            param=field,
        )
    if cost.size > most:
        got = f"has a regular expression of {shown(cost.size)} characters with its repetitions expanded"
        raise too_much(field, got, most)
    return max(cost.size, len(pattern) // 8)


def _check_switched_on(body: dict[str, Any], limits: RequestLimits) -> None:
    switches = {
        "regex": limits.allow_regex,
        "grammar": limits.allow_grammar,
        "structural_tag": limits.allow_structural_tag,
    }
    for field, schema in _schemas(body):
        named = schema if isinstance(schema, dict) else {field: schema}
        found = {name for name in _SWITCHED if named.get(name)}.union(texts(named.get("type"))).intersection(_SWITCHED)
        for name in sorted(found):
            switch = name.removeprefix("guided_")
            if not switches[switch]:
                raise InvalidRequestError(
                    f"`{field}` contains {_SWITCHED[name]} (`{name}`), which this server does not accept. Send a JSON "
                    f"schema or `choice`, or have the operator set `limits.allow_{switch}`.",
                    param=field,
                )
