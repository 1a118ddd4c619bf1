"""A server whose versions are asked held-out questions, for the tests of the loop and of its trials."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.store.store import AdapterStore
from quality.samples.store import QualityStore
from tests.heldout_exam import Exam, make_exam, number_of
from tests.serving import make_serving


@pytest.fixture
def quality(tmp_path: Path) -> Iterator[QualityStore]:
    with QualityStore(tmp_path / "quality.sqlite3") as store:
        yield store


@pytest.fixture
def exam(store: AdapterStore, base_folder: Path, quality: QualityStore) -> Exam:
    serving = make_serving(store, base_folder, quality={"enabled": False})
    serving.engine.say = number_of
    return make_exam(serving, quality)
