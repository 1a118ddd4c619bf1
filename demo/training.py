"""A domain's adapter for the demo: an earlier version where it still fits, an interrupted run resumed, or a new one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters.base import read_base
from adapters.errors import AdapterError
from adapters.manifest import Manifest, RequestDefaults
from adapters.store import AdapterStore
from config.dataset import read_dataset
from config.home import Home
from config.schema import DomainConfig
from demo.commands import StepFailedError
from train.runs import is_run_of, last_checkpoint, run_key


@dataclass(frozen=True)
class TrainedDomain:
    manifest: Manifest
    is_trained_here: bool


def current_version(home: Home, domain: DomainConfig) -> Manifest | None:
    """The stable version, if it belongs to the base, the data, the recipe and the request defaults as they are now."""
    store = AdapterStore(home.adapters)
    try:
        manifest = store.manifest(store.resolve(domain.name))
        base = read_base(home.bases / domain.base)
    except AdapterError:
        return None
    dataset = read_dataset(home.datasets / domain.name)
    is_current = (
        manifest.base.digest == base.digest
        and manifest.dataset is not None
        and manifest.dataset.dataset_sha256 == dataset.dataset_sha256
        and manifest.training is not None
        and manifest.training.arguments == domain.recipe.model_dump(mode="json")
        and manifest.defaults == RequestDefaults.model_validate(dataset.version_defaults)
        and manifest.answer_schema == dataset.answer.json_schema
    )
    return manifest if is_current else None


def train_words(home: Home, domain: DomainConfig, file: Path, *, is_fresh: bool) -> list[str]:
    """The command that trains it; it resumes from the checkpoint of an interrupted run of the same."""
    run = home.runs / domain.name
    key = run_key(domain.recipe, read_base(home.bases / domain.base), read_dataset(home.datasets / domain.name))
    is_resumed = not is_fresh and is_run_of(run, key) and last_checkpoint(run) is not None
    return ["train", str(file), *(["--resume"] if is_resumed else [])]


def trained(home: Home, domain: DomainConfig, file: Path, *, is_fresh: bool, run: Callable[..., None]) -> TrainedDomain:
    """The version to serve; `run` gets the words of the command, where there is something to train.

    Raises:
        StepFailedError: Training failed, or the version did not pass its gates.
    """
    current = None if is_fresh else current_version(home, domain)
    if current is not None:
        return TrainedDomain(current, is_trained_here=False)
    run(*train_words(home, domain, file, is_fresh=is_fresh))
    manifest = current_version(home, domain)
    if manifest is None:
        raise StepFailedError(
            f"The new version of {domain.name!r} is not stable: it did not pass the gates of {file}. Its scores: "
            f"`lorikeet adapters list --home {home.root}`. Give the recipe more steps, or lower the gates."
        )
    return TrainedDomain(manifest, is_trained_here=True)
