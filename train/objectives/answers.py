"""What the objectives on preferences have in common: rows to prompts and answers, and their questions."""

from collections.abc import Sequence

from config.dataset import DatasetRow, Message, Split
from config.rows import PreferenceRow, UnpairedPreferenceRow
from train.data.encode import Encoded
from train.data.sequences import check_held_out, encode_answers, encode_each
from train.data.template import row_times
from train.objectives.objective import TRAINED_SPLITS, Task

AnswerRow = PreferenceRow | UnpairedPreferenceRow
EncodedRow = tuple[AnswerRow, list[Encoded]]
"""A row with its prompt and chosen and rejected answer, or its only answer."""


def answer_rows(task: Task, split: Split) -> list[AnswerRow]:
    return [row for row in task.rows.get(split, ()) if isinstance(row, PreferenceRow | UnpairedPreferenceRow)]


def encode_splits(task: Task) -> tuple[list[EncodedRow], list[EncodedRow]]:
    """The training and validation rows; the test rows are only checked.

    Raises:
        DataError: As `encode_rows`.
    """
    config, at = task.config, task.template_time
    train, validation = (
        encode_each(task.tokenizer, rows, config, row_times(config.recipe, at, len(rows), split), encode_answers)
        for split in TRAINED_SPLITS
        for rows in [answer_rows(task, split)]
    )
    check_held_out(task.tokenizer, answer_rows(task, "test"), config, at)
    return train, validation


def encoded_test(task: Task) -> list[EncodedRow]:
    at = task.template_time
    return [(row, encode_answers(task.tokenizer, row, task.config, at)) for row in answer_rows(task, "test")]


def question_of(row: AnswerRow) -> DatasetRow | None:
    """The prompt with the chosen or the good answer as the expected one; None: several turns, or a bad answer."""
    answer = row.chosen if isinstance(row, PreferenceRow) else row.completion if row.label else ()
    if len(answer) != 1:
        return None
    return DatasetRow(
        messages=(*row.prompt, *answer),
        tools=row.tools,
        input=row.input,
        output=_text(answer),
        is_synthetic=row.is_synthetic,
        origin=row.origin,
    )


def questions_of(task: Task) -> list[DatasetRow]:
    return [question for row in answer_rows(task, "test") if (question := question_of(row)) is not None]


def _text(answer: Sequence[Message]) -> str:
    return answer[-1].content
