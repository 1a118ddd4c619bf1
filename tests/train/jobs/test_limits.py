import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.jobs.database import JobsDatabase
from adapters.jobs.pressure import Pressure
from tests.clock import FakeClock
from train.jobs.limits import YieldToClients, cores_of, lower_priority, used_bytes

CORES = sorted(os.sched_getaffinity(0))


def test_a_training_has_half_of_the_cores_by_default() -> None:
    assert cores_of(None) == CORES[-max(len(CORES) // 2, 1) :]
    assert cores_of(1) == CORES[-1:]
    assert cores_of(10_000) == CORES


@pytest.mark.slow
def test_a_process_that_stands_back_is_niced_and_bounded() -> None:
    code = (
        f"import os; from {lower_priority.__module__} import lower_priority; lower_priority(1); "
        "print(os.nice(0), sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["19", f"[{CORES[-1]}]", "1"]


def test_memory_is_that_of_the_process_and_its_children() -> None:
    assert used_bytes(os.getpid()) > 10 << 20
    assert used_bytes(2**22 + 1) == 0


@pytest.fixture
def pressure(tmp_path: Path) -> Pressure:
    return Pressure(JobsDatabase(tmp_path / "jobs.sqlite3"), clock=lambda: 0.0)


def test_clients_that_suffer_are_given_way(pressure: Pressure) -> None:
    clock = FakeClock()
    yielding = YieldToClients(pressure, 2.0, clock)
    assert not yielding.is_needed()
    pressure.write(2.5)
    assert not yielding.is_needed()  # it has just looked
    clock.now_s += 1.0
    assert yielding.is_needed()


def test_a_training_without_a_limit_never_waits(pressure: Pressure) -> None:
    pressure.write(100.0)
    assert not YieldToClients(pressure, None).is_needed()


def test_a_training_goes_on_when_clients_are_well_for_a_while(pressure: Pressure) -> None:
    clock, ratios = FakeClock(), iter([2.5, 1.0, 1.8, *[1.2] * 20])

    def sleep(seconds: float) -> None:
        clock.now_s += seconds
        pressure.write(next(ratios))

    YieldToClients(pressure, 2.0, clock, sleep).wait(lambda: False)
    assert clock.now_s == 1008.0  # calm from the third second on, for five


def test_a_waiting_training_looks_whether_it_is_stopped(pressure: Pressure) -> None:
    YieldToClients(pressure, 2.0, FakeClock(), lambda seconds: None).wait(lambda: True)
