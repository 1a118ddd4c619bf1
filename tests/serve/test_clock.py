"""The clock of what is stored and counted by the day: it does not jump where the machine's does."""

import logging

import pytest

from serve.clock import SteadyClock, is_within

NOW_S, DAY_S, YEAR_S = 1_800_000_000.0, 86_400.0, 365 * 86_400.0


class Machine:
    """Its two clocks."""

    wall_s = NOW_S
    elapsed_s = 5.0

    def clock(self) -> SteadyClock:
        return SteadyClock(lambda: self.wall_s, lambda: self.elapsed_s)

    def wait(self, seconds: float) -> None:
        self.wall_s += seconds
        self.elapsed_s += seconds


@pytest.mark.parametrize("jump_s", [YEAR_S, -YEAR_S, 3600.0, -3600.0])
def test_a_jump_is_not_followed_at_once(jump_s: float, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall_s += jump_s
    with caplog.at_level(logging.WARNING):
        assert clock() == NOW_S
        machine.wait(3600.0)
        assert clock() == NOW_S + 3600.0
    assert caplog.text.count("The clock jumped") == 1


@pytest.mark.parametrize("jump_s", [YEAR_S, -YEAR_S])
def test_a_jump_that_lasts_a_day_is_followed(jump_s: float) -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall_s += jump_s
    clock()
    machine.wait(DAY_S + 1.0)
    clock()
    assert clock() == pytest.approx(NOW_S + jump_s + DAY_S + 1.0)


def test_a_clock_that_is_put_right_again_was_never_followed() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall_s += YEAR_S
    clock()
    machine.wall_s -= YEAR_S
    clock()
    machine.wall_s += YEAR_S
    clock()
    machine.wait(DAY_S / 2)
    assert clock() == pytest.approx(NOW_S + DAY_S / 2)


def test_small_corrections_are_followed() -> None:
    machine = Machine()
    clock = machine.clock()
    for _ in range(100):
        machine.wait(1800.0)
        machine.wall_s += 1.0
        clock()
    assert clock() == machine.wall_s


def test_a_clock_that_went_back_is_within_nothing() -> None:
    assert is_within(10.0, 9.5, 1.0)
    assert not is_within(10.0, 9.0, 1.0)
    assert not is_within(9.0, 10.0, 1.0)
