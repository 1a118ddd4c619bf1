"""`jobs.schedule` from users' corrections to a canary on trial, with a tiny base that is really trained."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.jobs.records import Job
from adapters.reference import Target
from adapters.release.traffic import Split, current_split
from adapters.release.trials import current_trial
from adapters.store.manifest import JobRef
from adapters.store.store import AdapterStore
from config.jobs import JobsConfig, ScheduleConfig
from quality.samples.records import Turn
from quality.samples.store import QualityStore
from tests.jobs_on_disk import TINY_RECIPE, JobsOnDisk, jobs_on_disk
from tests.tiny_llama import prepare_tiny_base, write_tiny_llama
from tests.train.data.feedback.said import Said
from train.jobs.worker import Worker

pytestmark = pytest.mark.slow

PATIENCE_S = 1000.0
QUESTIONS = (
    "A ripe tomato at noon", "Blood in a test tube", "The fire engine's door", "Rust on old iron", "A robin's breast",
    "Cherries in a bowl", "Mars through a telescope", "A stop sign ahead", "Wine from Burgundy", "Lips in winter",
    "The evening sky in Kenya", "Strawberry jam on bread",
)  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path) -> JobsOnDisk:
    disk = jobs_on_disk(tmp_path)
    prepare_tiny_base(disk.home, write_tiny_llama(tmp_path / "model"))
    return disk


def worker_of(disk: JobsOnDisk, tmp_path: Path) -> Worker:
    """A worker with a schedule for `medical`."""
    domain: dict[str, Any] = {"name": "medical", "base": "tiny", "data": {"path": "rows.jsonl"}} | TINY_RECIPE
    path = tmp_path / "medical.yaml"
    path.write_text(yaml.safe_dump(domain))
    schedule = ScheduleConfig(after_corrections=len(QUESTIONS), domain=path, max_user_share=0.1)
    return Worker(disk.home, disk.database, JobsConfig(cpus=1, schedule={"medical": schedule}))


def run_to_end(worker: Worker, disk: JobsOnDisk, job_id: str) -> Job:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        worker.step()
        if worker.child is None and (job := disk.queue.get(None, job_id)).has_ended:
            return job
        time.sleep(0.05)
    raise AssertionError(disk.messages(disk.queue.get(None, job_id)))


def correct(disk: JobsOnDisk, stable: Target) -> None:
    """Each user corrects an answer of the stable version."""
    with QualityStore(disk.home.quality) as store:
        said = Said(disk.home, store, time.time(), Turn("system", "Colour?"))
        for number, question in enumerate(QUESTIONS):
            said.feedback(said.answer(question, "blue", version=stable.version), f"user-{number}", None, "red")


def test_corrections_become_a_canary_on_trial(disk: JobsOnDisk, tmp_path: Path) -> None:
    first, store = disk.submit(adapter="medical", suffix="medical"), AdapterStore(disk.home.adapters)
    worker = worker_of(disk, tmp_path)
    assert run_to_end(worker, disk, first.id).status == "succeeded"
    stable = store.resolve("medical@stable")
    correct(disk, stable)

    worker = worker_of(disk, tmp_path)  # a schedule is looked at once a minute
    worker.step()
    (job, _) = disk.queue.list(None).items
    assert (job.from_version, job.owner, job.lorikeet["alias"]) == (str(stable), "acme", "canary")
    ended = run_to_end(worker, disk, job.id)
    assert ended.status == "succeeded", (ended.error, disk.messages(job))

    canary = store.resolve("medical@canary")
    assert (ended.version, store.resolve("medical@stable")) == (str(canary), stable)
    assert store.manifest(canary).job == JobRef(id=job.id)
    worker_of(disk, tmp_path).step()
    trial = current_trial(store.history("medical"))
    assert trial is not None
    assert (trial.stable, trial.canary) == (stable.version, canary.version)
    assert current_split(store.history("medical")) == Split(0.1)
    assert len(disk.queue.list(None).items) == 2
