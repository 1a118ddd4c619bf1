"""The training rows of a data set in the tokens of its base, as the trainer encodes them."""

from collections.abc import Sequence
from datetime import date

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from adapters.bases import read_base
from adapters.errors import AdapterError
from config.dataset import DatasetManifest, DatasetRow, read_split
from config.domain import DomainConfig
from config.home import Home
from train.data.encode import Encoded
from train.data.report.figures import LearntRow, TokenReport
from train.data.report.gather import where_of
from train.data.report.learnt import learnt_rows, token_figures
from train.data.sequences import encode_rows
from train.data.template import row_times, run_time
from train.errors import TrainError

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
        step = -(-len(rows) // _MAX_ROWS)
        encoded = encode_as_trained(tokenizer, rows[::step], config, today)
        learnt = learnt_of(tokenizer, rows[:_NUM_LEARNT], config, today)
    except (AdapterError, TrainError) as error:
        return TokenReport(note=f"Lengths in tokens, and what is learnt, are not shown: {error}")
    figures = token_figures(encoded, config.base, config.recipe.max_length)
    return TokenReport(tokens=figures, learnt=tuple(learnt))


def learnt_of(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[DatasetRow],
    config: DomainConfig,
    today: date,
) -> list[LearntRow]:
    """What is learnt of each row, from one batch of the trainer; a row may be several sequences."""
    encoded = [encode_as_trained(tokenizer, [row], config, today) for row in rows]
    wheres = [where_of(row.origin) for row, sequences in zip(rows, encoded, strict=True) for _ in sequences]
    return learnt_rows(tokenizer, [one for sequences in encoded for one in sequences], wheres)


def encode_as_trained(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[DatasetRow],
    config: DomainConfig,
    today: date,
) -> list[Encoded]:
    """By the trainer's own function, with the dates of a run that starts today."""
    times = row_times(config.recipe, run_time(config.recipe, today), len(rows), "train")
    return encode_rows(tokenizer, rows, config, times)


def base_tokenizer(config: DomainConfig, home: Home) -> PreTrainedTokenizerBase:
    """The tokenizer of the domain's prepared base.

    Raises:
        AdapterError: The base is not prepared.
    """
    folder = home.bases / config.base
    read_base(folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer
