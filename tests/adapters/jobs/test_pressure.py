from pathlib import Path

from adapters.jobs.database import JobsDatabase
from adapters.jobs.pressure import FRESH_S, Pressure
from tests.clock import FakeClock


def test_the_latest_fresh_ratio_is_read(tmp_path: Path) -> None:
    clock = FakeClock()
    with JobsDatabase(tmp_path / "jobs.sqlite3") as database:
        pressure = Pressure(database, clock=clock)
        assert pressure.read() == 1.0
        pressure.write(1.5)
        pressure.write(2.5)
        assert pressure.read() == 2.5
        clock.now_s += FRESH_S + 1
        assert pressure.read() == 1.0
