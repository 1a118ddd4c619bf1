"""Measurements of `lorikeet bench cluster`, kept in a file as they are made, so that an interrupted run continues."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from loadtest.load.files import replace_text
from loadtest.load.records import LoadtestRecord

_FILE = "measured.json"

MeasuredT = TypeVar("MeasuredT", bound=LoadtestRecord)


class KeptMeasurements:
    """Measurements by name.

    Args:
        folder: Created if missing.
        say: Called with a line for each measurement.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / _FILE
        self._say = say
        self._measured: dict[str, Any] = json.loads(self._file.read_text()) if self._file.is_file() else {}
        if self._measured:
            say(f"Continuing an interrupted run; delete {self._file} to measure everything again.")

    def find(self, name: str, kind: type[MeasuredT]) -> MeasuredT | None:
        """The measurement; None if it has not been made, or by another version of this benchmark."""
        try:
            return kind.model_validate(self._measured[name]) if name in self._measured else None
        except ValidationError:
            return None

    def measure(self, name: str, kind: type[MeasuredT], measure: Callable[[], MeasuredT]) -> MeasuredT:
        """The kept measurement, or a new one, which is kept."""
        found = self.find(name, kind)
        measured = measure() if found is None else found
        self._measured[name] = measured.model_dump(mode="json")
        replace_text(self._file, json.dumps(self._measured, indent=1) + "\n")
        self._say(f"{name}: {'kept: ' if found else ''}{measured}")
        return measured

    def clear(self) -> None:
        """Forget all: the run is complete."""
        self._file.unlink(missing_ok=True)
        self._measured = {}
