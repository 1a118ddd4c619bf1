"""State derived from an adapter's history, cached per change because every request needs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from adapters.release.aliases import current_aliases
from adapters.release.traffic import Split, current_split, pinned_versions
from adapters.store.history import FileKey, history_key, read_at, removed_versions


@dataclass(frozen=True)
class AdapterState:
    """Aliases, traffic split, pinned versions and removed versions."""

    aliases: Mapping[str, int]
    split: Split
    pins: frozenset[int]
    removed: frozenset[int]


def read_state(folder: Path) -> AdapterState:
    """The state of an adapter's folder.

    Raises:
        IntegrityError: A line of its history before the last is not a valid event.
    """
    return _derive(history_key(folder))


@lru_cache(maxsize=2048)
def _derive(key: FileKey | None) -> AdapterState:
    history = read_at(key)
    return AdapterState(
        current_aliases(history), current_split(history), pinned_versions(history), removed_versions(history)
    )
