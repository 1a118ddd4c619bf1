"""`lorikeet bench data`: building a data set of 100,000 rows of 200 tokens, beside `datasets` alone.

Each side is a process (`train/bench_data.py`) that reads the same file. `datasets` has no part for contradictions, near
copies and contamination, so only the steps that both have are compared.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.children import child
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult
from loadtest.bench.servers import kept_logs
from loadtest.errors import TargetError

NUM_ROWS = 100_000
MOST_S = 180.0
MOST_MB = 2000.0


@dataclass(frozen=True)
class MeasuredBuild:
    """One build: seconds of each step and in all, and the peak of memory."""

    total_s: float
    seconds: dict[str, float]
    peak_bytes: int


def bench_data(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Write the rows, then build a data set of them on each side.

    Raises:
        TargetError: A side ended without an answer. Its log is kept; the message says where.
    """
    with kept_logs() as folder:
        _run(options, "rows", folder)
        theirs = measured(_run(options, "datasets", folder))
        ours = measured(_run(options, "lorikeet", folder))
        (folder / "rows.jsonl").unlink()
    return results_of(ours, theirs)


def results_of(ours: MeasuredBuild, theirs: MeasuredBuild) -> tuple[BenchResult, ...]:
    """Time and memory of the whole build, then each step's speed."""
    total, peak_mb = ours.total_s, ours.peak_bytes / 1e6
    return (
        BenchResult(
            name=f"build of {NUM_ROWS:,} rows (baseline: `datasets`, which does less)",
            value=total,
            unit="s",
            baseline=theirs.total_s,
            target=f"below {MOST_S:g} s",
            is_pass=total < MOST_S,
        ),
        BenchResult(
            name="peak memory (baseline: `datasets`)",
            value=peak_mb,
            unit="MB",
            baseline=theirs.peak_bytes / 1e6,
            target=f"below {MOST_MB:g} MB",
            is_pass=peak_mb < MOST_MB,
        ),
        *(_speed(step, seconds, theirs.seconds.get(step)) for step, seconds in ours.seconds.items()),
    )


def _speed(step: str, seconds: float, theirs: float | None) -> BenchResult:
    value, baseline = NUM_ROWS / seconds, NUM_ROWS / theirs if theirs else None
    return BenchResult(
        name=step, value=value, unit="rows/s", baseline=baseline, ratio=value / baseline if baseline else None
    )


def measured(output: bytes) -> MeasuredBuild:
    """The last line that a side printed; libraries print lines of their own before it.

    Raises:
        TargetError: There is none.
    """
    lines = [line for line in output.splitlines() if line.startswith(b"{")]
    if not lines:
        raise TargetError("A build ended without figures.")
    return MeasuredBuild(**json.loads(lines[-1]))


def _run(options: BenchOptions, side: str, folder: Path) -> bytes:
    options.say({"rows": f"writing {NUM_ROWS:,} rows"}.get(side, f"building with {side}"))
    command: Sequence[str] = [sys.executable, "-P", "-m", "train.bench_data", side, str(folder), str(NUM_ROWS)]
    log = folder / f"{side}.log"
    with (
        log.open("w") as file,
        child(command, output=file, is_asked=True, environment=options.environment) as process,
    ):
        output, _ = process.communicate()
        if process.returncode != 0:
            raise TargetError(f"The side {side!r} of the benchmark ended with status {process.returncode}.")
    return output
