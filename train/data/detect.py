"""Which layout a file has: named in `data.layout`, or detected from the columns of its first rows."""

from collections import Counter
from collections.abc import Collection, Sequence

from config.data import DataConfig
from config.dataset import Origin
from train.data.files.records import SourceRecord, shortened
from train.data.formats import FORMATS
from train.data.formats.format import Format, present
from train.errors import DataError

DETECTION_ROWS = 512
_QUESTIONS = ("input", "question", "query", "prompt", "instruction", "user", "request", "text", "source", "title")
_ANSWERS = ("output", "answer", "response", "reply", "completion", "assistant", "target", "label", "category")
_PARTS = frozenset({"instruction", "context", "history", "system_prompt", "passage", "document", "options", "choices"})
"""Columns that hold a part of the question; not `text` and `prompt`, which often repeat what turns hold."""
_QUESTION_PARTS = _PARTS | {"prompt", "question", "query", "input"}
_PARTS_OF_LAYOUT = {
    "input_output": _QUESTION_PARTS,
    "question_answer": _QUESTION_PARTS,
    "text_label": _QUESTION_PARTS,
    "text": _PARTS | {*_ANSWERS, "labels", "class", "summary", "intent", "sentiment", "topic", "translation"},
}


def layout_of(name: str, head: Sequence[SourceRecord], config: DataConfig) -> Format:
    """The layout of a file, from its first rows.

    Raises:
        DataError: None or several fit, or `data.columns` names what is not there.
    """
    if not head:
        return next(f for f in FORMATS if config.layout in ("auto", f.layout))
    columns = [renamed(present(record.fields), config) for record in head]
    _check_mapping(name, head, config)
    if config.layout != "auto":
        chosen = next(f for f in FORMATS if f.layout == config.layout)
        if not any(chosen.matches(found) for found in columns):
            raise DataError(
                f"{name}: {chosen.title} wants the columns {chosen.wanted}; found {_listed(columns)}. "
                f"Name the file's columns in `data.columns`, {_mapping_of(chosen, columns)}."
            )
        return chosen
    first: dict[str, tuple[Format, Origin]] = {}
    for record, found in zip(head, columns, strict=True):
        fitting = fitting_layouts(found)
        if len(fitting) > 1:
            titles = " and ".join(f"{f.title} ({f.wanted})" for f in fitting)
            names = " or ".join(f"`{f.layout}`" for f in fitting)
            raise DataError(f"{record.origin}: the columns fit {titles}. Set `data.layout` to {names}.")
        if fitting:
            first.setdefault(fitting[0].layout, (fitting[0], record.origin))
    if len(first) > 1:
        places = "; ".join(f"{f.title} first in line {origin.line}" for f, origin in first.values())
        raise DataError(f"{name}: rows of several layouts ({places}). Split them into one file per layout.")
    if not first:
        raise _unknown(name, columns)
    return next(iter(first.values()))[0]


def check_leftovers(name: str, chosen: Format, filled: Collection[str], config: DataConfig) -> None:
    """Refuse a detected layout that leaves out a part of the question or answer.

    Args:
        filled: Columns that are not empty in some row.

    Raises:
        DataError: There is such a column.
    """
    if config.layout != "auto":
        return
    parts = _PARTS_OF_LAYOUT.get(chosen.layout, _PARTS)
    unused = renamed(filled, config) - set(chosen.columns)
    leftover = sorted(column for column in unused if column.lower() in parts)
    if leftover:
        raise DataError(
            f"{name}: {chosen.title} does not use {_listed([leftover])}, which may be parts of the question or answer. "
            f"Name the file's columns in `data.columns`, or set `layout: {chosen.layout}` to leave these out."
        )


def spreadsheet_columns(head: Sequence[SourceRecord], config: DataConfig) -> dict[str, str]:
    """`data.columns` where only the case of the names differs from a layout's, as `Question` and `Answer`; else {}."""
    columns = [renamed(present(record.fields), config) for record in head]
    wanted = [f for f in FORMATS if f.layout == config.layout or (config.layout == "auto" and f.is_detected)]
    if any(f.matches(found) for f in wanted for found in columns):
        return {}
    names = {name for found in columns for name in found}
    counts = Counter(map(str.lower, names))
    required = {name for f in wanted for group in f.required for name in group}
    lower = {name.lower(): name for name in sorted(names) if name.lower() in required and counts[name.lower()] == 1}
    return lower if any(f.matches(lower) for f in wanted) else {}


def fitting_layouts(columns: Collection[str]) -> list[Format]:
    """Layouts whose columns are there, without those that another one includes."""
    matching = [f for f in FORMATS if f.is_detected and f.matches(columns)]
    if len(matching) > 1:  # many files carry the rendered text beside its parts
        matching = [f for f in matching if f.layout != "text"]
    beaten = {layout for f in matching for layout in f.beats}
    return [f for f in matching if f.layout not in beaten]


def renamed(columns: Collection[str], config: DataConfig) -> set[str]:
    """A file's columns by the layout's names."""
    mapped = {name for name, column in config.columns.items() if column in columns}
    return (set(columns) - set(config.columns.values()) - set(config.columns)) | mapped


def _check_mapping(name: str, head: Sequence[SourceRecord], config: DataConfig) -> None:
    known = {column for f in FORMATS if config.layout in ("auto", f.layout) for column in f.columns}
    for column in config.columns:
        if column not in known:
            raise DataError(
                f"`data.columns`: {column!r} is not a column of a layout; wanted {', '.join(sorted(known))}."
            )
    found = {column for record in head for column in record.fields}
    for column in config.columns.values():
        if column not in found:
            raise DataError(f"{name}: `data.columns` names {column!r}; found {_listed([found])}.")


def _unknown(name: str, columns: Sequence[set[str]]) -> DataError:
    known = "; ".join(f"{f.title} ({f.wanted})" for f in FORMATS if f.is_detected)
    suggested = next(f for f in FORMATS if f.layout == "input_output")
    return DataError(
        f"{name}: no known layout; found {_listed(columns)}. Known: {known}. Otherwise set `data.layout` and name the "
        f"file's columns, {_mapping_of(suggested, columns)}."
    )


def _listed(columns: Sequence[Collection[str]]) -> str:
    names = sorted({shortened(name) for found in columns for name in found})
    if not names:
        return "no columns"
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"the columns {', '.join(names[:10])}{more}"


def _mapping_of(chosen: Format, columns: Sequence[Collection[str]]) -> str:
    """An example of `data.columns`, with the likely columns where the file has such."""
    found = {name.lower(): name for row in columns for name in row}
    pairs = []
    for group in chosen.required:
        candidates = (*group, *(_ANSWERS if group[0] in _ANSWERS else _QUESTIONS))
        column = next((found[name] for name in candidates if name in found), "…")
        pairs.append(f"{group[0]}: {column}")
    return f"e.g. `layout: {chosen.layout}` and `columns: {{{', '.join(pairs)}}}`"
