import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.jobs.records import Job, JobFailure
from tests.jobs_on_disk import JobsOnDisk, jobs_on_disk
from train.jobs.cli import jobs_app

runner = CliRunner()


@pytest.fixture
def disk(tmp_path: Path) -> JobsOnDisk:
    return jobs_on_disk(tmp_path)


def lorikeet_jobs(disk: JobsOnDisk, *words: str, code: int = 0) -> str:
    result = runner.invoke(jobs_app, [*words, "--home", str(disk.home.root)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def running(disk: JobsOnDisk) -> Job:
    job = disk.submit()
    disk.queue.claim("me")
    figures = {"step": 12, "total_steps": 60, "train_loss": 0.534}
    message = "Step 12/60: training loss=0.53"
    disk.queue.add_event(job.id, message, worker="me", type="metrics", data=figures, key="step 12")
    return job


def test_jobs_are_listed_with_their_progress(disk: JobsOnDisk, running: Job) -> None:
    disk.submit(adapter="other")
    told = lorikeet_jobs(disk, "list")
    assert re.search(rf"{running.id} .* acme .* supervised .* running .* step 12 of 60, loss 0.53", told)
    assert "other" in told
    assert "other" not in lorikeet_jobs(disk, "list", "--status", "running")
    assert lorikeet_jobs(disk, "list", "--status", "failed") == "No job found.\n"


def test_a_job_is_shown_whole(disk: JobsOnDisk, running: Job) -> None:
    disk.queue.add_checkpoint(
        running.id, "me", 10, model_name="ft:tiny:acme:x:1:ckpt-step-10", metrics={}, version="colours@1"
    )
    told = lorikeet_jobs(disk, "show", running.id)
    assert "step 10: ft:tiny:acme:x:1:ckpt-step-10" in told
    assert running.training_file in told
    record = json.loads(lorikeet_jobs(disk, "show", running.id, "--json"))
    assert (record["id"], record["checkpoints"][0]["version"]) == (running.id, "colours@1")


def test_why_a_job_failed_is_shown(disk: JobsOnDisk, running: Job) -> None:
    failure = JobFailure(code="disk_full", message="The server's disk is full.")
    disk.queue.finish(running.id, "me", "failed", error=failure)
    assert "disk_full: The server's disk is full." in lorikeet_jobs(disk, "show", running.id)
    assert "disk_full" in lorikeet_jobs(disk, "list")


def test_a_waiting_job_is_paused_resumed_and_cancelled(disk: JobsOnDisk) -> None:
    job = disk.submit()
    assert lorikeet_jobs(disk, "pause", job.id) == f"{job.id} is paused.\n"
    assert lorikeet_jobs(disk, "resume", job.id) == f"{job.id} is queued.\n"
    assert lorikeet_jobs(disk, "cancel", job.id) == f"{job.id} is cancelled.\n"
    assert "already ended" in lorikeet_jobs(disk, "cancel", job.id, code=1)


def test_a_running_job_is_asked_through_its_worker(disk: JobsOnDisk, running: Job) -> None:
    assert "is running, and will be cancelled" in lorikeet_jobs(disk, "cancel", running.id)
    assert disk.queue.heartbeat(running.id, "me") == "cancel"


def test_events_are_printed_in_order(disk: JobsOnDisk, running: Job) -> None:
    lines = lorikeet_jobs(disk, "logs", running.id).splitlines()
    assert lines[0][20:] == f"Created fine-tuning job: {running.id}"
    assert lines[-1].endswith("Step 12/60: training loss=0.53")


def test_a_followed_job_is_followed_to_its_end(disk: JobsOnDisk, running: Job) -> None:
    disk.queue.finish(running.id, "me", "failed", error=JobFailure(code="x", message="It failed."))
    assert "It failed." in lorikeet_jobs(disk, "logs", running.id, "--follow", code=1)


def test_control_characters_of_clients_are_not_printed(disk: JobsOnDisk) -> None:
    job = disk.submit()
    disk.queue.add_event(job.id, "\x1b[31mred")
    assert "\x1b" not in lorikeet_jobs(disk, "logs", job.id)


def test_an_unknown_job_is_one_line(disk: JobsOnDisk) -> None:
    told = lorikeet_jobs(disk, "show", "ftjob-missing", code=1)
    assert told.count("\n") == 1
    assert "ftjob-missing" in told


def test_a_folder_without_jobs_is_told(tmp_path: Path) -> None:
    result = runner.invoke(jobs_app, ["list", "--home", str(tmp_path)])
    assert result.exit_code == 1
    assert "no server has stored jobs here" in result.output
    assert not (tmp_path / "jobs").exists()
