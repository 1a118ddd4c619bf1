from pathlib import Path

import pytest

from adapters.store.store import AdapterStore
from tests.serving import Serving, make_serving


@pytest.fixture
def serving(store: AdapterStore, base_folder: Path) -> Serving:
    """A server over an empty store, with the stand-in engine."""
    return make_serving(store, base_folder)
