"""Jobs that are really trained, with a tiny base: ended, killed, paused, and out of space."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from adapters.jobs.records import Job
from adapters.reference import Target
from adapters.store.manifest import JobRef, Manifest
from adapters.store.store import AdapterStore
from config.jobs import JobsConfig
from tests.jobs_on_disk import TINY_RECIPE, JobsOnDisk, jobs_on_disk, preference_lines, reinforcement_lines
from tests.tiny_llama import prepare_tiny_base, write_tiny_llama
from train.jobs.worker import Worker
from train.runs import last_checkpoint

pytestmark = pytest.mark.slow

PATIENCE_S = 600.0  # a job has the lowest priority: beside other tests it takes minutes
LONG_RECIPE = TINY_RECIPE | {"recipe": TINY_RECIPE["recipe"] | {"max_steps": 120, "eval_steps": 30}}


@pytest.fixture
def disk(tmp_path: Path) -> JobsOnDisk:
    disk = jobs_on_disk(tmp_path)
    prepare_tiny_base(disk.home, write_tiny_llama(tmp_path / "model"))
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump({"base": "tiny", "jobs": {"cpus": 1}}))
    return disk


def start_worker(disk: JobsOnDisk) -> "subprocess.Popen[bytes]":
    config = disk.home.root.parent / "serve.yaml"
    command = [sys.executable, "-m", "lorikeet", "worker", "--config", str(config), "--home", str(disk.home.root)]
    return subprocess.Popen(command)


def stop(worker: "subprocess.Popen[bytes]") -> None:
    worker.terminate()
    worker.wait(PATIENCE_S)


def wait_for(disk: JobsOnDisk, job: Job, is_reached: Callable[[Job], Any]) -> Job:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        found = disk.queue.get(None, job.id)
        if is_reached(found):
            return found
        assert not found.has_ended, (found.error, disk.messages(job))
        time.sleep(0.05)
    raise AssertionError(disk.messages(job))


def run(disk: JobsOnDisk, job: Job) -> Job:
    worker = start_worker(disk)
    try:
        return wait_for(disk, job, lambda found: found.has_ended)
    finally:
        stop(worker)


def manifests(disk: JobsOnDisk) -> list[Manifest]:
    store = AdapterStore(disk.home.adapters)
    return [store.verify(Target("colours", version)) for version in store.versions("colours")]


def results(disk: JobsOnDisk, job: Job) -> list[Manifest]:
    return [manifest for manifest in manifests(disk) if manifest.job == JobRef(id=job.id)]


def children_of(worker: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return psutil.Process(worker.pid).children(recursive=True)


def test_a_job_becomes_a_version_with_all_that_clients_are_told(disk: JobsOnDisk) -> None:
    job = run(disk, disk.submit(status="validating_files"))
    assert (job.status, job.error) == ("succeeded", None)
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith("ft:tiny:acme:colours:")
    [result] = results(disk, job)
    assert job.version == result.lora_name
    assert AdapterStore(disk.home.adapters).resolve("colours") == Target("colours", result.version)
    assert job.trained_tokens
    assert disk.steps(job) == [1, 2, 3, 4]
    assert any(message.startswith("Step 2/4: training loss=") for message in disk.messages(job))
    csv, report = (disk.read(file_id) for file_id in job.result_files)
    assert csv.splitlines()[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert [line.partition(",")[0] for line in csv.splitlines()[1:]] == ["1", "2", "3", "4"]
    assert report.startswith("---")
    [checkpoint] = disk.queue.checkpoints("acme", job.id).items
    assert checkpoint.step_number == 2
    assert checkpoint.metrics["valid_loss"] is not None
    assert checkpoint.version in {manifest.lora_name for manifest in manifests(disk)}
    assert not (disk.home.jobs / "running" / job.id).exists()


def test_preferences_are_trained_too(disk: JobsOnDisk) -> None:
    recipe = TINY_RECIPE | {"recipe": TINY_RECIPE["recipe"] | {"max_steps": 2, "eval_steps": 1}}
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
    job = run(disk, disk.submit(preference_lines(), method=method, lorikeet={"domain": recipe}))
    assert job.status == "succeeded"
    [result] = results(disk, job)
    assert result.training is not None
    assert result.training.arguments["objective"]["beta"] == 0.2


def test_reinforcement_is_rewarded_by_the_jobs_grader(disk: JobsOnDisk) -> None:
    grader = {
        "type": "text_similarity",
        "name": "near",
        "input": "{{sample.output_text}}",
        "reference": "{{ item.reference_answer }}",
        "evaluation_metric": "fuzzy_match",
    }
    recipe = TINY_RECIPE | {"recipe": {"max_steps": 2, "eval_steps": 1, "max_length": 128}}
    method = {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": {"batch_size": 1}}}
    job = run(disk, disk.submit(reinforcement_lines(), method=method, lorikeet={"domain": recipe, "alias": None}))
    assert job.status == "succeeded"
    [result] = results(disk, job)
    assert "reward" in result.scores
    assert AdapterStore(disk.home.adapters).aliases("colours") == {}
    assert any("training reward=" in message for message in disk.messages(job))


@pytest.mark.parametrize("victims", ["child", "worker", pytest.param("both", marks=pytest.mark.exhaustive)])
def test_a_killed_training_goes_on_from_its_checkpoint(disk: JobsOnDisk, victims: str) -> None:
    job = disk.submit(lorikeet={"domain": LONG_RECIPE})
    worker = start_worker(disk)
    wait_for(disk, job, lambda found: max(disk.steps(job), default=0) >= 40)
    children = children_of(worker)
    targets = {"child": children, "worker": [psutil.Process(worker.pid)]}
    targets["both"] = targets["worker"] + targets["child"]
    for target in targets[victims]:
        target.send_signal(signal.SIGKILL)
    if victims != "child":
        worker.wait()
        worker = start_worker(disk)
    try:
        ended = wait_for(disk, job, lambda found: found.has_ended)
    finally:
        stop(worker)
    psutil.wait_procs(children, timeout=30)
    assert ended.status == "succeeded"
    assert disk.steps(job) == list(range(1, 121))
    assert len(results(disk, job)) == 1
    steps = [manifest.job.step for manifest in manifests(disk) if manifest.job and manifest.job.step]
    assert steps == sorted(set(steps)) == [30, 60, 90]
    assert disk.messages(job).count("Fine-tuning job started") == 1


def test_a_paused_job_goes_on_where_it_stopped(disk: JobsOnDisk) -> None:
    job = disk.submit(lorikeet={"domain": LONG_RECIPE})
    worker = start_worker(disk)
    try:
        wait_for(disk, job, lambda found: max(disk.steps(job), default=0) >= 35)
        disk.queue.ask("acme", job.id, "pause")
        wait_for(disk, job, lambda found: found.status == "paused")
        checkpoint = last_checkpoint(disk.home.jobs / "running" / job.id / "run" / "colours")
        assert checkpoint is not None
        assert checkpoint.name == f"checkpoint-{disk.steps(job)[-1]}"
        disk.queue.ask("acme", job.id, "resume")
        assert wait_for(disk, job, lambda found: found.has_ended).status == "succeeded"
    finally:
        stop(worker)
    assert disk.steps(job) == list(range(1, 121))


def test_a_cancelled_training_publishes_nothing_more(disk: JobsOnDisk) -> None:
    job = disk.submit(lorikeet={"domain": LONG_RECIPE})
    worker = start_worker(disk)
    try:
        wait_for(disk, job, lambda found: max(disk.steps(job), default=0) >= 35)
        disk.queue.ask("acme", job.id, "cancel")
        assert wait_for(disk, job, lambda found: found.has_ended).status == "cancelled"
    finally:
        stop(worker)
    assert results(disk, job) == []
    assert not (disk.home.jobs / "running" / job.id).exists()


def test_a_version_published_before_a_crash_is_not_published_again(disk: JobsOnDisk) -> None:
    job = run(disk, disk.submit())
    again = disk.job(id=f"ftjob-{'0' * 24}")
    store = AdapterStore(disk.home.adapters)
    published = results(disk, job)[0]
    path = store.folder(Target("colours", published.version)) / "manifest.json"
    path.write_text(path.read_text().replace(job.id, again.id))  # as if its worker had died before it said so
    ended = run(disk, disk.queue.submit(again))
    assert (ended.status, ended.version) == ("succeeded", published.lora_name)
    assert disk.steps(ended) == []


def test_a_full_disk_fails_the_job_with_its_reason(disk: JobsOnDisk) -> None:
    """Of the training's process no file can exceed the limit, as on a full disk."""
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)); "
    limited += "runpy.run_module('train.jobs.child', run_name='__main__', alter_sys=True)"
    job = disk.submit(lorikeet={"domain": TINY_RECIPE | {"method": {"name": "lora", "r": 256, "lora_alpha": 256}}})
    worker = Worker(disk.home, disk.database, JobsConfig(cpus=1))
    worker.command = lambda task: [sys.executable, "-c", limited, task.model_dump_json()]
    while not disk.queue.get(None, job.id).has_ended:
        worker.step()
        time.sleep(0.05)
    failed = disk.queue.get(None, job.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "disk_full")
    assert AdapterStore(disk.home.adapters).versions("colours") == []
    assert not (disk.home.jobs / "running" / job.id).exists()
