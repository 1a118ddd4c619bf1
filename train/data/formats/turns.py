"""Turns of a conversation, in OpenAI's words (`role`, `content`) or ShareGPT's (`from`, `value`)."""

from collections.abc import Sequence
from typing import Any, Literal

from config.dataset import FunctionCall, Message, ToolCall
from train.data.examples import Example
from train.data.formats.row import NoAnswerError, SourceRow

Role = Literal["system", "developer", "user", "assistant", "tool"]

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_CALLS = ("function_call", "tool_call")
_TURNS_WANTED = 'a list of turns such as {"role": "user", "content": "…"}'


def turns_in(row: SourceRow, name: str) -> list[Message]:
    """The turns in a column."""
    turns = row.items(name, _TURNS_WANTED)
    if not turns:
        raise row.fault(name, turns, "at least one turn")
    return [parse_turn(row, f"{name}[{index}]", name, turn) for index, turn in enumerate(turns)]


def parse_turn(row: SourceRow, where: str, column: str, turn: Any) -> Message:
    """One turn.

    Args:
        where: Its place for messages, as `messages[2]`.
        column: The column that holds it, for the list of keys that are not used.
    """
    if not isinstance(turn, dict):
        raise row.fault(where, turn, 'a turn such as {"role": "user", "content": "…"}')
    role_key = "from" if "from" in turn else "role"
    text_key = "value" if "value" in turn and "content" not in turn else "content"
    spoken = turn.get(role_key)
    role = ROLES.get(spoken.strip().lower()) if isinstance(spoken, str) else None
    if role is None:
        raise row.fault(f"{where}.{role_key}", spoken, f"one of {', '.join(ROLES)}")
    content = _content(row, f"{where}.{text_key}", turn.get(text_key))
    if str(spoken).strip().lower() in _CALLS:
        calls, content = _calls(row, f"{where}.{text_key}", row.parsed(f"{where}.{text_key}", content)), ""
    else:
        written = turn.get("tool_calls") or turn.get("function_call")
        calls = _calls(row, f"{where}.tool_calls", written) if written else ()
    if calls and role != "assistant":
        raise row.fault(f"{where}.tool_calls", turn.get("tool_calls"), "calls in assistant turns only")
    if not content.strip() and not calls and role in ("user", "assistant"):
        raise row.fault(f"{where}.{text_key}", content, "text")
    _remember(row, column, turn, role_key, text_key)
    return Message(
        role=role,
        content=content,
        name=_optional(row, where, turn, "name"),
        tool_calls=calls,
        tool_call_id=_optional(row, where, turn, "tool_call_id"),
        weight=_weight(row, where, turn),
    )


def conversation(row: SourceRow, turns: Sequence[Message]) -> Example:
    """An example of a whole conversation: what follows the last question is the answer.

    Raises:
        NoAnswerError: It ends before an answer.
        RowError: It has no question, or nothing of it is learnt.
    """
    turns = with_system(row, turns)
    last = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        raise row.fault("", [turn.role for turn in turns], "a user turn")
    prompt, completion = turns[: last + 1], turns[last + 1 :]
    if not completion or completion[-1].role != "assistant":
        raise NoAnswerError
    return example(row, prompt, completion)


def example(row: SourceRow, prompt: Sequence[Message], completion: Sequence[Message]) -> Example:
    """A prompt-completion example.

    Raises:
        RowError: Nothing of it is learnt.
    """
    if not any(turn.weight for turn in (*prompt, *completion) if turn.role == "assistant"):
        raise row.wrong("", "assistant turns of weight 0 only", "an assistant turn to learn")
    return Example(
        "prompt_completion",
        prompt=tuple(prompt),
        completion=tuple(completion),
        tools=tools_in(row),
        **common_fields(row),
    )


def question_and_answer(row: SourceRow, question: str, answer: str, earlier: Sequence[Message] = ()) -> Example:
    """An example of one question and its answer, with earlier turns before them."""
    prompt = with_system(row, [*earlier, Message(role="user", content=question)])
    return example(row, prompt, [Message(role="assistant", content=answer)])


def with_context(row: SourceRow, question: str) -> str:
    """A question after the row's `context`, if it has one."""
    context = row.optional_text("context")
    return f"{context}\n\n{question}" if context else question


def common_fields(row: SourceRow) -> dict[str, Any]:
    """What each layout has: the origin, and the columns `in_scope` and `is_synthetic`."""
    return {
        "origin": row.origin,
        "fields": row.fields,
        "in_scope": row.flag("in_scope", default=True),
        "is_synthetic": row.flag("is_synthetic", default=False),
    }


def with_system(row: SourceRow, turns: Sequence[Message]) -> list[Message]:
    """Turns with the system prompt of the row's column `system`, if it has one."""
    system = row.optional_text("system")
    turns = [turn for turn in turns if turn.content.strip() or turn.role not in ("system", "developer")]
    own = [turn.content for turn in turns if turn.role in ("system", "developer")]
    if not system or own == [system]:
        return turns
    if own:
        raise row.fault("system", system, "either this column or a system turn")
    return [Message(role="system", content=system), *turns]


def without_weight(turns: Sequence[Message]) -> list[Message]:
    """Turns of a prompt, whose answers are context and not learnt."""
    return [turn.model_copy(update={"weight": 0}) if turn.role == "assistant" else turn for turn in turns]


def tools_in(row: SourceRow, name: str = "tools") -> tuple[dict[str, Any], ...]:
    """Tool definitions, each as `/v1/chat/completions` takes it; OpenAI's older `functions` are wrapped."""
    if name == "tools" and row.get("tools") in (None, "", []) and row.get("functions") is not None:
        name = "functions"
    if row.get(name) in (None, ""):
        return ()
    wanted = "a list of tool definitions"
    tools = row.items(name, wanted)
    for index, tool in enumerate(tools):
        inner = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise row.fault(f"{name}[{index}]", tool, 'a definition such as {"type": "function", "function": {…}}')
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


def _content(row: SourceRow, where: str, value: Any) -> str:
    """Text of a turn; a list of text parts is joined."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_part(row, f"{where}[{index}]", part) for index, part in enumerate(value))
    raise row.fault(where, value, "text")


def _part(row: SourceRow, where: str, part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
    if not isinstance(text, str):
        raise row.fault(where, part, "a part of type text")
    return text


def _calls(row: SourceRow, where: str, value: Any) -> tuple[ToolCall, ...]:
    """Calls of tools: a list, or one call; each with `function` or flat."""
    calls = value if isinstance(value, list) else [value]
    return tuple(_call(row, f"{where}[{index}]", call) for index, call in enumerate(calls))


def _call(row: SourceRow, where: str, call: Any) -> ToolCall:
    function = (call.get("function") or call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise row.fault(where, call, 'a call such as {"function": {"name": "…", "arguments": {…}}}')
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = row.parsed(f"{where}.function.arguments", arguments or "{}")
    if not isinstance(arguments, dict | None):
        raise row.fault(f"{where}.function.arguments", arguments, "a JSON object")
    identity = call.get("id")
    called = FunctionCall(name=name, arguments=arguments or {})
    return ToolCall(id=identity if isinstance(identity, str) else None, function=called)


def _optional(row: SourceRow, where: str, turn: dict[str, Any], key: str) -> str | None:
    value = turn.get(key)
    if value is not None and not isinstance(value, str):
        raise row.fault(f"{where}.{key}", value, "text")
    return value or None


def _weight(row: SourceRow, where: str, turn: dict[str, Any]) -> Literal[0, 1]:
    key = next((key for key in _WEIGHTS if turn.get(key) is not None), None)
    if key is None:
        return 1
    value = turn[key]
    if value not in (0, 1):
        raise row.fault(f"{where}.{key}", value, "0 or 1" if key == "weight" else "true or false")
    return 1 if value == 1 else 0


_WEIGHTS = ("weight", "train", "training")
"""OpenAI's key, and those of Axolotl, which says true or false."""
_KEYS = frozenset({"name", "tool_calls", "function_call", "tool_call_id", *_WEIGHTS})


def _remember(row: SourceRow, column: str, turn: dict[str, Any], role_key: str, text_key: str) -> None:
    unknown = turn.keys() - _KEYS - {role_key, text_key}
    if unknown:
        row.seen.update(f"{column}[].{key}" for key in unknown if turn[key] is not None)
