"""Rows of a built data set as the examples that they were: without the domain's system prompt and `chat.user`."""

from collections.abc import Sequence
from dataclasses import replace

from config.dataset import DatasetRow, Message
from config.domain import ChatConfig
from config.rows import AnyRow, PreferenceRow, PromptRow, TextRow
from train.data.examples import Example


def to_example(row: AnyRow, chat: ChatConfig) -> Example:
    common = Example(row.type, origin=row.origin, is_synthetic=row.is_synthetic)
    if isinstance(row, TextRow):
        return replace(common, text=row.text)
    if isinstance(row, DatasetRow):
        prompt = _own_prompt(row.prompt, row.input, chat)
        answer = row.messages[-1:]
        return replace(common, prompt=prompt, completion=answer, tools=row.tools, in_scope=row.in_scope)
    if isinstance(row, PromptRow):
        return replace(common, prompt=_own_prompt(row.messages, row.input, chat), tools=row.tools)
    prompt = _own_prompt(row.prompt, row.input, chat)
    if isinstance(row, PreferenceRow):
        return replace(common, prompt=prompt, chosen=row.chosen, rejected=row.rejected, tools=row.tools)
    return replace(common, prompt=prompt, completion=row.completion, label=row.label, tools=row.tools)


def _own_prompt(turns: Sequence[Message], question: str, chat: ChatConfig) -> tuple[Message, ...]:
    own = [turn for turn in turns if turn.role != "system" or turn.content != chat.system]
    last = max((index for index, turn in enumerate(own) if turn.role == "user"), default=None)
    if last is not None:
        own[last] = own[last].model_copy(update={"content": question})
    return tuple(own)
