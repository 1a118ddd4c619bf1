"""The folder of a job that has not ended: its files by name, its settings, and the checkpoints of its run."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.home import Home
from config.private import make_private_folder

_FOLDER = "running"
_DOMAIN_FILE = "domain.json"
TRAINING_FILE, VALIDATION_FILE = "training.jsonl", "validation.jsonl"


@dataclass(frozen=True)
class JobHome(Home):
    """The state folder as one job's training sees it: runs of other jobs of the same adapter are elsewhere."""

    job_id: str

    @property
    def runs(self) -> Path:
        return self.folder / "run"

    @property
    def folder(self) -> Path:
        return self.jobs / _FOLDER / self.job_id

    @property
    def lock(self) -> Path:
        """Held by the process that trains the job."""
        return self.folder / "lock"

    def prepare(self) -> None:
        for folder in (self.jobs, self.folder.parent, self.folder, self.runs):
            make_private_folder(folder)

    def link(self, name: str, content: Path) -> Path:
        """Give a stored file a name by which its format is known."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.symlink_to(content.absolute())
        return path

    def read_values(self) -> dict[str, Any] | None:
        """Values of the domain with which the job started; None: not started yet."""
        path = self.folder / _DOMAIN_FILE
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def write_values(self, values: Mapping[str, Any]) -> None:
        """Save the values, so that a resumed job uses the same settings, whatever has changed meanwhile."""
        temporary = self.folder / f"{_DOMAIN_FILE}.tmp"
        temporary.write_text(json.dumps(values, default=str), encoding="utf-8")
        temporary.replace(self.folder / _DOMAIN_FILE)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def running_folders(home: Home) -> list[Path]:
    """Folders of jobs that have begun, and of some that have ended."""
    return [path for path in (home.jobs / _FOLDER).glob("ftjob-*") if path.is_dir()]
