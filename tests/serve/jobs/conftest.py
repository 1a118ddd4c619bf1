from pathlib import Path

import pytest

from adapters.store.store import AdapterStore
from tests.batch_serving import BatchServer


@pytest.fixture
def server(tmp_path: Path, store: AdapterStore, base_folder: Path) -> BatchServer:
    return BatchServer(tmp_path, store, base_folder)
