"""How much the generator can send on time: which load counts, and where the search ends."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config.home import Home
from loadtest.bench import generator
from loadtest.bench.generator import Measured, _most_streams
from loadtest.bench.options import BenchOptions

ON_TIME = Measured(
    num_streams=32,
    chunks_per_s=1600.0,
    chunks_per_cpu_s=9000.0,
    delay_p99_s=0.002,
    lag_p99_s=0.001,
    cpu_share=0.2,
    is_all_ok=True,
)


@pytest.mark.parametrize(
    ("change", "has_kept_up"),
    [
        ({}, True),
        ({"delay_p99_s": 0.011}, False),
        ({"lag_p99_s": 0.011}, False),
        ({"delay_p99_s": float("inf")}, False),
        ({"is_all_ok": False}, False),
    ],
)
def test_a_load_counts_where_all_of_it_is_on_time(change: dict[str, Any], has_kept_up: bool) -> None:
    assert replace(ON_TIME, **change).has_kept_up is has_kept_up


@pytest.mark.parametrize(("limit", "best", "tried"), [(64, 64, [32, 64, 128]), (10**6, 1024, None), (1, 32, [32])])
def test_the_search_ends_at_the_first_load_that_is_late(
    monkeypatch: pytest.MonkeyPatch, limit: int, best: int, tried: list[int] | None
) -> None:
    """And reports the last one that was not, or the smallest where all were."""
    asked: list[int] = []

    def measured(num_streams: int) -> Measured:
        asked.append(num_streams)
        return replace(ON_TIME, num_streams=num_streams, delay_p99_s=0.001 if num_streams <= limit else 0.02)

    monkeypatch.setattr(generator, "measure", measured)
    assert _most_streams(BenchOptions(Home(Path("var")))).num_streams == best
    assert asked == (tried or list(generator.STREAMS))


@pytest.mark.slow
def test_a_small_load_is_sent_and_timed_by_the_servers_own_log() -> None:
    found = generator.measure(4)
    assert found.is_all_ok
    assert found.chunks_per_s == pytest.approx(4 / generator._ITL_S, rel=0.25)
    assert 0 <= found.delay_p99_s < 1
    assert 0 < found.cpu_share < 1
