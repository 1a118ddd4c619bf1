"""Rows of a data set to the sequences that are trained on: control tokens, lengths, and the mask of each."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from config.dataset import DatasetRow
from config.domain import ChatConfig, DomainConfig
from train.data.control_tokens import control_pattern, control_tokens_error, escaped, escaped_tools, first_control_token
from train.data.encode import Encoded, encode, encode_turns
from train.data.lengths import CUT_ROLES, TooLongError, encoding_error, fit_texts, with_texts
from train.errors import DataError

logger = logging.getLogger(__name__)


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[DatasetRow], config: DomainConfig, times: Sequence[datetime]
) -> list[Encoded]:
    """The sequences of all rows, in order; each row has its own template time.

    Raises:
        DataError: Rows have control tokens, do not fit or are rejected by the chat template, or none is left.
    """
    dropped, escape = _check_control_tokens(tokenizer, rows, config)
    sequences: list[Encoded] = []
    faults: list[tuple[str, DataError]] = []
    for number, (row, at) in enumerate(zip(rows, times, strict=True), 1):
        try:
            sequences += encode_row(tokenizer, row, config, at, escape) if number not in dropped else []
        except DataError as error:
            if isinstance(error, TooLongError) and config.data.cut_long_inputs == "drop":
                dropped.add(number)
            else:
                faults.append((_name(row, number), error))
    if faults:
        raise encoding_error(faults)
    if not sequences:
        raise DataError(
            f"All {len(rows)} rows are dropped: they contain control tokens, or exceed `recipe.max_length` "
            f"{config.recipe.max_length}. Raise it, or change `data.cut_long_inputs`."
        )
    if dropped:
        logger.warning("%d of %d rows dropped: too long, or with control tokens", len(dropped), len(rows))
    return sequences


def check_held_out(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[DatasetRow], config: DomainConfig, at: datetime
) -> None:
    """Check before training that evaluation and golden prompts can be made of the held-out rows.

    Raises:
        DataError: Rows have control tokens, or the chat template rejects some.
    """
    _check_control_tokens(tokenizer, rows, config)
    faults: list[tuple[str, DataError]] = []
    for number, row in enumerate(rows, 1):
        try:
            encode(tokenizer, row.messages, at, row.tools)
        except DataError as error:
            faults.append((f"held-out {_name(row, number)}", error))
    if faults:
        raise encoding_error(faults)


def encode_row(
    tokenizer: PreTrainedTokenizerBase,
    row: DatasetRow,
    config: DomainConfig,
    at: datetime,
    escape: re.Pattern[str] | None = None,
) -> list[Encoded]:
    """The sequences of one row, each of at most `recipe.max_length` tokens.

    Args:
        escape: Matches what is tokenised as text.

    Raises:
        TooLongError: The row is too long, and may not be cut or not enough.
        DataError: The chat template rejects the row.
    """
    places = [n for n, turn in enumerate(row.messages) if turn.role in CUT_ROLES]
    frames = [_frame(row, n, config.chat) for n in places]

    def encode(texts: Sequence[str]) -> list[Encoded]:
        whole = [before + text + after for (before, _, after), text in zip(frames, texts, strict=True)]
        turns = with_texts(row.messages, dict(zip(places, whole, strict=True)))
        if escape is None:
            return encode_turns(tokenizer, turns, at, row.tools)
        return encode_turns(tokenizer, escaped(escape, turns), at, escaped_tools(escape, row.tools))

    texts = tuple(text for _, text, _ in frames)
    fitted = fit_texts(tokenizer, texts, encode, config.recipe.max_length, config.data.cut_long_inputs)
    is_cut = fitted.texts != texts
    return [replace(sequence, is_cut=is_cut) for sequence in fitted.sequences]


def _frame(row: DatasetRow, place: int, chat: ChatConfig) -> tuple[str, str, str]:
    """A turn's text as (before, text, after): of a question in `chat.user`, only the question may be cut."""
    content = row.messages[place].content
    before, _, after = chat.user.partition("{input}")
    is_question = content == before + row.input + after
    return (before, row.input, after) if is_question else ("", content, "")


def _check_control_tokens(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[DatasetRow], config: DomainConfig
) -> tuple[set[int], re.Pattern[str] | None]:
    """Numbers of the rows to drop, and what is to be escaped in the others."""
    pattern, mode = control_pattern(tokenizer), config.data.cleaning.control_tokens
    found = {
        number: f"{_name(row, number)} contains {token!r}"
        for number, row in enumerate(rows, 1)
        if (token := first_control_token(pattern, row.messages, row.tools)) is not None
    }
    if found and mode == "error":
        raise control_tokens_error(list(found.values()))
    if found:
        example = next(iter(found.values()))
        logger.warning("%d rows contain control tokens (`control_tokens: %s`), first: %s", len(found), mode, example)
    return set(found) if mode == "drop" else set(), pattern if found and mode == "escape" else None


def _name(row: DatasetRow, number: int) -> str:
    return str(row.origin or f"row {number}")
