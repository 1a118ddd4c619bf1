"""What a layout is: the columns that it needs and uses, and how one row of it becomes an example."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from config.data import Layout
from train.data.examples import Example
from train.data.files.records import SourceRecord
from train.data.formats.row import SourceRow

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
        is_detected: Whether `layout: auto` finds it; otherwise it must be named.
        beats: Layouts whose columns this one may hold, too; () for none.
        gather: Joins the rows of a file that belong to one example, before `read`.
    """

    layout: Layout
    title: str
    required: tuple[tuple[str, ...], ...]
    read: Callable[[SourceRow], Example]
    optional: tuple[str, ...] = ()
    is_detected: bool = True
    beats: tuple[Layout, ...] = ()
    gather: Callable[[Iterable[SourceRecord]], tuple[list[SourceRecord], list[str]]] | None = None

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
