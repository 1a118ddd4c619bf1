"""Differences of two data sets on the terminal."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from config.dataset import SPLITS
from train.data.diff import DatasetDiff, RowDifference
from train.data.report.shown import one_line
from train.data.steps import MAX_LISTED

_MAX_CHARS = 60


def diff_tables(diff: DatasetDiff) -> Iterator[RenderableType]:
    """Counts, then the first rows of each kind, then settings."""
    yield _counts(diff)
    for kind in ("added", "removed", "changed", "moved"):
        rows: Sequence[RowDifference] = getattr(diff, kind)
        if rows:
            yield _rows(kind, rows)
    if diff.settings:
        yield _settings(diff)
    if not (diff.added or diff.removed or diff.changed or diff.moved):
        yield Text("All rows are equal.", style="green")


def _counts(diff: DatasetDiff) -> Table:
    table = Table("", *(Column(split, justify="right") for split in SPLITS))
    table.add_row(Text(diff.before), *(f"{diff.num_before[split]:,}" for split in SPLITS))
    table.add_row(Text(diff.after), *(f"{diff.num_after[split]:,}" for split in SPLITS))
    kinds = (("equal", diff.num_equal), *((kind, len(getattr(diff, kind))) for kind in ("added", "removed", "changed")))
    table.caption = ", ".join(f"{count:,} {kind}" for kind, count in (*kinds, ("moved", len(diff.moved))))
    return table


def _rows(kind: str, rows: Sequence[RowDifference]) -> Table:
    more = f", the first {MAX_LISTED}" if len(rows) > MAX_LISTED else ""
    title = Text(f"{kind}: {len(rows):,} rows{more}", style="bold")
    table = Table("split", "row", "question", "before", "after", title=title, title_justify="left")
    for row in rows[:MAX_LISTED]:
        table.add_row(row.split, *(_cell(text) for text in (row.where, row.question, row.before, row.after)))
    return table


def _settings(diff: DatasetDiff) -> Table:
    table = Table("setting", "before", "after", title=Text("settings", style="bold"), title_justify="left")
    for each in diff.settings:
        table.add_row(each.name, _cell(each.before), _cell(each.after))
    return table


def _cell(text: str | None) -> Text:
    line = one_line(text or "")
    return Text(line if len(line) <= _MAX_CHARS else f"{line[: _MAX_CHARS - 1]}…")
