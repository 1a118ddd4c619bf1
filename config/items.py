"""Rows of a data set with answers to them, as the items that metrics score."""

from collections.abc import Sequence

from config.dataset import DatasetRow
from quality.metrics.item import Item, ToolUse, label

MAX_CLASSES = 30
"""With more distinct expected answers than this, they are not treated as classes."""


def items_of(
    rows: Sequence[DatasetRow], texts: Sequence[str], calls: Sequence[tuple[ToolUse, ...]] | None = None
) -> list[Item]:
    """The rows with one answer each, sliced by scope, by class where they are few, and by `evaluation.slice_by`.

    Args:
        texts: One answer a row, in order.
        calls: The tool calls of each answer; None: no answer has any.
    """
    found = calls if calls is not None else [()] * len(rows)
    classes = {label(row.output) for row in rows}
    by_class = 1 < len(classes) <= MAX_CLASSES
    return [
        Item(
            id=f"{number}: {row.origin}" if row.origin else str(number),
            question=row.input,
            expected=row.output,
            answer=text,
            in_scope=row.in_scope,
            expected_calls=tuple(
                ToolUse(call.function.name, call.function.arguments) for call in row.messages[-1].tool_calls
            ),
            calls=own_calls,
            slices={"scope": "in" if row.in_scope else "out"}
            | ({"class": label(row.output)} if by_class else {})
            | row.fields,
            context=_context(row),
        )
        for number, (row, text, own_calls) in enumerate(zip(rows, texts, found, strict=True), 1)
    ]


def _context(row: DatasetRow) -> str:
    """The prompt's turns but for the question, by their roles."""
    turns = list(row.prompt)
    last = max((number for number, turn in enumerate(turns) if turn.role == "user"), default=None)
    return "\n\n".join(f"[{turn.role}]\n{turn.content}" for n, turn in enumerate(turns) if n != last)
