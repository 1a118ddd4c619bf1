"""The stores around a remote one: a trainer's, which pushes, and a server's, which mirrors and fetches."""

from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.reference import Target
from adapters.remote.remote import RemoteStore
from adapters.store.store import AdapterStore
from tests.peft_folders import draft_for

FIRST, SECOND = Target("medical", 1), Target("medical", 2)


@pytest.fixture
def origin(store: AdapterStore, peft_folder: Path) -> AdapterStore:
    """The store of a trainer: `medical@1` is stable, `medical@2` has no alias."""
    for _ in range(2):
        store.publish(peft_folder, draft_for(peft_folder))
    store.promote("medical", 1)
    return store


@pytest.fixture
def mirror(tmp_path: Path) -> AdapterStore:
    """The empty store of a server."""
    return AdapterStore(tmp_path / "mirror")


@pytest.fixture
def waits() -> list[float]:
    """Seconds that were waited between attempts."""
    return []


@pytest.fixture
def connect(waits: list[float]) -> Callable[[str, AdapterStore], RemoteStore]:
    return lambda url, store: RemoteStore(url, store, sleep=waits.append)
