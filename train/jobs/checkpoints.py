"""Publish checkpoints of a job as versions that can be served."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel

from adapters.jobs.records import Job
from adapters.store.manifest import BaseManifest, JobRef, Manifest, ManifestDraft, RequestDefaults
from adapters.store.store import AdapterStore
from config.dataset import DatasetManifest
from config.domain import DomainConfig
from train.jobs.published import find_version
from train.methods.method import Trainable
from train.methods.table import served_as
from train.objectives.table import objective_of
from train.pipeline import lora_spec
from train.training import ADAPTER_NAME, save_adapter


def can_ask_checkpoints(config: DomainConfig) -> bool:
    """Whether the weights during training are an adapter; some methods are converted only at the end."""
    return served_as(config.method) == "LoRA" and objective_of(config).gives_answers


def publish_checkpoint(
    store: AdapterStore,
    job: Job,
    step: int,
    model: Trainable,
    config: DomainConfig,
    base: BaseManifest,
    dataset: DatasetManifest,
    base_folder: Path,
    scratch: Path,
) -> Manifest:
    """Publish the weights of a step as a version without alias; the same one if it was published before.

    It has no evaluation and no fingerprint: those are of the job's result.

    Raises:
        AdapterError: The store refuses it.
    """
    found = find_version(store, job, step)
    if found is not None:
        return found
    draft = ManifestDraft(
        name=job.adapter,
        base=base.ref,
        lora=lora_spec(model),
        description=f"{config.description} Checkpoint of step {step}.",
        answer_schema=config.answer.json_schema,
        job=JobRef(id=job.id, step=step),
        defaults=RequestDefaults.model_validate(dataset.version_defaults),
    )
    with tempfile.TemporaryDirectory(dir=scratch) as folder, _base_name_kept(model):
        save_adapter(model, Path(folder), base.name)
        return store.publish(Path(folder), draft, base_folder=base_folder)


@contextmanager
def _base_name_kept(model: Trainable) -> Iterator[None]:
    """Saving puts the base's name in place of its folder; by that name the trainer would look it up at a hub."""
    assert isinstance(model, PeftModel)
    settings = model.peft_config[ADAPTER_NAME]
    folder = settings.base_model_name_or_path
    try:
        yield
    finally:
        settings.base_model_name_or_path = folder
