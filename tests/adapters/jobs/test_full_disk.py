"""A disk that is really full: two megabytes of memory, mounted where only the test's own process sees it.

Run as a script, this file is that process.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.jobs.errors import JobsDiskError
from adapters.jobs.records import Job, JobFailure
from tests.jobs_home import JobsHome
from tests.tracked_files import ROOT

SIZE = "4m"


def mounted(*command: str) -> list[str]:
    """A command on a small disk of its own; `$0` is the disk's folder."""
    mount = f'mount -t tmpfs -o size={SIZE} none "$0" && exec "$@"'
    as_root = ["--user", "--map-root-user"] if os.geteuid() else []
    return ["unshare", *as_root, "--mount", "sh", "-c", mount, *command]


def can_mount(folder: Path) -> bool:
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(mounted(str(folder), "true"), capture_output=True, check=False).returncode
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["upload", "part", "event", "finish", "heartbeat", "cancel", "delete"])
def test_a_full_disk_fails_what_needs_it_alone(tmp_path, case):
    if not can_mount(tmp_path):
        pytest.skip("this system lets no test mount a disk")
    command = mounted(str(tmp_path), sys.executable, str(Path(__file__).resolve()), str(tmp_path), case)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "passed\n"), done.stderr


def fill(folder: Path) -> Path:
    """Take the last byte; returns the file that has it."""
    filling = folder / "filling"
    with filling.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return filling


def upload(home: JobsHome) -> None:
    """Refused with nothing left of it, while another tenant's file can be read; there is room, and it works."""
    file = home.stored(b"kept")
    filling = fill(home.folder)
    incoming = home.files.begin("acme", "fine-tune", "a")
    with pytest.raises(JobsDiskError, match="No space left"):
        incoming.write(b"x" * (1 << 20))
    assert (home.content("incoming"), home.content()) == ([], [file.sha256])
    with home.files.open("acme", file.id) as content:
        assert content.read() == b"kept"
    filling.unlink()
    home.stored(b"x" * (1 << 20))


def part(home: JobsHome) -> None:
    """The upload stays pending with the parts that it has."""
    upload = home.uploads.create("acme", "fine-tune", "a", 200_000)
    with home.uploads.begin_part("acme", upload.id) as arriving:
        arriving.write(b"x" * 100_000)
        first = arriving.finish()
    filling = fill(home.folder)
    with home.uploads.begin_part("acme", upload.id) as arriving, pytest.raises(JobsDiskError):
        arriving.write(b"x" * 100_000)
    filling.unlink()
    with home.uploads.begin_part("acme", upload.id) as arriving:
        arriving.write(b"x" * 100_000)
        second = arriving.finish()
    assert home.uploads.complete("acme", upload.id, [first.id, second.id]).finish().num_bytes == 200_000


def fill_events(home: JobsHome, job: Job) -> None:
    for _ in range(10_000):
        home.queue.add_event(job.id, "x" * 500)


def event(home: JobsHome) -> None:
    """Events are refused at some point, and none of those before is lost."""
    job = home.running()
    filling = fill(home.folder)
    with pytest.raises(JobsDiskError):
        fill_events(home, job)
    filling.unlink()
    last = home.queue.add_event(job.id, "there is room again")
    numbers = [event.number for event in home.queue.events_since(None, job.id, 0, 10_000)]
    assert numbers == list(range(1, last.number + 1))


def finish(home: JobsHome) -> None:
    """That the job has failed can be written: space is reserved for it. Other jobs wait as before."""
    home.submitted(owner="globex", status="validating_files")
    job = full(home)
    failure = JobFailure(code="disk_full", message="The disk is full")
    failed = home.queue.finish(job.id, "w1", "failed", error=failure)
    assert (failed.status, failed.error) == ("failed", failure)
    assert home.queue.counts() == {"failed": 1, "validating_files": 1}


def full(home: JobsHome) -> Job:
    """A running job on a disk that takes no further event."""
    job = home.running()
    fill(home.folder)
    with pytest.raises(JobsDiskError):
        fill_events(home, job)
    return job


def heartbeat(home: JobsHome) -> None:
    """A worker keeps its job, whose disk others have filled."""
    job = full(home)
    for _ in range(20):
        home.clock.now_s += 5
        home.queue.heartbeat(job.id, "w1")
    assert home.queue.release_lost() == ()


def cancel(home: JobsHome) -> None:
    """Clients can cancel."""
    job = full(home)
    assert home.queue.ask("acme", job.id, "cancel").requested == "cancel"


def delete(home: JobsHome) -> None:
    """Clients can make room."""
    file = home.stored(b"x" * 500_000, owner="globex")
    job = full(home)
    home.files.delete("globex", file.id)
    home.files.sweep()
    assert home.content() == [file.sha256 for file in home.files.list(None).items]
    home.queue.add_event(job.id, "there is room again")


if __name__ == "__main__":
    with JobsHome(Path(sys.argv[1]) / "jobs") as jobs_home:
        globals()[sys.argv[2]](jobs_home)
    print("passed")
