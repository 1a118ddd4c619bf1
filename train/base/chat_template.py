"""`base prepare` fits a model family's chat template: tried on conversations, and rewritten where they come out wrong.

A rewritten template is part of the prepared base. So training, evaluation, fingerprint and server render the same by
construction, and the base's digest covers it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from adapters.store.manifest import TemplateChange
from adapters.template_time import APART
from config.dataset import FunctionCall, Message, ToolCall
from train.data.encode import encode, special_tokens
from train.data.template import render
from train.errors import DataError, PrepareBaseError

_SYSTEM = Message(role="system", content="Instruction of the probe.")
_USER = Message(role="user", content="Question of the probe?")
_ANSWER = Message(role="assistant", content="Answer of the probe.")
_CONVERSATION = (_SYSTEM, _USER, _ANSWER)
_CALL = ToolCall(id="a1b2c3d4e", function=FunctionCall(name="probe_tool", arguments={"city": "Paris"}))
_CALLING = Message(role="assistant", tool_calls=(_CALL,))
TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "Looks up a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Its name."}}},
    },
}

_FOLD_SYSTEM = """\
{%- set turns = namespace(all=[], system='') -%}
{%- for turn in messages -%}
    {%- if turn.role in ['system', 'developer'] -%}
        {%- set turns.system = turns.system ~ turn.content ~ '\\n\\n' -%}
    {%- elif turn.role == 'user' -%}
        {%- set turns.all = turns.all + [dict(turn, content=turns.system ~ turn.content)] -%}
        {%- set turns.system = '' -%}
    {%- else -%}
        {%- set turns.all = turns.all + [turn] -%}
    {%- endif -%}
{%- endfor -%}
{%- if turns.system -%}
    {%- set turns.all = turns.all + [{'role': 'user', 'content': turns.system}] -%}
{%- endif -%}
{%- set messages = turns.all -%}
"""
_WRAP_TEXTS = """\
{%- set turns = namespace(all=[]) -%}
{%- for turn in messages -%}
    {%- if turn.content is string -%}
        {%- set turns.all = turns.all + [dict(turn, content=[{'type': 'text', 'text': turn.content}])] -%}
    {%- else -%}
        {%- set turns.all = turns.all + [turn] -%}
    {%- endif -%}
{%- endfor -%}
{%- set messages = turns.all -%}
"""
_JOIN_TEXTS = """\
{%- set turns = namespace(all=[]) -%}
{%- for turn in messages -%}
    {%- set is_list = turn.content is iterable and turn.content is not string and turn.content is not mapping -%}
    {%- if is_list and not turn.content | selectattr('type', 'ne', 'text') | list -%}
        {%- set turns.all = turns.all + [dict(turn, content=turn.content | map(attribute='text') | join('\\n'))] -%}
    {%- else -%}
        {%- set turns.all = turns.all + [turn] -%}
    {%- endif -%}
{%- endfor -%}
{%- set messages = turns.all -%}
"""
_NO_THINKING = "{%- set enable_thinking = false -%}\n"
_NO_HEADER = "{%- set is_prompt = add_generation_prompt -%}{%- set add_generation_prompt = false -%}\n"
_ADDED: dict[TemplateChange, tuple[str, str]] = {
    "content_parts": (_WRAP_TEXTS, ""),
    "content_text": (_JOIN_TEXTS, ""),
    "system_in_user": (_FOLD_SYSTEM, ""),
    "no_thinking": (_NO_THINKING, ""),
}
"""What is written before and after a template."""
_WAY_OUT = "Give another template with `--chat-template FILE.jinja`."


@dataclass(frozen=True)
class FittedTemplate:
    """What was changed, and the ids of the tokens that end an answer and a tool call: a server must stop at them."""

    changes: tuple[TemplateChange, ...]
    end_token_ids: tuple[int, ...]


def fit_template(tokenizer: PreTrainedTokenizerBase) -> FittedTemplate:
    """Fit the tokenizer's template, and set it and the end-of-turn token in the tokenizer.

    Raises:
        PrepareBaseError: The template writes no text of a system or user turn, or no mask would be correct.
    """
    changes = [change for change, is_needed in _CHECKS if is_needed(tokenizer) and _helps(tokenizer, change, is_needed)]
    _check(tokenizer)
    ends = _end_of_answer(tokenizer)
    if ends and ends[0] != tokenizer.eos_token:
        tokenizer.eos_token = ends[0]
        changes.append("end_of_turn")
    if tokenizer.eos_token is None:
        raise PrepareBaseError(f"Neither the base's chat template nor its tokenizer ends a turn by a token. {_WAY_OUT}")
    stops = dict.fromkeys((*ends, *_end_of_call(tokenizer)))
    return FittedTemplate(tuple(changes), tuple(tokenizer.get_vocab()[token] for token in stops))


def _helps(
    tokenizer: PreTrainedTokenizerBase, change: TemplateChange, is_needed: Callable[[PreTrainedTokenizerBase], bool]
) -> bool:
    """Make a change, and undo it if it does not help."""
    before = tokenizer.chat_template
    tokenizer.chat_template = _changed(tokenizer, change)
    if is_needed(tokenizer):
        tokenizer.chat_template = before
    return bool(tokenizer.chat_template != before)


def _needs_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    return not _writes(tokenizer, _USER)


def _needs_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template reads parts, which a server sends then, and renders them otherwise than texts."""
    parts = _rendered(tokenizer, _USER, as_parts=True) or ""
    reads_parts = _USER.content in parts and "type" not in parts  # else it writes the list itself
    texts = _rendered(tokenizer, *_CONVERSATION, _USER)
    return reads_parts and texts is not None and texts != _rendered(tokenizer, *_CONVERSATION, _USER, as_parts=True)


def _needs_fold(tokenizer: PreTrainedTokenizerBase) -> bool:
    return not _writes(tokenizer, _SYSTEM, _USER)


def _thinks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model would have to learn an empty thinking block before each answer, or cannot be masked."""
    answer = _answer_text(tokenizer)
    return answer is None or "think" in answer.split(_ANSWER.content)[0]


def _header_differs(tokenizer: PreTrainedTokenizerBase) -> bool:
    return _answer_text(tokenizer) is None


_CHECKS: tuple[tuple[TemplateChange, Callable[[PreTrainedTokenizerBase], bool]], ...] = (
    ("content_parts", _needs_parts),
    ("content_text", _needs_texts),
    ("system_in_user", _needs_fold),
    ("no_thinking", _thinks),
    ("answer_header", _header_differs),
)


def _changed(tokenizer: PreTrainedTokenizerBase, change: TemplateChange) -> str | dict[str, str]:
    """The rewritten template; each variant, where it has several (`default`, `tool_use`)."""
    before, after = _ADDED.get(change) or (_NO_HEADER, _own_header(tokenizer))
    template: str | dict[str, str] = tokenizer.chat_template
    if isinstance(template, str):
        return before + template + after
    return {name: before + variant + after for name, variant in template.items()}


def _own_header(tokenizer: PreTrainedTokenizerBase) -> str:
    """Writes what stands between a question and its answer in a whole conversation."""
    before, whole = (_rendered(tokenizer, *turns) or "" for turns in (_CONVERSATION[:-1], _CONVERSATION))
    header = whole.removeprefix(before).split(_ANSWER.content)[0]
    return "{%- if is_prompt -%}{{ " + repr(header) + " }}{%- endif -%}"


def _check(tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        encode(tokenizer, (_USER, _ANSWER), APART[0])
        encode(tokenizer, _CONVERSATION, APART[0])
    except DataError as error:
        raise PrepareBaseError(f"{str(error).split('. ')[0]}. {_WAY_OUT}") from error


def _answer_text(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What follows the prompt in a whole conversation; None if the prompt is rendered differently there."""
    prompt, whole = _rendered(tokenizer, *_CONVERSATION[:-1], is_prompt=True), _rendered(tokenizer, *_CONVERSATION)
    return whole.removeprefix(prompt) if whole is not None and prompt and whole.startswith(prompt) else None


def _writes(tokenizer: PreTrainedTokenizerBase, *turns: Message) -> bool:
    text = _rendered(tokenizer, *turns, is_prompt=True) or ""
    return all(turn.content in text for turn in turns)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, *turns: Message, is_prompt: bool = False, as_parts: bool = False
) -> str | None:
    """None if the template rejects the conversation."""
    fields = [turn.for_template() for turn in turns]
    if as_parts:
        fields = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in fields]
    try:
        return render(tokenizer, fields, APART[0], is_prompt=is_prompt)
    except Exception:  # boundary: a template is a program from a file, and may raise what it likes
        return None


def _end_of_answer(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The last special token that follows an answer, whether it is the last turn or not; else the first one."""
    last, earlier = (
        (_rendered(tokenizer, *turns) or "").partition(_ANSWER.content)[2]
        for turns in (_CONVERSATION, (*_CONVERSATION, _USER))
    )
    common = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(last, earlier, strict=False)))
    return special_tokens(tokenizer, common)[-1:] or special_tokens(tokenizer, last)[:1]


def _end_of_call(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The token that ends a tool call; none if the template writes no calls."""
    try:
        turn = encode(tokenizer, (_USER, _CALLING), APART[0], (TOOL,))
    except DataError:
        return []
    return [str(tokenizer.decode(list(turn.answer_ids[-1:])))]
