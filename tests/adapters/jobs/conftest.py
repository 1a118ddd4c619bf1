from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs_home import JobsHome


@pytest.fixture
def home(tmp_path: Path) -> Iterator[JobsHome]:
    with JobsHome(tmp_path / "jobs") as home:
        yield home
