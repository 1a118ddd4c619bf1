"""The training rows of a data set in the tokens of its base, as the trainer encodes them."""

import re
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from adapters.bases import read_base
from adapters.errors import AdapterError
from config.dataset import DatasetManifest, DatasetRow, Message, Split
from config.domain import DomainConfig
from config.home import Home
from config.rows import AnyRow, PreferenceRow, PromptRow, TextRow, UnpairedPreferenceRow, read_rows
from train.data.documents import encode_documents
from train.data.encode import Encoded, encode_prompt
from train.data.report.figures import LearntRow, TokenReport
from train.data.report.gather import where_of
from train.data.report.learnt import learnt_rows, token_figures
from train.data.sequences import EncodeOne, encode_answers, encode_each, encode_row, fit_turns
from train.data.template import row_times, run_time
from train.errors import DataError, TrainError

_MAX_ROWS = 5000
"""Rows whose tokens are counted; of more, so many are taken evenly."""
_NUM_LEARNT = 3


def report_tokens(config: DomainConfig, manifest: DatasetManifest, home: Home, today: date) -> TokenReport:
    """Lengths in tokens, and what is learnt of the first rows; needs the prepared base."""
    try:
        tokenizer = base_tokenizer(config, home)
        rows = list(read_rows(home.datasets / config.name, "train"))
        times = times_of(config, len(rows), "train", today)
        step = -(-len(rows) // _MAX_ROWS)
        encoded = [sequence for _, sequence in sequences_of(tokenizer, rows[::step], config, times[::step])]
        learnt = first_learnt(tokenizer, rows, config, times, _NUM_LEARNT)
    except (AdapterError, TrainError) as error:
        return TokenReport(note=f"Lengths in tokens, and what is learnt, are not shown: {error}")
    figures = token_figures(encoded, config.base, config.recipe.max_length)
    return TokenReport(tokens=figures, learnt=tuple(learnt))


def sequences_of(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[AnyRow], config: DomainConfig, times: Sequence[datetime]
) -> list[tuple[str, Encoded]]:
    """The sequences of rows of one type, each named by its row's file and line.

    Of a preference pair both answers, of raw text its pieces, of a prompt alone what the model is asked.

    Raises:
        DataError: A row cannot be trained on, or the settings drop all of them.
    """
    encoded = encode_each(tokenizer, rows, config, times, _ENCODERS[type(rows[0])])
    return [(name, one) for row, each in encoded for name, one in zip(_names(row, len(each)), each, strict=True)]


def learnt_of(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[AnyRow], config: DomainConfig, times: Sequence[datetime]
) -> list[LearntRow]:
    """What is learnt of each row, from one batch of the trainer; a row may be several sequences.

    Raises:
        DataError: A row cannot be trained on, or the settings drop it.
    """
    named = [each for row, at in zip(rows, times, strict=True) for each in sequences_of(tokenizer, [row], config, [at])]
    return learnt_rows(tokenizer, [one for _, one in named], [name for name, _ in named])


def first_learnt(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[AnyRow],
    config: DomainConfig,
    times: Sequence[datetime],
    num_rows: int,
) -> list[LearntRow]:
    """What is learnt of the first rows that the settings do not drop."""
    learnt: list[LearntRow] = []
    for row, at in zip(rows, times, strict=True):
        if num_rows <= 0:
            break
        try:
            learnt += learnt_of(tokenizer, [row], config, [at])
            num_rows -= 1
        except DataError:
            continue
    return learnt


def times_of(config: DomainConfig, num_rows: int, split: Split, today: date) -> list[datetime]:
    """The time that each row of a split is rendered at in a run that starts today."""
    at = run_time(config.recipe, today)
    return [at] * num_rows if split == "test" else row_times(config.recipe, at, num_rows, split)


def base_tokenizer(config: DomainConfig, home: Home) -> PreTrainedTokenizerBase:
    """The tokenizer of the domain's prepared base.

    Raises:
        AdapterError: The base is not prepared.
    """
    folder = home.bases / config.base
    read_base(folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def _names(row: AnyRow, num_sequences: int) -> list[str]:
    where = where_of(row.origin)
    if isinstance(row, PreferenceRow):
        return [f"{where}, chosen", f"{where}, rejected"]
    if isinstance(row, UnpairedPreferenceRow):
        return [f"{where}, {'good' if row.label else 'bad'}"]
    return [where] * num_sequences


def _encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    row: PromptRow,
    config: DomainConfig,
    at: datetime,
    escape: re.Pattern[str] | None,
) -> list[Encoded]:
    def encode(turns: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Encoded]:
        return [Encoded(encode_prompt(tokenizer, turns, at, tools), ())]

    return fit_turns(tokenizer, row.messages, row, config, escape, encode)


def _encode_text(
    tokenizer: PreTrainedTokenizerBase,
    row: TextRow,
    config: DomainConfig,
    at: datetime,
    escape: re.Pattern[str] | None,
) -> list[Encoded]:
    return [Encoded((), piece) for pieces in encode_documents(tokenizer, [row], config) for piece in pieces]


_ENCODERS: dict[type[AnyRow], EncodeOne[Any]] = {
    DatasetRow: encode_row,
    PreferenceRow: encode_answers,
    UnpairedPreferenceRow: encode_answers,
    PromptRow: _encode_prompt,
    TextRow: _encode_text,
}
