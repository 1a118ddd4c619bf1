"""When an engine counts as stalled."""

import pytest

from serve.engine.stall import StallWatch, StepCounter

LOOK_S = 0.5


def looks(watch: StallWatch, *seen: tuple[int, int]) -> list[bool]:
    """What it says at looks of half a second; each sees a number of steps and one of requests."""
    return [watch.is_stalled(num_steps, num_requests, LOOK_S) for num_steps, num_requests in seen]


def test_an_engine_with_requests_and_no_step_is_stalled() -> None:
    assert looks(StallWatch(1.0), (7, 1), (7, 1), (7, 1), (7, 1)) == [False, False, False, True]


def test_a_step_or_an_idle_moment_starts_again() -> None:
    assert not any(looks(StallWatch(1.0), (7, 1), (7, 1), (8, 1), (8, 1), (8, 1), (9, 2), (9, 2), (9, 2)))
    assert not any(looks(StallWatch(1.0), (7, 1), (7, 1), (7, 0), (7, 1), (7, 1)))


def test_an_idle_engine_is_never_stalled() -> None:
    assert not any(looks(StallWatch(1.0), *[(7, 0)] * 100))


@pytest.mark.parametrize("gap_s", [10.0, 10_000.0])
def test_a_server_that_was_stopped_itself_blames_nobody(gap_s: float) -> None:
    watch = StallWatch(2.0)
    watch.is_stalled(7, 1, LOOK_S)
    assert not watch.is_stalled(7, 1, gap_s)


def test_each_record_of_vllm_is_a_step() -> None:
    counter = StepCounter()
    counter.record(scheduler_stats=None, iteration_stats=None, mm_cache_stats=None, engine_idx=0)
    counter.record(None, None)
    assert counter.num_steps == 2
