"""What a layout is: the columns that it needs and uses, and how one row of it becomes an example."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from config.data import Layout
from train.data.examples import Example
from train.data.files.records import Record
from train.data.formats.row import Row

COMMON = ("system", "tools", "functions", "in_scope", "is_synthetic")
"""Columns that layouts of questions and answers use where they are."""


@dataclass(frozen=True)
class Format:
    """One layout.

    Attributes:
        title: Its name in messages.
        required: Columns of a row; one of each group must be there.
        optional: Columns that it uses as well.
        read: Makes an example. Raises `RowError` or `NoAnswerError`.
        beats: Layouts whose columns this one may hold, too; () for none.
        gather: Joins the rows of a file that belong to one example, before `read`.
    """

    layout: Layout
    title: str
    required: tuple[tuple[str, ...], ...]
    read: Callable[[Row], Example]
    optional: tuple[str, ...] = ()
    beats: tuple[Layout, ...] = ()
    gather: Callable[[Iterable[Record]], tuple[list[Record], list[str]]] | None = None

    def matches(self, columns: Collection[str]) -> bool:
        return all(any(name in columns for name in group) for group in self.required)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(name for group in self.required for name in group), *self.optional, *COMMON)

    @property
    def wanted(self) -> str:
        """The required columns, in words."""
        return ", ".join(" or ".join(group) for group in self.required)


def present(fields: dict[str, Any]) -> set[str]:
    """Columns of a row that hold something; null is nothing."""
    return {name for name, value in fields.items() if value is not None}
