"""Rows of a data set to the sequences that are trained on: control tokens, lengths, and the mask of each."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from config.dataset import DatasetRow, Message
from config.domain import ChatConfig, DomainConfig
from config.objective import SftObjective
from config.rows import AnyRow, PreferenceRow, PromptRow, TextRow, UnpairedPreferenceRow
from train.data.control_tokens import control_pattern, control_tokens_error, escaped, escaped_tools, first_control_token
from train.data.encode import Encoded, encode, encode_prompt, encode_turns
from train.data.lengths import CUT_ROLES, TooLongError, encoding_error, fit_texts, with_texts
from train.errors import DataError

ChatRow = DatasetRow | PromptRow | PreferenceRow | UnpairedPreferenceRow
Row = TypeVar("Row", bound=AnyRow)
EncodeOne = Callable[[PreTrainedTokenizerBase, Row, DomainConfig, datetime, re.Pattern[str] | None], list[Encoded]]

logger = logging.getLogger(__name__)


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[DatasetRow], config: DomainConfig, times: Sequence[datetime]
) -> list[Encoded]:
    """The sequences of all rows, in order; each row has its own template time.

    Raises:
        DataError: Rows have control tokens, do not fit or are rejected by the chat template, or none is left.
    """
    encoded = encode_each(tokenizer, rows, config, times, encode_row)
    return [sequence for _, sequences in encoded for sequence in sequences]


def encode_each(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    config: DomainConfig,
    times: Sequence[datetime],
    encode_one: EncodeOne[Row],
) -> list[tuple[Row, list[Encoded]]]:
    """The rows that are trained on, each with its sequences; otherwise as `encode_rows`."""
    dropped, escape = _check_control_tokens(tokenizer, rows, config)
    encoded: list[tuple[Row, list[Encoded]]] = []
    faults: list[tuple[str, DataError]] = []
    for number, (row, at) in enumerate(zip(rows, times, strict=True), 1):
        try:
            encoded += [(row, encode_one(tokenizer, row, config, at, escape))] if number not in dropped else []
        except DataError as error:
            if isinstance(error, TooLongError) and config.data.cut_long_inputs == "drop":
                dropped.add(number)
            else:
                faults.append((_name(row, number), error))
    if faults:
        raise encoding_error(faults)
    if not encoded:
        raise DataError(
            f"All {len(rows)} rows are dropped: they contain control tokens, or exceed `recipe.max_length` "
            f"{config.recipe.max_length}. Raise it, or change `data.cut_long_inputs`."
        )
    if dropped:
        logger.warning("%d of %d rows dropped: too long, or with control tokens", len(dropped), len(rows))
    return encoded


def check_held_out(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[ChatRow],
    config: DomainConfig,
    at: datetime,
) -> None:
    """Check before training that evaluation and golden prompts can be made of the held-out rows.

    Raises:
        DataError: Rows have control tokens, or the chat template rejects some.
    """
    _check_control_tokens(tokenizer, rows, config)
    faults: list[tuple[str, DataError]] = []
    for number, row in enumerate(rows, 1):
        try:
            if isinstance(row, DatasetRow):
                encode(tokenizer, row.messages, at, row.tools)
            elif isinstance(row, PromptRow):
                encode_prompt(tokenizer, row.messages, at, row.tools)
            else:
                encode_answers(tokenizer, row, config, at)
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
    turns = _last_learnt(row.messages) if _is_loss_on_last(config) else row.messages

    def encode(turns: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Encoded]:
        return encode_turns(tokenizer, turns, at, tools)

    return fit_turns(tokenizer, turns, row, config, escape, encode)


def encode_answers(
    tokenizer: PreTrainedTokenizerBase,
    row: PreferenceRow | UnpairedPreferenceRow,
    config: DomainConfig,
    at: datetime,
    escape: re.Pattern[str] | None = None,
) -> list[Encoded]:
    """The prompt with the chosen and the rejected answer, or with the only answer; otherwise as `encode_row`.

    All have the same `prompt_ids`; everything after the prompt is the answer.
    """

    def encode(prompt: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Encoded]:
        answers = (escaped(escape, answer) if escape else answer for answer in answers_of(row))
        return [_encode_answer(tokenizer, prompt, answer, at, tools) for answer in answers]

    return fit_turns(tokenizer, row.prompt, row, config, escape, encode)


def answers_of(row: PreferenceRow | UnpairedPreferenceRow) -> tuple[tuple[Message, ...], ...]:
    """Chosen and rejected, or the only answer."""
    return (row.chosen, row.rejected) if isinstance(row, PreferenceRow) else (row.completion,)


def turns_of(row: AnyRow) -> tuple[Message, ...]:
    """All texts of a row, as turns."""
    if isinstance(row, TextRow):
        return (Message(role="user", content=row.text),)
    if isinstance(row, PreferenceRow | UnpairedPreferenceRow):
        return (*row.prompt, *(turn for answer in answers_of(row) for turn in answer))
    return row.messages


def _encode_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    answer: Sequence[Message],
    at: datetime,
    tools: Sequence[dict[str, Any]],
) -> Encoded:
    ids = encode(tokenizer, (*prompt, *answer), at, tools).input_ids
    prompt_ids = encode_prompt(tokenizer, prompt, at, tools)
    if tuple(ids[: len(prompt_ids)]) != prompt_ids:
        raise DataError(
            "The base's chat template renders the prompt differently when an answer of several turns follows. Give "
            "answers of one turn, or prepare the base with another `--chat-template`."
        )
    return Encoded(prompt_ids, tuple(ids[len(prompt_ids) :]))


def fit_turns(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Message],
    row: ChatRow,
    config: DomainConfig,
    escape: re.Pattern[str] | None,
    encode: Callable[[Sequence[Message], Sequence[dict[str, Any]]], list[Encoded]],
) -> list[Encoded]:
    """What `encode` makes of turns, cut until each sequence has at most `recipe.max_length` tokens."""
    places = [n for n, turn in enumerate(turns) if turn.role in CUT_ROLES]
    frames = [_frame(turns[n].content, row.input, config.chat) for n in places]

    def encode_texts(texts: Sequence[str]) -> list[Encoded]:
        whole = [before + text + after for (before, _, after), text in zip(frames, texts, strict=True)]
        fitted = with_texts(turns, dict(zip(places, whole, strict=True)))
        if escape is None:
            return encode(fitted, row.tools)
        return encode(escaped(escape, fitted), escaped_tools(escape, row.tools))

    texts = tuple(text for _, text, _ in frames)
    fitted = fit_texts(tokenizer, texts, encode_texts, config.recipe.max_length, config.data.cut_long_inputs)
    is_cut = fitted.texts != texts
    return [replace(sequence, is_cut=is_cut) for sequence in fitted.sequences]


def _is_loss_on_last(config: DomainConfig) -> bool:
    return isinstance(config.objective, SftObjective) and config.objective.loss_on == "last"


def _last_learnt(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation up to its last assistant turn of weight 1, the only one with loss."""
    learnt = [n for n, turn in enumerate(turns) if turn.role == "assistant" and turn.weight]
    return tuple(turn.model_copy(update={"weight": 0}) if n in learnt[:-1] else turn for n, turn in enumerate(turns))


def _frame(content: str, question: str, chat: ChatConfig) -> tuple[str, str, str]:
    """A turn's text as (before, text, after): of a question in `chat.user`, only the question may be cut."""
    before, _, after = chat.user.partition("{input}")
    is_question = content == before + question + after
    return (before, question, after) if is_question else ("", content, "")


def _check_control_tokens(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[AnyRow], config: DomainConfig
) -> tuple[set[int], re.Pattern[str] | None]:
    """Numbers of the rows to drop, and what is to be escaped in the others."""
    pattern, mode = control_pattern(tokenizer), config.data.cleaning.control_tokens
    found = {
        number: f"{_name(row, number)} contains {token!r}"
        for number, row in enumerate(rows, 1)
        if (token := first_control_token(pattern, turns_of(row), () if isinstance(row, TextRow) else row.tools))
        is not None
    }
    if found and mode == "error":
        raise control_tokens_error(list(found.values()))
    if found:
        example = next(iter(found.values()))
        logger.warning("%d rows contain control tokens (`control_tokens: %s`), first: %s", len(found), mode, example)
    return set(found) if mode == "drop" else set(), pattern if found and mode == "escape" else None


def _name(row: AnyRow, number: int) -> str:
    return str(row.origin or f"row {number}")
