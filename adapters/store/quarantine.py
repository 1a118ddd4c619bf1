"""Versions that a server took out of service: `quarantine.json` beside an adapter's history.

Kept out of the history, because local events would make it diverge from a remote store's history.
"""

from functools import lru_cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from adapters.errors import IntegrityError
from adapters.store.durable import replace_file
from adapters.store.history import FileKey, file_key
from adapters.store.record import Record

QUARANTINE_FILE = "quarantine.json"


class Quarantined(Record):
    """Start time (UTC, ISO 8601) and reason of a version's quarantine."""

    since: str
    reason: str


_Versions = TypeAdapter(dict[int, Quarantined])


def read_quarantine(folder: Path) -> dict[int, Quarantined]:
    """The versions of an adapter's folder that are out of service.

    Raises:
        IntegrityError: The file is broken.
    """
    key = file_key(folder / QUARANTINE_FILE)
    return dict(_read(key)) if key is not None else {}


def write_quarantine(folder: Path, versions: dict[int, Quarantined]) -> None:
    """Replace the quarantine file, durably. The caller holds the adapter's lock."""
    replace_file(folder / QUARANTINE_FILE, _Versions.dump_json(versions, indent=2))


@lru_cache(maxsize=2048)
def _read(key: FileKey) -> dict[int, Quarantined]:
    try:
        return _Versions.validate_json(key.path.read_bytes())
    except ValidationError as error:
        raise IntegrityError(
            f"{key.path.parent.name}/{key.path.name} cannot be read. Delete it to put all versions back into service."
        ) from error
