"""TRL's prompt-completion format: texts, or lists of messages."""

from config.dataset import Message
from train.data.examples import Example
from train.data.formats.format import Format
from train.data.formats.row import NoAnswerError, SourceRow
from train.data.formats.turns import example, turns_in, with_system, without_weight


def _read(row: SourceRow) -> Example:
    return example(row, prompt_in(row), completion_in(row))


def is_list(row: SourceRow, name: str) -> bool:
    """Whether a column holds turns, also as the JSON text of them."""
    value = row.get(name)
    return isinstance(value, list) or (isinstance(value, str) and value.startswith('[{"'))


def prompt_in(row: SourceRow, name: str = "prompt") -> list[Message]:
    """The turns before the answer; a text is a user turn."""
    if not is_list(row, name):
        return with_system(row, [Message(role="user", content=row.text(name))])
    turns = without_weight(with_system(row, turns_in(row, name)))
    if turns[-1].role not in ("user", "tool"):
        raise row.wrong(name, f"a last turn of role {turns[-1].role}", "a last turn of role user or tool")
    return turns


def completion_in(row: SourceRow, name: str = "completion") -> list[Message]:
    """The turns of an answer; a text is an assistant turn."""
    if not is_list(row, name):
        return [Message(role="assistant", content=row.answer(name))]
    turns = turns_in(row, name)
    strangers = [turn.role for turn in turns if turn.role not in ("assistant", "tool")]
    if strangers:
        raise row.wrong(name, f"a turn of role {strangers[0]}", "turns of role assistant and tool")
    if turns[-1].role != "assistant":
        raise NoAnswerError
    return turns


FORMAT = Format("prompt_completion", "prompt/completion", (("prompt",), ("completion",)), _read)
