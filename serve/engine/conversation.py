"""The conversation that a request asks to be answered, where it is one of text."""

from typing import Any

from quality.samples.records import Turn
from serve.engine.protocol import Endpoint

_ROLES = ("system", "developer", "user", "assistant")
_TEXT_PARTS = ("text", "input_text", "output_text")


def text_turns(endpoint: Endpoint, body: dict[str, Any]) -> tuple[Turn, ...]:
    """Its turns; () where one has more than text, where there are tools, and for a plain completion.

    The body need not be valid: vLLM judges it afterwards.
    """
    if endpoint == "completions" or body.get("tools"):
        return ()
    given = body.get("messages" if endpoint == "chat/completions" else "input")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        return ()
    if body.get("instructions"):
        given = [{"role": "system", "content": body["instructions"]}, *given]
    turns = [_turn(each) for each in given]
    return tuple(turn for turn in turns if turn is not None) if all(turns) else ()


def _turn(given: Any) -> Turn | None:
    if not isinstance(given, dict) or given.get("role") not in _ROLES or given.get("tool_calls"):
        return None
    content = given.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") in _TEXT_PARTS]
        content = "".join(map(str, parts)) if len(parts) == len(content) else None
    return Turn(given["role"], content) if isinstance(content, str) else None
