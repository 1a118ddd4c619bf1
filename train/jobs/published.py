"""Find what a job has published by its id, so that after a crash the job is finished, not published again."""

from dataclasses import dataclass
from datetime import datetime

from adapters.jobs.files import FileStore
from adapters.jobs.models import model_name
from adapters.jobs.queue import JobQueue
from adapters.jobs.records import Job
from adapters.reference import DEFAULT_ALIAS, Target
from adapters.store.manifest import JobRef, Manifest
from adapters.store.store import AdapterStore
from train.gates import gate_reason
from train.jobs.results import write_results

_CLOCK_SKEW_S = 86_400.0


def find_version(store: AdapterStore, job: Job, step: int | None = None) -> Manifest | None:
    """The version that a job, or its checkpoint of a step, was published as; None: not yet."""
    for version in reversed(store.versions(job.adapter)):
        manifest = store.manifest(Target(job.adapter, version))
        if manifest.job == JobRef(id=job.id, step=step):
            return manifest
        if datetime.fromisoformat(manifest.created_at).timestamp() < job.created_at - _CLOCK_SKEW_S:
            break  # older than the job
    return None


def finish_promotion(store: AdapterStore, manifest: Manifest, alias: str | None) -> None:
    """Move the alias if the gates passed and the publisher died before it did."""
    is_wanted = alias is not None and manifest.gates and not manifest.unmet_gates and manifest.lora.task == "CAUSAL_LM"
    history = store.history(manifest.name)
    is_past = any(e.alias == alias and e.version is not None and e.version >= manifest.version for e in history)
    if is_wanted and not is_past and alias is not None:
        store.promote(manifest.name, manifest.version, alias, gate_reason(manifest.gates))


def alias_of(job: Job) -> str | None:
    """What moves to the job's version if its gates pass; None: nothing."""
    alias: str | None = job.lorikeet.get("alias", DEFAULT_ALIAS)
    return alias


@dataclass(frozen=True)
class Published:
    """Ends jobs whose version is in the store."""

    queue: JobQueue
    files: FileStore
    store: AdapterStore
    worker: str

    def finish(self, job: Job, manifest: Manifest) -> None:
        """Write the results, and end the job; whoever died before has done a part of it.

        Raises:
            ClaimLostError: Another worker has the job.
        """
        finish_promotion(self.store, manifest, alias_of(job))
        if manifest.unmet_gates:
            message = f"{manifest.lora_name} does not pass its gates, so no alias moved: {manifest.unmet_gates[0]}"
            self.queue.add_event(job.id, message, worker=self.worker, level="warn", key="gates")
        self.queue.finish(
            job.id,
            self.worker,
            "succeeded",
            fine_tuned_model=model_name(job.base_name or job.base, job.owner, job.suffix, job.id),
            version=manifest.lora_name,
            result_files=write_results(self.files, self.store, job, manifest),
        )
