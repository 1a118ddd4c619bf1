import json
import os
from pathlib import Path

import pytest

from config.home import Home
from loadtest.bench import data
from loadtest.bench.data import MeasuredBuild, bench_data, measured, results_of
from loadtest.bench.options import BenchOptions
from loadtest.errors import TargetError

THEIRS = MeasuredBuild(50.0, {"read": 10.0}, 10**9)


@pytest.mark.parametrize(
    ("total_s", "peak_bytes", "passes"),
    [(179.0, 1_900_000_000, [True, True]), (181.0, 2_100_000_000, [False, False])],
)
def test_a_build_must_be_fast_and_small(total_s: float, peak_bytes: int, passes: list[bool]) -> None:
    results = results_of(MeasuredBuild(total_s, {}, peak_bytes), THEIRS)
    assert [result.is_pass for result in results] == passes


def test_each_step_has_its_speed_beside_theirs() -> None:
    *_, read, split = results_of(MeasuredBuild(9.0, {"read": 5.0, "split": 1.0}, 1), THEIRS)
    assert (read.name, read.value, read.baseline, read.ratio) == ("read", 20_000, 10_000, 2.0)
    assert (split.value, split.baseline, split.ratio) == (100_000, None, None)


def test_figures_are_the_last_line_of_a_side() -> None:
    figures = {"total_s": 1.0, "seconds": {}, "peak_bytes": 2}
    assert measured(b"a library says\n" + json.dumps(figures).encode() + b"\n") == MeasuredBuild(1.0, {}, 2)
    with pytest.raises(TargetError, match="without figures"):
        measured(b"")


@pytest.mark.slow
def test_both_sides_build_in_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "NUM_ROWS", 500)
    results = bench_data(BenchOptions(Home(tmp_path), environment=dict(os.environ)))
    assert [result.is_pass for result in results[:2]] == [True, True]
    assert {"read", "contamination", "near duplicates", "write"} <= {result.name for result in results}
