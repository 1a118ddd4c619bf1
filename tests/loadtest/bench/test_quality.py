"""The cost of the quality monitor: what is measured, and what is said of it."""

from pathlib import Path

import pytest

from config.home import Home
from loadtest.bench.options import BenchOptions
from loadtest.bench.quality import Monitored, State, bench_quality, compare
from loadtest.errors import TargetError


class FakeServer:
    """One server's figures, measurement after measurement; the first one of each state is its warm-up."""

    def __init__(self, works: list[float], paused: list[float]) -> None:
        self._figures = {"resume": iter(works), "pause": iter(paused)}
        self._cpu_s = 0.0
        self.state: State = "resume"
        self.asked: list[tuple[State, int]] = []
        self.server = Monitored("url", self._become, lambda: self._cpu_s, {"base": "b"})

    def measure(self, url: str, model: str, seed: int) -> float:
        self.asked.append((self.state, seed))
        self._cpu_s += {"resume": 10.2, "pause": 10.0}[self.state] if seed else 99.0  # the warm-up does not count
        return next(self._figures[self.state])

    def ttft(self, url: str, model: str, seed: int) -> float:
        return {"resume": 52.0, "pause": 50.0}[self.state]

    def _become(self, state: State) -> None:
        self._cpu_s += 0.1 if self.state == "resume" else 0.0  # it writes down what it has
        self.state = state


@pytest.fixture
def options(tmp_path: Path) -> BenchOptions:
    return BenchOptions(Home(tmp_path), rounds=3, pause_s=0)


def figures(options: BenchOptions, works: list[float], paused: list[float]) -> tuple[FakeServer, bool | None, float]:
    fake = FakeServer(works, paused)
    streams, cpu, alone = compare(fake.server, options, fake.measure, fake.ttft)
    assert cpu.ratio == pytest.approx(1.03)
    assert cpu.is_pass is None
    assert (alone.baseline, alone.value, alone.is_pass) == (50.0, 52.0, None)
    assert streams.ratio is not None
    return fake, streams.is_pass, streams.ratio


def test_a_monitor_that_costs_little_reaches_the_target(options: BenchOptions) -> None:
    _, is_pass, ratio = figures(options, works=[0, 97, 98, 99], paused=[0, 100, 100, 100])
    assert (is_pass, ratio) == (True, 0.98)


def test_a_monitor_that_costs_too_much_misses_it(options: BenchOptions) -> None:
    _, is_pass, ratio = figures(options, works=[0, 96, 95, 99], paused=[0, 100, 100, 100])
    assert (is_pass, ratio) == (False, 0.96)


def test_one_server_is_measured_by_turns_and_never_asked_the_same_twice(options: BenchOptions) -> None:
    fake, _, _ = figures(options, works=[1] * 4, paused=[1] * 4)
    states = [state for state, seed in fake.asked if seed]
    assert states == ["pause", "resume", "resume", "pause", "pause", "resume"]
    assert len({seed for _, seed in fake.asked if seed}) == 6
    assert fake.state == "pause"


def test_a_server_of_the_users_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="Leave --url out"):
        bench_quality(BenchOptions(Home(tmp_path), url="http://test/v1"))
