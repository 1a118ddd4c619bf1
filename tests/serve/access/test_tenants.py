"""What a key may use, and when it may again. No stopwatch: the clock is ours."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.access.keys import ANONYMOUS, KeyRecord
from serve.access.tenants import TenantLimits
from serve.errors import RateLimitedError
from tests.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def limits(clock: FakeClock) -> TenantLimits:
    return TenantLimits(clock)


def key(key_id: str = "0000000a", **limits: Any) -> KeyRecord:
    return KeyRecord.model_validate(ANONYMOUS.model_dump() | {"id": key_id, "tenant": "acme"} | limits)


def refusal(limits: TenantLimits, record: KeyRecord) -> RateLimitedError:
    with pytest.raises(RateLimitedError) as error:
        limits.lease(record)
    return error.value


def answer(limits: TenantLimits, record: KeyRecord, num_tokens: int = 0) -> None:
    """One request from its admission to its end."""
    with limits.lease(record) as lease:
        lease.debit(num_tokens)


def test_a_key_without_limits_is_never_refused(limits: TenantLimits) -> None:
    leases = [limits.lease(ANONYMOUS) for _ in range(1000)]
    leases[0].debit(10**9)
    answer(limits, ANONYMOUS)


def test_a_minutes_worth_of_requests_may_come_at_once_and_not_one_more(limits: TenantLimits) -> None:
    record = key(requests_per_minute=3)
    for _ in range(3):
        answer(limits, record)
    error = refusal(limits, record)
    assert error.retry_after_s == pytest.approx(20)
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert str(error) == "Key 0000000a of 'acme' exceeds its limit of 3 requests per minute. Retry in 20.0 s."


def test_requests_refill_evenly(limits: TenantLimits, clock: FakeClock) -> None:
    record = key(requests_per_minute=3)
    for _ in range(3):
        answer(limits, record)
    clock.now_s += 19.9
    assert refusal(limits, record).retry_after_s == pytest.approx(0.1)
    clock.now_s += 0.1
    answer(limits, record)
    refusal(limits, record)


def test_a_bucket_never_holds_more_than_a_minutes_worth(limits: TenantLimits, clock: FakeClock) -> None:
    record = key(requests_per_minute=2)
    answer(limits, record)
    clock.now_s += 3600
    answer(limits, record)
    answer(limits, record)
    refusal(limits, record)


def test_tokens_are_charged_when_they_are_known_and_a_debt_is_waited_off(
    limits: TenantLimits, clock: FakeClock
) -> None:
    record = key(tokens_per_minute=600)
    answer(limits, record, num_tokens=900)
    error = refusal(limits, record)
    assert error.retry_after_s == pytest.approx(30)
    assert "600 tokens per minute" in str(error)
    clock.now_s += 30
    answer(limits, record)


def test_an_empty_bucket_is_no_debt(limits: TenantLimits) -> None:
    record = key(tokens_per_minute=600)
    answer(limits, record, num_tokens=600)
    answer(limits, record, num_tokens=1)
    assert refusal(limits, record).retry_after_s == pytest.approx(0.1)


def test_a_long_request_is_charged_at_its_end_for_nothing_that_refilled_before(
    limits: TenantLimits, clock: FakeClock
) -> None:
    record = key(tokens_per_minute=600)
    with limits.lease(record) as lease:
        clock.now_s += 600
        lease.debit(900)
    assert refusal(limits, record).retry_after_s == pytest.approx(30)


def test_tokens_may_be_charged_after_the_release(limits: TenantLimits, clock: FakeClock) -> None:
    record = key(tokens_per_minute=600)
    lease = limits.lease(record)
    lease.release()
    clock.now_s += 120
    answer(limits, key("0000000b"))
    lease.debit(900)
    assert refusal(limits, record).retry_after_s == pytest.approx(30)


def test_requests_at_a_time_are_limited_until_one_ends(limits: TenantLimits) -> None:
    record = key(max_concurrency=2)
    first, _second = limits.lease(record), limits.lease(record)
    error = refusal(limits, record)
    assert error.retry_after_s == 1
    assert "2 concurrent requests" in str(error)
    first.release()
    limits.lease(record)
    refusal(limits, record)


def test_a_lease_is_given_back_however_its_block_ends(limits: TenantLimits) -> None:
    record = key(max_concurrency=1)
    with pytest.raises(ZeroDivisionError), limits.lease(record):
        _ = 1 / 0
    limits.lease(record)


def test_a_lease_that_is_released_twice_gives_one_place_back(limits: TenantLimits) -> None:
    record = key(max_concurrency=2)
    first, _second = limits.lease(record), limits.lease(record)
    first.release()
    first.release()
    limits.lease(record)
    refusal(limits, record)


def test_a_refused_request_takes_nothing(limits: TenantLimits, clock: FakeClock) -> None:
    record = key(requests_per_minute=60, max_concurrency=1)
    lease = limits.lease(record)
    for _ in range(100):
        refusal(limits, record)
    lease.release()
    for _ in range(59):
        answer(limits, record)
    assert refusal(limits, record).retry_after_s == pytest.approx(1)


def test_of_several_limits_the_one_that_lasts_longest_says_when_to_come_back(limits: TenantLimits) -> None:
    record = key(requests_per_minute=1, tokens_per_minute=600, max_concurrency=1)
    lease = limits.lease(record)
    lease.debit(1800)
    error = refusal(limits, record)
    assert error.retry_after_s == pytest.approx(120)
    assert "tokens per minute" in str(error)


def test_keys_do_not_share_their_limits(limits: TenantLimits) -> None:
    answer(limits, key("0000000a", requests_per_minute=1))
    answer(limits, key("0000000b", requests_per_minute=1))
    refusal(limits, key("0000000a", requests_per_minute=1))


def test_a_limit_that_an_operator_changes_counts_from_the_next_request(limits: TenantLimits) -> None:
    answer(limits, key(requests_per_minute=1))
    refusal(limits, key(requests_per_minute=1))
    answer(limits, key(requests_per_minute=2))
    refusal(limits, key(requests_per_minute=2))
    answer(limits, key())


def test_keys_that_use_nothing_are_forgotten(limits: TenantLimits, clock: FakeClock) -> None:
    for number in range(500):
        answer(limits, key(f"{number:08x}", requests_per_minute=60), num_tokens=7)
    assert len(limits) == 500
    clock.now_s += 61
    answer(limits, key("ffffffff"))
    assert len(limits) == 1


def test_a_revoked_key_is_forgotten_after_its_last_request(limits: TenantLimits, clock: FakeClock) -> None:
    lease = limits.lease(key("0000000a", max_concurrency=1))
    clock.now_s += 61
    answer(limits, key("0000000b"))
    assert len(limits) == 2
    lease.release()
    clock.now_s += 61
    answer(limits, key("0000000b"))
    assert len(limits) == 1


def test_a_debt_is_not_forgotten_with_time_alone(limits: TenantLimits, clock: FakeClock) -> None:
    record = key(tokens_per_minute=60)
    answer(limits, record, num_tokens=600)
    clock.now_s += 61
    answer(limits, key("0000000b"))
    assert refusal(limits, record).retry_after_s == pytest.approx(540 - 61)


@given(
    requests=st.integers(1, 10_000),
    tokens=st.integers(1, 10_000_000),
    debts=st.lists(st.tuples(st.integers(0, 100_000), st.floats(0, 10)), max_size=30),
)
def test_whoever_waits_as_long_as_told_gets_in(requests: int, tokens: int, debts: list[tuple[int, float]]) -> None:
    clock = FakeClock()
    limits = TenantLimits(clock)
    record = key(requests_per_minute=requests, tokens_per_minute=tokens)
    for num_tokens, pause_s in debts:
        clock.now_s += pause_s
        try:
            answer(limits, record, num_tokens)
        except RateLimitedError as error:
            clock.now_s += error.retry_after_s
            answer(limits, record, num_tokens)


@given(st.integers(1, 120), st.lists(st.floats(0, 5), max_size=200))
def test_no_minute_lets_in_more_than_two_minutes_worth(per_minute: int, pauses_s: list[float]) -> None:
    clock = FakeClock()
    limits = TenantLimits(clock)
    record = key(requests_per_minute=per_minute)
    admitted_s = []
    for pause_s in pauses_s:
        clock.now_s += pause_s
        try:
            answer(limits, record)
        except RateLimitedError:
            continue
        admitted_s.append(clock.now_s)
    for start_s in admitted_s:
        assert sum(start_s <= at_s < start_s + 60 for at_s in admitted_s) <= 2 * per_minute
