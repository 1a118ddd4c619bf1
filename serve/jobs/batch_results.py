"""Results of a batch so far: two append-only files, from which another server can resume the batch."""

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from serve.jobs.batch_lines import Fingerprint, fingerprint_of

Kind = Literal["output", "error"]
KINDS: tuple[Kind, ...] = ("output", "error")


@dataclass(frozen=True)
class LineAnswer:
    """The result of one line: an answer with its HTTP status, or the reason why it was not sent."""

    custom_id: str
    status_code: int | None = None
    request_id: str | None = None
    body: dict[str, Any] = field(default_factory=dict)
    code: str | None = None
    message: str | None = None

    @property
    def kind(self) -> Kind:
        return "output" if self.status_code == 200 else "error"

    def row(self) -> dict[str, Any]:
        """The line in OpenAI's output format."""
        response = {"status_code": self.status_code, "request_id": self.request_id, "body": self.body}
        error = {"code": self.code, "message": self.message}
        return {
            "id": f"batch_req_{secrets.token_hex(12)}",
            "custom_id": self.custom_id,
            "response": response if self.code is None else None,
            "error": None if self.code is None else error,
        }


@dataclass
class ResultCounts:
    """Counts of the lines on disk, and the tokens of the answered ones by their `usage`."""

    num_completed: int = 0
    num_failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, row: dict[str, Any]) -> None:
        response = row["response"]
        if response is None or response["status_code"] != 200:
            self.num_failed += 1
            return
        usage = response["body"].get("usage") or {}
        self.num_completed += 1
        self.input_tokens += usage.get("prompt_tokens", usage.get("input_tokens")) or 0
        self.output_tokens += usage.get("completion_tokens", usage.get("output_tokens")) or 0


class BatchResults:
    """Results of one batch on disk. All methods block; `write` survives SIGKILL and a power failure once it returns.

    Args:
        folder: Results of all batches.
    """

    def __init__(self, folder: Path, batch_id: str) -> None:
        self.counts = ResultCounts()
        self._folder = folder
        self._paths: dict[Kind, Path] = {kind: folder / f"{batch_id}.{kind}.jsonl" for kind in KINDS}
        self._done: set[Fingerprint] = set()

    def resume(self) -> None:
        """Read the results so far; an incomplete last line of a killed server is removed."""
        self.counts, self._done = ResultCounts(), set()
        for path in self._paths.values():
            if path.exists():
                self._read(path)

    def has(self, custom_id: str) -> bool:
        return fingerprint_of(custom_id) in self._done

    def path(self, kind: Kind) -> Path | None:
        """None if there is no line of this kind."""
        path = self._paths[kind]
        return path if path.exists() and path.stat().st_size else None

    def write(self, answers: Sequence[LineAnswer]) -> None:
        """Append answers of lines that had none.

        Raises:
            OSError: The disk is full; none of these answers counts.
        """
        for kind in KINDS:
            rows = [answer.row() for answer in answers if answer.kind == kind]
            if rows:
                self._append(self._paths[kind], rows)

    def remove(self) -> None:
        for path in self._paths.values():
            path.unlink(missing_ok=True)

    def _append(self, path: Path, rows: Sequence[dict[str, Any]]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            size = file.tell()
            try:
                file.write("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, size)
                raise
        self._count(rows)

    def _read(self, path: Path) -> None:
        with path.open("r+b") as file:
            end = 0
            for raw in file:
                try:
                    rows = [json.loads(raw)] if raw.endswith(b"\n") else []
                except ValueError:  # as of a block that a power failure left without its content
                    rows = []
                if not rows:
                    break
                self._count(rows)
                end += len(raw)
            file.truncate(end)

    def _count(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            self.counts.add(row)
            self._done.add(fingerprint_of(row["custom_id"]))
