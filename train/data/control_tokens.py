"""Control tokens inside texts: strings that the base's tokenizer or chat template gives a meaning, as `<|im_end|>`.

A text that contains one would end an answer early or forge a turn, in training and in a server alike.
"""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from config.data import DataConfig
from config.dataset import Message
from train.data.encode import BREAK
from train.data.examples import Example
from train.data.faults import faults_error
from train.data.steps import CONTROL_TOKENS, Finding, Step, StepResult, finding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKER = re.compile(r"<[|｜][^<>\s]+[|｜]>|\[/?[A-Z][A-Z_]+\]")


def control_pattern(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """Matches special tokens, and added ones and markers that the chat template writes."""
    template = str(tokenizer.chat_template)
    added = tokenizer.added_tokens_decoder.values()
    tokens = {token.content for token in added if token.special or token.content in template}
    words = sorted(filter(str.strip, {*tokens, *_MARKER.findall(template)}), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words)) or r"(?!)")


def check_control_tokens(
    examples: Sequence[Example], config: DataConfig, tokenizer: "PreTrainedTokenizerBase"
) -> StepResult:
    """Find examples with control tokens, and drop or refuse them by `cleaning.control_tokens`.

    Raises:
        DataError: The setting is `error`, and there are some.
    """
    pattern, mode = control_pattern(tokenizer), config.cleaning.control_tokens
    found: dict[int, Finding] = {}
    for index, example in enumerate(examples):
        token = first_control_token(pattern, _turns(example), example.tools, example.text)
        if token is not None:
            found[index] = finding(example, f"contains the control token {token!r}")
    if mode == "error" and found:
        raise control_tokens_error([f"{one.origin or repr(one.text)} {one.reason}" for one in found.values()])
    kept = tuple(e for index, e in enumerate(examples) if mode != "drop" or index not in found)
    return StepResult(kept, Step(CONTROL_TOKENS, len(examples), len(kept), 0, tuple(found.values())))


def first_control_token(
    pattern: re.Pattern[str], turns: Sequence[Message], tools: Sequence[dict[str, Any]], text: str = ""
) -> str | None:
    """The first control token in texts, names, tool calls or tool definitions."""
    parts = [text, *(part for turn in turns for part in _texts(turn))]
    parts += [json.dumps(tool, ensure_ascii=False) for tool in tools]
    matches = (pattern.search(part) for part in parts)
    return next((match.group() for match in matches if match), None)


def control_tokens_error(rows: Sequence[str]) -> Exception:
    return faults_error(
        rows,
        "Rows with control tokens of the base's chat template, which would end or forge a turn",
        "Remove them, or set `data.cleaning.control_tokens` to `drop`, or to `escape` to train them as text.",
    )


def escaped(pattern: re.Pattern[str], turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns with their control tokens broken, so that they are tokenised as text."""
    return tuple(Message.model_validate(_broken(pattern, turn.model_dump())) for turn in turns)


def escaped_tools(pattern: re.Pattern[str], tools: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    return tuple(_broken(pattern, tool) for tool in tools)


def _broken(pattern: re.Pattern[str], value: Any) -> Any:
    """A JSON value with the control tokens of all its strings broken after their first character."""
    if isinstance(value, str):
        return pattern.sub(lambda match: match.group()[0] + BREAK + match.group()[1:], value)
    if isinstance(value, (list, tuple)):
        return [_broken(pattern, item) for item in value]
    if isinstance(value, dict):
        return {key: _broken(pattern, item) for key, item in value.items()}
    return value


def _turns(example: Example) -> tuple[Message, ...]:
    return (*example.prompt, *example.completion, *example.chosen, *example.rejected)


def _texts(turn: Message) -> list[str]:
    calls = [call.function.model_dump_json() for call in turn.tool_calls]
    return [turn.content, turn.name or "", *calls]
