"""Conversations to token ids and labels; the loss covers only the assistant's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from config.dataset import DatasetRow, Message, conversation
from config.domain import ChatConfig
from train.data.template import render
from train.errors import DataError

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """One example. `prompt_ids` equals a server's rendering of the conversation without its answer."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    is_cut: bool = False

    @property
    def input_ids(self) -> list[int]:
        return [*self.prompt_ids, *self.answer_ids]

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * len(self.prompt_ids) + list(self.answer_ids)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], at: datetime) -> tuple[int, ...]:
    """Token ids of a conversation up to the answer; `at` is the time passed to the chat template."""
    return tuple(_token_ids(tokenizer, _render(tokenizer, messages, at, is_prompt=True)))


def encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], at: datetime) -> Encoded:
    """Encode one whole conversation; the answer ends with the end-of-turn token that stops generation.

    Raises:
        DataError: The chat template renders the prompt differently once an answer follows, so no mask would be correct.
    """
    prompt = _render(tokenizer, messages[:-1], at, is_prompt=True)
    whole = _render(tokenizer, messages, at, is_prompt=False)
    if not whole.startswith(prompt):
        raise DataError(
            "The base's chat template renders the prompt differently when an answer follows, so the answer's tokens "
            "cannot be located. Prepare the base with another `--chat-template`."
        )
    answer_ids = _token_ids(tokenizer, whole[len(prompt) :])
    return Encoded(tuple(_token_ids(tokenizer, prompt)), tuple(_end_with_eos(tokenizer, answer_ids)))


def encode_row(
    tokenizer: PreTrainedTokenizerBase, row: DatasetRow, chat: ChatConfig, max_length: int, at: datetime
) -> Encoded:
    """Encode a row in at most `max_length` tokens; the input is truncated, never the answer.

    Raises:
        DataError: The answer and the system prompt alone exceed `max_length`.
    """
    encoded = encode(tokenizer, row.messages, at)
    text, is_cut = row.input, False
    while len(encoded) > max_length:
        shorter = _drop_tokens(tokenizer, text, len(encoded) - max_length)
        if not shorter:
            raise DataError(
                f"An example has {len(encoded)} tokens without its input, but `recipe.max_length` is {max_length}. "
                "Raise it, or shorten the system prompt."
            )
        text, is_cut = shorter, True
        encoded = encode(tokenizer, conversation(chat, text, row.output), at)
    return Encoded(encoded.prompt_ids, encoded.answer_ids, is_cut)


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[DatasetRow],
    chat: ChatConfig,
    max_length: int,
    times: Sequence[datetime],
) -> list[Encoded]:
    """Encode each row with its own template time."""
    return [encode_row(tokenizer, row, chat, max_length, at) for row, at in zip(rows, times, strict=True)]


def _drop_tokens(tokenizer: PreTrainedTokenizerBase, text: str, excess: int) -> str:
    ids = _token_ids(tokenizer, text)
    return str(tokenizer.decode(ids[: max(len(ids) - excess, 0)])).strip()


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], at: datetime, *, is_prompt: bool) -> str:
    return render(tokenizer, [message.for_template() for message in messages], at, is_prompt=is_prompt)


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # The template writes its own special tokens.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _end_with_eos(tokenizer: PreTrainedTokenizerBase, answer_ids: list[int]) -> list[int]:
    eos = tokenizer.eos_token_id
    if eos in answer_ids:
        return answer_ids[: answer_ids.index(eos) + 1]
    return [*answer_ids, eos]
