"""Any order of what clients, workers and the clock do, beside a plain model of it."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from adapters.jobs.errors import ClaimLostError, InvalidStatusError, UnknownIdError
from adapters.jobs.queue import MAX_LOSSES, STALE_AFTER_S
from adapters.jobs.records import ENDED_JOB
from adapters.jobs.transitions import Action
from tests.jobs_home import JobsHome

OWNERS = strategies.sampled_from(["acme", "globex", "initech"])
WORKERS = strategies.sampled_from(["w1", "w2"])


class QueueMachine(RuleBasedStateMachine):
    jobs = Bundle("jobs")

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.home = JobsHome(self.folder)
        self.ended: dict[str, str] = {}
        self.claims: dict[str, str] = {}

    def teardown(self) -> None:
        self.home.close()
        shutil.rmtree(self.folder)

    @rule(target=jobs, owner=OWNERS, status=strategies.sampled_from(["validating_files", "queued"]))
    def submit(self, owner: str, status: str) -> str:
        return self.home.submitted(owner, status=status).id

    @rule(job_id=jobs)
    def validate(self, job_id: str) -> None:
        self.home.queue.validated(job_id)

    @rule(target=jobs, worker=WORKERS)
    def claim(self, worker: str):
        queued = self.home.queue.list(None, statuses=["queued"]).items
        running = [job.owner for job in self.home.queue.list(None, statuses=["running"]).items]
        job = self.home.queue.claim(worker)
        assert (job is None) == (not queued)
        if job is None:
            return multiple()
        assert job.id not in self.claims
        assert running.count(job.owner) == min(running.count(other.owner) for other in queued)
        self.claims[job.id] = worker
        return multiple()

    @rule(job_id=jobs, worker=WORKERS, act=strategies.sampled_from(["heartbeat", "event", "paused", "release"]))
    def work(self, job_id: str, worker: str, act: str) -> None:
        acts = {
            "heartbeat": lambda: self.home.queue.heartbeat(job_id, worker),
            "event": lambda: self.home.queue.add_event(job_id, "Step 1", worker=worker, key="step 1"),
            "paused": lambda: self.home.queue.paused(job_id, worker),
            "release": lambda: self.home.queue.release(job_id, worker, "yields"),
        }
        try:
            acts[act]()
        except ClaimLostError:
            assert self.claims.get(job_id) != worker
        else:
            assert self.claims[job_id] == worker
            if act in ("paused", "release"):
                del self.claims[job_id]

    @rule(job_id=jobs, worker=WORKERS, status=strategies.sampled_from(["succeeded", "failed", "cancelled"]))
    def finish(self, job_id: str, worker: str, status: Literal["succeeded", "failed", "cancelled"]) -> None:
        name, version = (f"ft:{job_id}", "a@1") if status == "succeeded" else (None, None)
        try:
            self.home.queue.finish(job_id, worker, status, fine_tuned_model=name, version=version)
        except ClaimLostError:
            assert self.claims.get(job_id) != worker
        except InvalidStatusError:
            assert self.ended[job_id] != status
        else:
            assert job_id in self.ended or self.claims.pop(job_id) == worker

    @rule(job_id=jobs, action=strategies.sampled_from(["cancel", "pause", "resume"]))
    def ask(self, job_id: str, action: Action) -> None:
        before = self.home.queue.get(None, job_id)
        try:
            after = self.home.queue.ask(before.owner, job_id, action)
        except InvalidStatusError:
            assert self.home.queue.get(None, job_id) == before
        else:
            assert after.status == before.status or before.status != "running"

    @rule(seconds=strategies.sampled_from([1, STALE_AFTER_S + 1, -100]))
    def wait(self, seconds: float) -> None:
        self.home.clock.now_s += seconds

    @rule(worker=strategies.none() | WORKERS)
    def release_lost(self, worker: str | None) -> None:
        for job in self.home.queue.release_lost(worker=worker):
            lost = self.claims.pop(job.id)
            assert worker is None or lost == worker

    @rule(job_id=jobs)
    def delete_file(self, job_id: str) -> None:
        with suppress(UnknownIdError):
            self.home.files.delete(None, self.home.queue.get(None, job_id).training_file)

    @rule()
    def sweep(self) -> None:
        self.home.files.sweep()

    @rule()
    def restart(self) -> None:
        self.home.close()
        self.home = self.home.again()

    @invariant()
    def jobs_are_claimed_as_their_status_says(self) -> None:
        for job in self.home.queue.list(None).items:
            assert (job.worker is not None) == (job.status == "running") == (job.heartbeat_at is not None)
            assert self.claims.get(job.id) == job.worker
            assert job.requested is None or job.status == "running"
            assert job.num_losses <= MAX_LOSSES

    @invariant()
    def what_has_ended_stays_so(self) -> None:
        for job in self.home.queue.list(None).items:
            if job.status in ENDED_JOB:
                assert self.ended.setdefault(job.id, job.status) == job.status
            assert job.id not in self.ended or job.has_ended
            assert (self.home.names.find(f"ft:{job.id}") is not None) == (job.status == "succeeded")

    @invariant()
    def unfinished_jobs_have_their_content(self) -> None:
        for job in self.home.queue.list(None).items:
            if not job.has_ended:
                assert self.home.files.held_path(job.id, job.training_file).read_bytes() == b"{}\n"

    @invariant()
    def events_are_numbered_and_told_once(self) -> None:
        for job in self.home.queue.list(None).items:
            events = self.home.queue.events_since(None, job.id, 0)
            assert [event.number for event in events] == list(range(1, len(events) + 1))
            assert [event.message for event in events].count("Step 1") <= 1


QueueMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=40, deadline=None)
TestQueue = pytest.mark.slow(QueueMachine.TestCase)
