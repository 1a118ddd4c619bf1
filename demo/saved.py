"""What an interrupted demo has asked already, so that the next one resumes from there."""

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
        """None where it was not asked to the end, or of another subject."""
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
        """The demo is over, or starts over: what is asked next is asked anew."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, name: str, subject: str) -> Path:
        digest = hashlib.sha256(json.dumps([name, subject]).encode()).hexdigest()
        return self._folder / f"{name}-{digest[:16]}.json"
