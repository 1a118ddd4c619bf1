"""Everything about one row: the split it is in, what steps found, and whether one dropped it."""

import re
from dataclasses import dataclass
from pathlib import Path

from config.dataset import SPLITS, Origin, Split
from config.rows import AnyRow, read_rows
from train.data.report.gather import read_findings
from train.data.steps import Finding
from train.errors import DataError


@dataclass(frozen=True)
class RowAccount:
    """`split` and `row` are None if a step dropped the row.

    Attributes:
        index: Of the row in its split, from 0.
        findings: Pairs of a step's name and a finding.
    """

    origin: Origin | None
    split: Split | None
    row: AnyRow | None
    index: int
    findings: tuple[tuple[str, Finding], ...]


def parse_line(text: str) -> Origin:
    """`support.jsonl:12`, or `support.jsonl line 12` as findings have it.

    Raises:
        DataError: It is neither.
    """
    match = re.fullmatch(r"(?P<file>.+?)(?::| line )(?P<line>[1-9]\d{0,11})", text, re.DOTALL)
    if match is None:
        raise DataError(f"--line is {text!r}; it must be a file and a line, as support.jsonl:12.")
    return Origin(file=match["file"], line=int(match["line"]))


def account_of_line(folder: Path, origin: Origin) -> RowAccount:
    """The row of a source file's line.

    Raises:
        DataError: No row of the data set, and no finding, comes from that line.
    """
    findings = tuple(
        (step, found) for step, each in read_findings(folder).items() for found in each if found.origin == origin
    )
    for split in SPLITS:
        for index, row in enumerate(read_rows(folder, split)):
            if row.origin == origin:
                return RowAccount(origin, split, row, index, findings)
    if not findings:
        raise DataError(f"No row comes from {origin}. Name the file as in `data report`, and a line that has a row.")
    return RowAccount(origin, None, None, 0, findings)


def account_of_row(folder: Path, number: int) -> RowAccount:
    """The training row of a number, from 1.

    Raises:
        DataError: There are fewer rows.
    """
    rows = list(read_rows(folder, "train"))
    if number > len(rows):
        raise DataError(f"--row is {number}, but the training split has {len(rows)} rows.")
    row = rows[number - 1]
    if row.origin is None:
        return RowAccount(None, "train", row, number - 1, ())
    return account_of_line(folder, row.origin)
