"""Files of JSON Lines to which answers and replies are appended as they come, so that a killed command loses none."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

_MAX_NAME_CHARS = 80

ParsedT = TypeVar("ParsedT")


class AnswerLines:
    """One file, readable by its owner only.

    Args:
        folder: Created if missing.
        model: Named in the file's name.
        identity: Whatever makes the answers of another file; hashed.
        suffix: After the hash.
    """

    def __init__(self, folder: Path, model: str, identity: str, suffix: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = "".join(char if char.isalnum() or char in "@.-" else "_" for char in model)[:_MAX_NAME_CHARS]
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        self.path = folder / f"{name}-{digest}{suffix}.jsonl"
        self.path.touch(mode=0o600)
        self._end_last_line()

    def append(self, fields: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")

    def _end_last_line(self) -> None:
        """End a line that was cut short, so that the next one stands alone."""
        with self.path.open("rb+") as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                file.write(b"\n")


def read_lines(path: Path, parse: Callable[[Any], ParsedT]) -> Iterator[ParsedT]:
    """The lines that `parse` accepts; one that was cut short, or is of an older version, is left out.

    Args:
        parse: Gets the parsed JSON; may raise ValueError, TypeError or KeyError.
    """
    for line in path.read_bytes().split(b"\n"):
        try:
            parsed = parse(json.loads(line))
        except (ValueError, TypeError, KeyError):
            continue
        yield parsed
