"""The folder of a training run: identity of its checkpoints, and the checkpoint to resume from."""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from adapters.store.manifest import BaseManifest, ComputeRecord
from config.converted_methods import AFTER_TRAINING
from config.dataset import DatasetManifest
from config.private import make_private_folder
from config.training import TrainingConfig

RUN_FILE = "run.json"
_STATE_FILE = "trainer_state.json"


def run_key(config: TrainingConfig, base: BaseManifest, dataset: DatasetManifest) -> str:
    """Identity of a run; a checkpoint may only be resumed by the same run."""
    arguments = config.training_arguments
    arguments["method"] = {key: value for key, value in arguments["method"].items() if key not in AFTER_TRAINING}
    text = f"{base.digest}\n{dataset.dataset_sha256}\n{json.dumps(arguments, sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()


def start_run(folder: Path, key: str) -> None:
    make_private_folder(folder.parent)
    folder.mkdir()
    _write(folder, {"key": key})


def is_run_of(folder: Path, key: str) -> bool:
    """Whether the run used this base, data set and recipe."""
    try:
        return bool(json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["key"] == key)
    except (FileNotFoundError, ValueError):
        return False


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; the trainer writes its state file last."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{_STATE_FILE}")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def read_template_time(folder: Path) -> datetime | None:
    """The time passed to the chat template; a resumed run keeps the date of its first start."""
    kept = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get("template_time")
    return None if kept is None else datetime.fromisoformat(kept)


def write_template_time(folder: Path, at: datetime) -> None:
    _add(folder, {"template_time": at.isoformat()})


def read_compute(folder: Path) -> ComputeRecord | None:
    """Precision and threads of the run; a resumed run keeps those of its first start."""
    kept = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get("compute")
    return None if kept is None else ComputeRecord.model_validate(kept)


def write_compute(folder: Path, compute: ComputeRecord) -> None:
    _add(folder, {"compute": compute.model_dump(mode="json")})


def has_ended(folder: Path, num_steps: int) -> bool:
    """Whether training ended after so many steps, so that only what follows it is left to do."""
    return bool(json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get("ended_after") == num_steps)


def write_end(folder: Path, num_steps: int) -> None:
    _add(folder, {"ended_after": num_steps})


def read_run_name(folder: Path) -> str | None:
    """The run's name in the trackers of `recipe.report_to`; a resumed run goes on under it."""
    try:
        name = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get("run_name")
    except (FileNotFoundError, ValueError):
        return None
    return None if name is None else str(name)


def write_run_name(folder: Path, name: str) -> None:
    _add(folder, {"run_name": name})


def _add(folder: Path, content: dict[str, Any]) -> None:
    kept = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    _write(folder, kept | content)


def _write(folder: Path, content: dict[str, Any]) -> None:
    """Write to a temporary name, then rename, so that a crash leaves no partial file."""
    temporary = folder / f"{RUN_FILE}.tmp"
    temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    temporary.replace(folder / RUN_FILE)
