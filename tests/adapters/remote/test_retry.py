from random import Random

import pytest

from adapters.remote.retry import Retry


class Flaky:
    """Fails a number of times, then gives 42."""

    def __init__(self, num_failures):
        self.num_calls, self._num_failures = 0, num_failures

    def __call__(self):
        self.num_calls += 1
        if self.num_calls <= self._num_failures:
            raise ConnectionError(f"failure {self.num_calls}")
        return 42


@pytest.fixture
def waits():
    return []


def retried(flaky, waits, *, is_final=lambda error: False, **changes):
    retry = Retry(sleep=waits.append, random=Random(0), **changes)
    return retry.call(flaky, what="work", is_final=is_final)


def test_work_that_succeeds_is_done_once_and_waits_for_nothing(waits):
    assert retried(flaky := Flaky(0), waits) == 42
    assert (flaky.num_calls, waits) == (1, [])


def test_work_that_fails_is_done_again(waits):
    assert retried(Flaky(3), waits, num_attempts=4) == 42
    assert len(waits) == 3


def test_the_last_failure_is_raised(waits):
    with pytest.raises(ConnectionError, match="failure 4"):
        retried(Flaky(9), waits, num_attempts=4)


def test_a_final_failure_is_raised_at_once(waits):
    with pytest.raises(ConnectionError, match="failure 1"):
        retried(Flaky(9), waits, is_final=lambda error: True)
    assert waits == []


def test_waits_double_up_to_a_limit_and_lose_up_to_half_to_chance(waits):
    with pytest.raises(ConnectionError):
        retried(Flaky(9), waits, num_attempts=6, first_wait_s=1.0, max_wait_s=4.0)
    longest_s = [1.0, 2.0, 4.0, 4.0, 4.0]
    assert all(longest / 2 <= wait <= longest for wait, longest in zip(waits, longest_s, strict=True))
    assert len(set(waits)) == len(waits)
