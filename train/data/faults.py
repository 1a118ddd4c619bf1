"""One error for many faulty rows: up to ten are listed."""

from collections.abc import Sequence

from train.errors import DataError

MAX_LISTED = 10


def faults_error(rows: Sequence[str], problem: str, way_out: str) -> DataError:
    """`PROBLEM (2): ROW; ROW. WAY_OUT`; each of `rows` begins with its file and line."""
    listed = "; ".join(rows[:MAX_LISTED])
    more = f"; and {len(rows) - MAX_LISTED} more" if len(rows) > MAX_LISTED else ""
    return DataError(f"{problem} ({len(rows)}): {listed}{more}. {way_out}".strip())
