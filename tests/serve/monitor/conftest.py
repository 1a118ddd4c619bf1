from collections.abc import Iterator
from pathlib import Path

import pytest

from quality.samples.store import QualityStore


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def quality(home: Path) -> Iterator[QualityStore]:
    """An empty quality store."""
    with QualityStore(home / "quality.sqlite3") as store:
        yield store
