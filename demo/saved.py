"""Saved scores of an interrupted demo, from which the next run resumes."""

import hashlib
import json
import shutil
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from loadtest.evaluate import LiveScore

_SCORE: TypeAdapter[LiveScore] = TypeAdapter(LiveScore)


class SavedScores:
    """One file a score. A score is of a subject: the version, the questions, and how many of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str, subject: str) -> LiveScore | None:
        """The saved score; None if incomplete or of another subject."""
        try:
            return _SCORE.validate_json(self._file(name, subject).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write(self, name: str, subject: str, score: LiveScore) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._file(name, subject)
        temporary = file.with_suffix(".tmp")
        temporary.write_bytes(_SCORE.dump_json(score))
        temporary.replace(file)

    def forget(self) -> None:
        """Delete the saved scores at the end of the demo or when it starts over."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, name: str, subject: str) -> Path:
        digest = hashlib.sha256(json.dumps([name, subject]).encode()).hexdigest()
        return self._folder / f"{name}-{digest[:16]}.json"
