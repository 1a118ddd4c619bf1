"""Rows to the token ids of their prompts, for training on answers that the model samples itself."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from config.dataset import DatasetRow, Message
from config.domain import DomainConfig
from config.rows import PromptRow
from train.data.encode import Encoded, encode_prompt
from train.data.sequences import encode_each, fit_turns


def prompt_of(row: DatasetRow | PromptRow) -> tuple[Message, ...]:
    """The conversation up to the answer, as a client sends it."""
    return row.prompt if isinstance(row, DatasetRow) else row.messages


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[DatasetRow | PromptRow],
    config: DomainConfig,
    times: Sequence[datetime],
    max_completion_length: int,
) -> dict[int, tuple[int, ...]]:
    """The prompts by the index of their row; cut, they leave `max_completion_length` tokens for the answer.

    Raises:
        DataError: Rows have control tokens, do not fit or are rejected by the chat template, or none is left.
    """
    room_for_answer = (0,) * max_completion_length

    def encode_one(
        tokenizer: PreTrainedTokenizerBase,
        row: DatasetRow | PromptRow,
        config: DomainConfig,
        at: datetime,
        escape: re.Pattern[str] | None,
    ) -> list[Encoded]:
        def encode(turns: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Encoded]:
            return [Encoded(encode_prompt(tokenizer, turns, at, tools), room_for_answer)]

        return fit_turns(tokenizer, prompt_of(row), row, config, escape, encode)

    numbers = {id(row): number for number, row in enumerate(rows)}
    encoded = encode_each(tokenizer, rows, config, times, encode_one)
    return {numbers[id(row)]: one.prompt_ids for row, (one,) in encoded}
