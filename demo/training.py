"""A domain's adapter for the demo: a matching earlier version, a resumed run, or a new one."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.bases import read_base
from adapters.errors import AdapterError
from adapters.store.manifest import Manifest, RequestDefaults
from adapters.store.store import AdapterStore
from config.dataset import read_dataset
from config.domain import DomainConfig
from config.home import Home
from config.training import TrainingConfig
from demo.commands import StepFailedError
from train.runs import is_run_of, last_checkpoint, run_key


@dataclass(frozen=True)
class TrainedDomain:
    manifest: Manifest
    is_trained_here: bool


def start_over(home: Home, names: Iterable[str], marker: Path) -> None:
    """Forget unfinished runs, and keep in `marker` which versions are to be replaced, also by a later demo."""
    store = AdapterStore(home.adapters)
    newest = {name: max(store.versions(name), default=0) for name in names}
    for name in newest:
        shutil.rmtree(home.runs / name, ignore_errors=True)
    marker.parent.mkdir(parents=True, exist_ok=True)
    temporary = marker.with_suffix(".tmp")
    temporary.write_text(json.dumps(newest))
    temporary.replace(marker)


def replaced_versions(marker: Path) -> dict[str, int]:
    """The newest version of each adapter when an unfinished demo started over; empty where none did."""
    try:
        found: dict[str, int] = json.loads(marker.read_text())
    except FileNotFoundError:
        return {}
    return found


def current_version(home: Home, domain: DomainConfig, replaced: int = 0) -> Manifest | None:
    """The stable version, if newer than `replaced` and of the current base, data, recipe and request defaults."""
    store = AdapterStore(home.adapters)
    try:
        manifest = store.manifest(store.resolve(domain.name))
        base = read_base(home.bases / domain.base)
    except AdapterError:
        return None
    dataset = read_dataset(home.datasets / domain.name)
    is_current = (
        manifest.version > replaced
        and manifest.base.digest == base.digest
        and manifest.dataset is not None
        and manifest.dataset.dataset_sha256 == dataset.dataset_sha256
        and manifest.training is not None
        and _has_arguments(manifest.training.arguments, domain)
        and manifest.defaults == RequestDefaults.model_validate(dataset.version_defaults)
        and manifest.answer_schema == dataset.answer.json_schema
    )
    return manifest if is_current else None


def _has_arguments(arguments: dict[str, Any], domain: DomainConfig) -> bool:
    """Compare what training was given; a setting newer than the version counts as its default."""
    return TrainingConfig().training_arguments | arguments == domain.training_arguments


def train_words(home: Home, domain: DomainConfig, file: Path) -> list[str]:
    """The training command; resumes from the checkpoint of an interrupted identical run."""
    run = home.runs / domain.name
    key = run_key(domain, read_base(home.bases / domain.base), read_dataset(home.datasets / domain.name))
    is_resumed = is_run_of(run, key) and last_checkpoint(run) is not None
    return ["train", str(file), *(["--resume"] if is_resumed else [])]


def trained(home: Home, domain: DomainConfig, file: Path, replaced: int, run: Callable[..., None]) -> TrainedDomain:
    """The version to serve; `run` gets the words of the command, where there is something to train.

    Args:
        replaced: Versions up to this one are not reused.

    Raises:
        StepFailedError: Training failed, or the version did not pass its gates.
    """
    current = current_version(home, domain, replaced)
    if current is not None:
        return TrainedDomain(current, is_trained_here=False)
    run(*train_words(home, domain, file))
    manifest = current_version(home, domain, replaced)
    if manifest is None:
        raise StepFailedError(
            f"The new version of {domain.name!r} was not promoted: it did not pass the gates of {file}. Its scores: "
            f"`lorikeet adapters list --home {home.root}`. Give the recipe more steps, or lower the gates."
        )
    return TrainedDomain(manifest, is_trained_here=True)
