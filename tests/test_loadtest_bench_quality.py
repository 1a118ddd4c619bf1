"""The cost of the quality monitor: what is measured, and what is said of it."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from config.home import Home
from loadtest.bench.options import BenchOptions
from loadtest.bench.quality import Server, Servers, bench_quality, compare
from loadtest.errors import TargetError
from loadtest.processes import stopped


class Pair:
    """Both servers' figures, round after round; the first one of a server is its warm-up."""

    def __init__(self, on: list[float], off: list[float]) -> None:
        self._figures = {"on": iter(on), "off": iter(off)}
        self._at_rest: set[str] = set()
        self.asked: list[tuple[str, int]] = []
        self.resting: list[set[str]] = []
        self._cpu_s = {"on": 0.0, "off": 0.0}
        servers = (
            Server(name, lambda name=name: self._rest(name), lambda name=name: self._cpu_s[name])
            for name in ("on", "off")
        )
        self.servers = Servers(*servers, models={"base": "b"})

    def measure(self, url: str, model: str, seed: int) -> float:
        self.asked.append((url, seed))
        self.resting.append(set(self._at_rest))
        self._cpu_s[url] += {"on": 10.3, "off": 10.0}[url] if seed else 99.0  # the warm-up does not count
        return next(self._figures[url])

    @contextmanager
    def _rest(self, name: str) -> Iterator[None]:
        self._at_rest.add(name)
        yield
        self._at_rest.discard(name)


def state(pid: int) -> str:
    """As `ps` says it: T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_soon_stopped(pid: int, *, is_stopped: bool) -> bool:
    """A signal is sent at once, and obeyed when the process runs next."""
    deadline = time.monotonic() + 10
    while (state(pid) == "T") != is_stopped and time.monotonic() < deadline:
        time.sleep(0.01)
    return (state(pid) == "T") == is_stopped


@pytest.fixture
def options(tmp_path: Path) -> BenchOptions:
    return BenchOptions(Home(tmp_path), rounds=3, pause_s=0)


def figures(options: BenchOptions, on: list[float], off: list[float]) -> tuple[Pair, bool | None, float | None]:
    pair, ttft = Pair(on, off), Pair([51.0, 52.0, 53.0], [50.0] * 3)
    streams, cpu, alone = compare(pair.servers, options, pair.measure, ttft.measure)
    assert (cpu.ratio, cpu.is_pass) == (pytest.approx(1.03), None)
    assert (alone.baseline, alone.value, alone.is_pass) == (50.0, 52.0, None)
    return pair, streams.is_pass, streams.ratio


def test_a_monitor_that_costs_little_reaches_the_target(options: BenchOptions) -> None:
    _, is_pass, ratio = figures(options, on=[0, 97, 98, 99], off=[0, 100, 100, 100])
    assert (is_pass, ratio) == (True, 0.98)


def test_a_monitor_that_costs_too_much_misses_it(options: BenchOptions) -> None:
    _, is_pass, ratio = figures(options, on=[0, 96, 95, 99], off=[0, 100, 100, 100])
    assert (is_pass, ratio) == (False, 0.96)


def test_each_server_is_measured_while_the_other_one_rests_and_both_are_asked_the_same(options: BenchOptions) -> None:
    pair, _, _ = figures(options, on=[1] * 4, off=[1] * 4)
    other = {"on": {"off"}, "off": {"on"}}
    assert pair.resting == [other[url] for url, _ in pair.asked]
    assert [seed for url, seed in pair.asked if url == "on"] == [seed for url, seed in pair.asked if url == "off"]
    assert len(set(pair.asked)) == 8
    assert [url for url, _ in pair.asked] == ["off", "on", "off", "on", "on", "off", "off", "on"]


def test_a_stopped_process_goes_on_afterwards() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        with stopped(process.pid):
            assert is_soon_stopped(process.pid, is_stopped=True)
        assert is_soon_stopped(process.pid, is_stopped=False)
        process.kill()


def test_a_process_that_is_gone_cannot_be_stopped() -> None:
    with pytest.raises(TargetError, match="is gone"), stopped(2**22 + 1):
        pass


def test_a_server_of_the_users_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="starts both servers itself"):
        bench_quality(BenchOptions(Home(tmp_path), url="http://test/v1"))
