"""Recovery from killed writers. Every writer runs it first, under the adapter's lock."""

import logging
from pathlib import Path

from adapters.store.durable import clear_unfinished
from adapters.store.folders import clear_discarded, discard_version, is_complete, version_folders
from adapters.store.history import (
    HISTORY_FILE,
    Event,
    append_events,
    published_versions,
    read_history,
    removed_versions,
)

logger = logging.getLogger(__name__)


def heal(folder: Path, *, at: str) -> None:
    """Finish removals and record versions whose publisher died before its last line.

    The caller holds the adapter's lock.

    Args:
        at: Current time, UTC, ISO 8601.

    Raises:
        IntegrityError: The history is broken in the middle.
    """
    history = read_history(folder)
    versions, removed = version_folders(folder), removed_versions(history)
    clear_unfinished(folder / HISTORY_FILE)
    clear_discarded(folder)
    for version in sorted(versions.keys() & removed):
        discard_version(folder, version)
        logger.warning("%s@%d was being removed by a process that died; deleting its folder", folder.name, version)
    complete = {version for version, path in versions.items() if is_complete(path)}
    missing = sorted(complete - removed - published_versions(history))
    append_events(folder, [Event(kind="published", at=at, version=v, reason="recovered") for v in missing])
    for version in missing:
        logger.warning(
            "%s@%d was being published by a process that died; recording it in the history", folder.name, version
        )
