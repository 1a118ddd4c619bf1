"""A server whose versions are asked held-out questions, for the tests of the loop and of its trials."""

from pathlib import Path

import pytest

from adapters.store.store import AdapterStore
from quality.samples.store import QualityStore
from tests.heldout_exam import Exam, make_exam, number_of
from tests.serving import make_serving


@pytest.fixture
def exam(store: AdapterStore, base_folder: Path, quality: QualityStore) -> Exam:
    serving = make_serving(store, base_folder, quality={"enabled": False})
    serving.engine.say = number_of
    return make_exam(serving, quality)
