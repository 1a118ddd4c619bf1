"""The training rows of a data set in the tokens of its base, as the trainer encodes them."""

from collections.abc import Sequence
from datetime import date, datetime

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from adapters.bases import read_base
from adapters.errors import AdapterError
from config.dataset import DatasetManifest, DatasetRow, Split, read_split
from config.domain import DomainConfig
from config.home import Home
from train.data.report.figures import LearntRow, TokenReport
from train.data.report.gather import where_of
from train.data.report.learnt import learnt_rows, token_figures
from train.data.sequences import encode_rows
from train.data.template import row_times, run_time
from train.errors import DataError, TrainError

_MAX_ROWS = 5000
"""Rows whose tokens are counted; of more, so many are taken evenly."""
_NUM_LEARNT = 3


def report_tokens(config: DomainConfig, manifest: DatasetManifest, home: Home, today: date) -> TokenReport:
    """Lengths in tokens, and what is learnt of the first rows; needs the prepared base."""
    if manifest.type != "prompt_completion":
        return TokenReport(note=f"What is learnt is not shown for rows of type {manifest.type}.")
    try:
        tokenizer = base_tokenizer(config, home)
        rows = read_split(home.datasets / config.name, "train")
        times = times_of(config, len(rows), "train", today)
        step = -(-len(rows) // _MAX_ROWS)
        encoded = encode_rows(tokenizer, rows[::step], config, times[::step])
        learnt = first_learnt(tokenizer, rows, config, times, _NUM_LEARNT)
    except (AdapterError, TrainError) as error:
        return TokenReport(note=f"Lengths in tokens, and what is learnt, are not shown: {error}")
    figures = token_figures(encoded, config.base, config.recipe.max_length)
    return TokenReport(tokens=figures, learnt=tuple(learnt))


def learnt_of(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[DatasetRow], config: DomainConfig, times: Sequence[datetime]
) -> list[LearntRow]:
    """What is learnt of each row, from one batch of the trainer; a row may be several sequences.

    Raises:
        DataError: A row cannot be trained on, or the settings drop it.
    """
    encoded = [encode_rows(tokenizer, [row], config, [at]) for row, at in zip(rows, times, strict=True)]
    wheres = [where_of(row.origin) for row, sequences in zip(rows, encoded, strict=True) for _ in sequences]
    return learnt_rows(tokenizer, [one for sequences in encoded for one in sequences], wheres)


def first_learnt(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[DatasetRow],
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
