"""Rows of data sets of every type of TRL; `DatasetRow` in config/dataset.py is that of prompt-completion."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from config.dataset import DatasetRow, Message, Origin, Split, bad_row, split_lines
from config.model import Config


class TextRow(Config):
    """One example of a language-modelling data set."""

    type: Literal["language_modeling"] = "language_modeling"
    text: str
    is_synthetic: bool = False
    origin: Origin | None = None


class PromptRow(Config):
    """One example of a prompt-only data set: a conversation without an answer."""

    type: Literal["prompt_only"] = "prompt_only"
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    input: str
    item: dict[str, Any] = Field({}, description="Columns of the source's row that graders of an answer are given.")
    is_synthetic: bool = False
    origin: Origin | None = None


class PreferenceRow(Config):
    """One pair of answers to the same prompt."""

    type: Literal["preference"] = "preference"
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    input: str
    is_synthetic: bool = False
    origin: Origin | None = None


class UnpairedPreferenceRow(Config):
    """One answer, and whether it is a good one."""

    type: Literal["unpaired_preference"] = "unpaired_preference"
    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    label: bool
    tools: tuple[dict[str, Any], ...] = ()
    input: str
    is_synthetic: bool = False
    origin: Origin | None = None


AnyRow = Annotated[
    DatasetRow | TextRow | PromptRow | PreferenceRow | UnpairedPreferenceRow, Field(discriminator="type")
]
_ANY_ROW: TypeAdapter[AnyRow] = TypeAdapter(AnyRow)


def read_rows(folder: Path, split: Split) -> Iterator[AnyRow]:
    """The rows of one split, of any type, in file order.

    Raises:
        DatasetError: The file is missing, or a line is not a valid row.
    """
    for number, line in split_lines(folder, split):
        try:
            yield _ANY_ROW.validate_json(line)
        except ValidationError as error:
            raise bad_row(folder, split, number, error) from error


def row_to_json(row: AnyRow) -> str:
    """A line with sorted keys, so that equal rows give equal bytes."""
    fields = {"type": row.type} | row.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(fields, ensure_ascii=False, sort_keys=True) + "\n"
