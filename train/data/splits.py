"""Training, validation and test: by seed, by time, or with groups of rows kept together."""

import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from math import isfinite
from numbers import Real
from typing import Any

from config.data import DataConfig
from config.dataset import Split
from train.data.examples import Example
from train.data.steps import MAX_LISTED, excerpt
from train.errors import DataError

DEFAULT_NUM_TEST = 240
DEFAULT_NUM_VALIDATION = 64
_TEST_SHARE = 0.2
_VALIDATION_SHARE = 0.1
_MAX_EXCESS = 1.25
"""Of a held-out split over its wanted size, where groups do not fit exactly."""

_TREE_COLUMNS = ("message_tree_id", "conversation_id")
"""Columns of well-known layouts that tie paths of one conversation together."""


class TooFewRowsError(DataError):
    """Too few rows for the sizes of the splits."""


@dataclass(frozen=True)
class Splits:
    """The rows of each split, and what a person should know of them.

    Attributes:
        train: All rows that may be trained on, in order of preference; `limit_train` takes the wanted number.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    notes: tuple[str, ...] = ()

    @property
    def held_out(self) -> tuple[Example, ...]:
        return (*self.test, *self.validation)


def split_examples(examples: Sequence[Example], config: DataConfig) -> Splits:
    """Pick test, then validation; what remains may be trained on.

    Synthetic rows are only in training, rows pinned to a split only there (those pinned to training may also be
    validated on where none is pinned to validation), and rows of a group in one split.

    Raises:
        DataError: There are too few rows, or a column is missing or cannot be ordered.
    """
    rng = random.Random(config.seed)
    rows = _Rows(examples, config, rng)
    num_test, num_validation, notes = held_out_sizes(examples, config)
    test = rows.take("test", num_test)
    validation = rows.take("validation", num_validation)
    train = rows.rest()
    if not train:
        raise TooFewRowsError(
            f"{len(examples)} distinct rows leave none to train on after {len(test)} for testing and "
            f"{len(validation)} for validation. Give more data, or lower `data.num_test` and `data.num_validation`."
        )
    rng.shuffle(test)
    notes += [*rows.left_out(), *_classes_without_test(train, test)]
    return Splits(tuple(train), tuple(validation), tuple(test), tuple(notes))


def limit_train(train: Sequence[Example], config: DataConfig) -> tuple[Example, ...]:
    """At most `num_train` rows in random order, with out-of-scope ones up to their configured share."""
    rng = random.Random(f"{config.seed} train")
    in_scope, refused = ([e for e in train if e.in_scope is wanted] for wanted in (True, False))
    share = config.out_of_scope_share
    total = min(config.num_train, round(len(in_scope) / (1 - share)))
    num_refused = min(len(refused), round(total * share))
    kept = in_scope[: config.num_train - num_refused] + refused[:num_refused]
    rng.shuffle(kept)
    return tuple(kept)


def held_out_sizes(examples: Sequence[Example], config: DataConfig) -> tuple[int, int, list[str]]:
    """Rows for testing and validation, and a note if the defaults were lowered for want of rows."""
    written = [e for e in examples if e.in_scope and not e.is_synthetic]
    pinned = Counter(e.split for e in written)
    notes = []

    def size(split: Split, setting: int | None, default: int, share: float) -> int:
        if setting is not None or pinned[split]:
            return setting or pinned[split]
        wanted = min(default, max(round(len(written) * share), 1))
        if wanted < default:
            notes.append(
                f"Of {len(written)} rows, {wanted} are held out for {split} instead of {default}. "
                f"Set `data.num_{split}` to change that."
            )
        return wanted

    num_test = size("test", config.num_test, DEFAULT_NUM_TEST, _TEST_SHARE)
    return num_test, size("validation", config.num_validation, DEFAULT_NUM_VALIDATION, _VALIDATION_SHARE), notes


class _Rows:
    """Groups of rows that are not yet in a split; a row without a group is a group of its own."""

    def __init__(self, examples: Sequence[Example], config: DataConfig, rng: random.Random) -> None:
        self._config = config
        self._strata = _strata(examples, config)
        groups = list(_groups(examples, config))
        rng.shuffle(groups)
        in_scope = [g for g in groups if g[0].in_scope]
        refused = [g for g in groups if not g[0].in_scope]
        self._in_scope = _newest_first(in_scope, config) if config.time_by else self._interleave(in_scope)
        self._refused = refused

    def take(self, split: Split, wanted: int) -> list[Example]:
        """Remove the wanted number of rows.

        Raises:
            DataError: Too few rows may be in that split.
        """
        num_refused = min(round(wanted * self._config.out_of_scope_share), (_count(self._refused) + 1) // 2)
        allowed = _allowed(self._in_scope, split)
        if _count(allowed) < wanted - num_refused:
            num_synthetic = sum(e.is_synthetic for g in self._in_scope for e in g)
            unusable = f" Synthetic rows ({num_synthetic}) are never held out." if num_synthetic else ""
            raise TooFewRowsError(
                f"The {split} split needs {wanted - num_refused} rows, but {_count(allowed)} distinct ones in "
                f"{len(allowed)} groups are left. Lower `data.num_{split}`, or give more data.{unusable}"
            )
        picked = _fill(allowed, wanted - num_refused, is_ordered=self._config.time_by is not None)
        refused = _fill(_allowed(self._refused, split), num_refused)
        taken = set(map(id, picked + refused))
        self._in_scope = [g for g in self._in_scope if id(g) not in taken]
        self._refused = [g for g in self._refused if id(g) not in taken]
        return [row for group in picked + refused for row in group]

    def rest(self) -> list[Example]:
        """Rows that may be trained on; any prefix has the strata in their shares."""
        groups = [g for g in self._in_scope + self._refused if _pin(g) in (None, "train")]
        if not self._config.time_by:
            groups = self._interleave([g for g in groups if g[0].in_scope]) + [g for g in groups if not g[0].in_scope]
        return [row for group in groups for row in group]

    def left_out(self) -> list[str]:
        """A note on rows pinned to a held-out split that has all it wants."""
        pins = Counter(_pin(g) for g in self._in_scope + self._refused for _ in g)
        return [
            f"{pins[split]} rows pinned to {split} exceed `data.num_{split}` and are not used."
            for split in ("test", "validation")
            if pins[split]
        ]

    def _interleave(self, groups: Sequence[list[Example]]) -> list[list[Example]]:
        """Order the groups so that every prefix has each stratum: in equal numbers where the source names strata, in
        proportion otherwise."""
        queues: dict[str, list[list[Example]]] = defaultdict(list)
        for group in groups:
            queues[self._strata[id(group[0])]].append(group)
        is_even = not self._config.stratify_by and any(e.stratum for group in groups for e in group)
        ranked = [
            (rank if is_even else (rank + 0.5) / len(queue), stratum, group)
            for stratum, queue in queues.items()
            for rank, group in enumerate(queue)
        ]
        return [group for _, _, group in sorted(ranked, key=lambda item: item[:2])]


def _fill(groups: Sequence[list[Example]], wanted: int, *, is_ordered: bool = False) -> list[list[Example]]:
    """Whole groups until the wanted number of rows is reached.

    Args:
        is_ordered: Take them in order. Otherwise one that exceeds the number is taken only for want of smaller ones.
    """
    picked: list[list[Example]] = []
    count = 0
    skipped = []
    for group in groups:
        if count < wanted and (is_ordered or count + len(group) <= wanted * _MAX_EXCESS):
            picked.append(group)
            count += len(group)
        else:
            skipped.append(group)
    for group in sorted(skipped, key=len):
        if count < wanted:
            picked.append(group)
            count += len(group)
    return picked


def _allowed(groups: Sequence[list[Example]], split: Split) -> list[list[Example]]:
    """Groups that may be in a held-out split, those pinned to it first."""
    written = [g for g in groups if not any(e.is_synthetic for e in g)]
    pinned = [g for g in written if _pin(g) == split]
    # Where a source pins what is trained on, early stopping needs some of it.
    others = (None, "train") if split == "validation" and not pinned else (None,)
    return pinned + [g for g in written if _pin(g) in others]


def _pin(group: Sequence[Example]) -> Split | None:
    """The split of a group; test wins over validation, and that over train, so that nothing held out is trained on."""
    pins = {e.split for e in group}
    return next((split for split in ("test", "validation", "train") if split in pins), None)


def _count(groups: Sequence[Sequence[Example]]) -> int:
    return sum(map(len, groups))


def _groups(examples: Sequence[Example], config: DataConfig) -> list[list[Example]]:
    """Rows that must stay together, in order: equal values of `group_by`, one conversation, or one row of the file."""
    if config.group_by:
        require_column(examples, config.group_by, "data.group_by")
    parents: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while (parent := parents.setdefault(key, key)) != key:
            parents[key] = key = parents[parent]
        return key

    keys = [_group_keys(e, config) or [("row", number)] for number, e in enumerate(examples)]
    for first, *others in keys:
        for other in others:
            parents[root(other)] = root(first)
    groups: dict[Hashable, list[Example]] = defaultdict(list)
    for example, (first, *_) in zip(examples, keys, strict=True):
        groups[root(first)].append(example)
    return list(groups.values())


def _group_keys(example: Example, config: DataConfig) -> list[Hashable]:
    columns = [*([config.group_by] if config.group_by else []), *_TREE_COLUMNS]
    keys: list[Hashable] = [
        (column, _group(example.fields[column])) for column in columns if not is_missing(example.fields.get(column))
    ]
    return keys + ([(example.origin.file, example.origin.line)] if example.origin else [])


def _group(value: Any) -> str:
    """A group's name without what spreadsheets and exports add: `P7 ` is `p7`, and 7.0 is 7."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(unicodedata.normalize("NFKC", str(value)).casefold().split())


def is_missing(value: Any) -> bool:
    """Whether a column of a row holds nothing."""
    return value is None or value == "" or value != value  # NaN of a spreadsheet's empty cell


def _strata(examples: Sequence[Example], config: DataConfig) -> dict[int, str]:
    """The stratum of each example, by its identity."""
    if config.stratify_by:
        require_column(examples, config.stratify_by, "data.stratify_by")
        return {id(e): str(e.fields.get(config.stratify_by, "")) for e in examples}
    counts = Counter(e.answer for e in examples if e.in_scope)
    # Where most answers are unique, they are no classes.
    repeats = 2 * len(counts) <= counts.total()
    return {id(e): e.stratum or (e.answer if repeats else "") for e in examples}


def require_column(examples: Sequence[Example], column: str, setting: str) -> None:
    """Check that a column of the source exists.

    Raises:
        DataError: No row has it.
    """
    if any(column in e.fields for e in examples):
        return
    found = sorted({name for e in examples[:100] for name in e.fields})
    raise DataError(
        f"`{setting}` is {column!r}, but no row has that column; found: {', '.join(map(repr, found)) or 'none'}."
    )


def _newest_first(groups: Sequence[list[Example]], config: DataConfig) -> list[list[Example]]:
    """Groups by the time of their newest row."""
    column = str(config.time_by)
    rows = [e for group in groups for e in group]
    require_column(rows, column, "data.time_by")
    times = {id(e): parse_time(e.fields.get(column)) for e in rows}
    faults = [e for e in rows if times[id(e)] is None]
    if faults:
        raise _bad_times(faults, column)
    return sorted(groups, key=lambda group: max(_known(times[id(e)]) for e in group), reverse=True)


def _known(moment: float | None) -> float:
    assert moment is not None
    return moment


def _bad_times(faults: Sequence[Example], column: str) -> DataError:
    lines = [
        f"  {e.origin or 'a packaged row'}: {column!r} is {excerpt(repr(e.fields.get(column)), 80)}"
        for e in faults[:MAX_LISTED]
    ]
    more = f"\n  and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
    return DataError(
        f"`data.time_by` is {column!r}, but {len(faults)} rows have no number or ISO 8601 date (2026-11-28) there:\n"
        + "\n".join(lines)
        + more
    )


def parse_time(value: Any) -> float | None:
    """Seconds or the number itself; None: neither a number nor an ISO 8601 date. Times without a zone are UTC."""
    if isinstance(value, bool) or is_missing(value):
        return None
    if isinstance(value, date):
        return _seconds(value)
    try:
        number = float(value) if isinstance(value, str | Real) else None
    except (ValueError, OverflowError):
        number = None
    if number is not None:
        return number if isfinite(number) else None
    try:
        return _seconds(datetime.fromisoformat(str(value).strip()))
    except (ValueError, OverflowError):
        return None


def _seconds(value: date) -> float:
    moment = value if isinstance(value, datetime) else datetime.combine(value, time())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _classes_without_test(train: Sequence[Example], test: Sequence[Example]) -> list[str]:
    """A note that names repeated answers of the training rows that no test row has."""
    counts = Counter(e.answer for e in train if e.in_scope and e.answer)
    if 2 * len(counts) > counts.total():
        return []
    missing = sorted(set(counts) - {e.answer for e in test})
    if not missing:
        return []
    named = ", ".join(repr(excerpt(answer, 40)) for answer in missing[:MAX_LISTED])
    more = f" and {len(missing) - MAX_LISTED} more" if len(missing) > MAX_LISTED else ""
    return [f"No test row has the answer {named}{more}: raise `data.num_test`, or give more rows of it."]
