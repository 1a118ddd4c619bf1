import pytest

from adapters.jobs.errors import InvalidStatusError
from adapters.jobs.records import JobFailure
from tests.jobs_home import MODEL

FAILURE = JobFailure(code="disk_full", message="The disk is full", param=None)
REVOKED = JobFailure(code="invalid_api_key", message="The key is revoked.")


@pytest.mark.parametrize(("action", "status"), [("cancel", "cancelled"), ("pause", "paused")])
@pytest.mark.parametrize("before", ["validating_files", "queued"])
def test_a_waiting_job_stops_at_once(home, before, action, status):
    job = home.submitted(status=before)
    assert home.queue.ask("acme", job.id, action).status == status
    assert home.queue.claim("w1") is None


def test_a_running_job_is_cancelled_by_its_worker(home):
    job = home.running()
    asked = home.queue.ask("acme", job.id, "cancel")
    assert (asked.status, asked.requested) == ("running", "cancel")
    assert home.queue.heartbeat(job.id, "w1") == "cancel"
    done = home.queue.finish(job.id, "w1", "cancelled")
    assert (done.status, done.requested) == ("cancelled", None)
    assert home.messages(job)[-1] == "The job was cancelled"


def test_a_running_job_is_paused_and_resumed(home):
    job = home.running()
    home.queue.ask("acme", job.id, "pause")
    assert home.queue.heartbeat(job.id, "w1") == "pause"
    assert home.queue.paused(job.id, "w1").status == "paused"
    assert home.queue.claim("w2") is None
    assert home.queue.ask("acme", job.id, "pause").status == "paused"
    assert home.queue.ask("acme", job.id, "resume").status == "queued"
    again = home.queue.claim("w2")
    assert (again.started_at, again.requested) == (job.started_at, None)
    assert home.messages(job)[-4:] == [
        "Fine-tuning job started",
        "Fine-tuning job paused",
        "Fine-tuning job resumed, and waits for a worker",
        "Fine-tuning job continues",
    ]


def test_a_pause_is_taken_back_before_it_happens(home):
    job = home.running()
    home.queue.ask("acme", job.id, "pause")
    assert home.queue.ask("acme", job.id, "resume").requested is None
    assert home.queue.heartbeat(job.id, "w1") is None


def test_a_cancellation_is_not_taken_back(home):
    job = home.running()
    home.queue.ask("acme", job.id, "cancel")
    assert home.queue.ask("acme", job.id, "pause").requested == "cancel"
    with pytest.raises(InvalidStatusError):
        home.queue.ask("acme", job.id, "resume")
    assert home.queue.paused(job.id, "w1").status == "cancelled"


def test_a_paused_job_is_cancelled_at_once(home):
    job = home.submitted()
    home.queue.ask("acme", job.id, "pause")
    assert home.queue.ask("acme", job.id, "cancel").status == "cancelled"


@pytest.mark.parametrize("action", ["cancel", "pause", "resume"])
def test_a_job_that_has_ended_cannot_change(home, action):
    job = home.submitted()
    home.queue.ask("acme", job.id, "cancel")
    with pytest.raises(InvalidStatusError, match="has already ended: it is cancelled"):
        home.queue.ask("acme", job.id, action)


def test_a_job_that_was_not_paused_cannot_resume(home):
    with pytest.raises(InvalidStatusError, match="is queued; only a paused job"):
        home.queue.ask("acme", home.submitted().id, "resume")


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_a_job_is_finished_once(home, status):
    job = home.running()
    first = home.queue.finish(job.id, "w1", status, error=FAILURE if status == "failed" else None)
    events = home.messages(job)
    home.clock.now_s += 10
    assert home.queue.finish(job.id, "w1", status) == first
    assert home.messages(job) == events
    other = "failed" if status == "succeeded" else "succeeded"
    with pytest.raises(InvalidStatusError, match=f"has ended as {status}"):
        home.queue.finish(job.id, "w1", other)


def test_a_failure_says_why(home):
    job = home.running()
    assert home.queue.finish(job.id, "w1", "failed", error=FAILURE).error == FAILURE
    last = home.queue.events("acme", job.id, limit=1).items[0]
    assert (last.level, last.message) == ("error", "The job failed: The disk is full")


def test_a_revoked_key_cancels_its_waiting_jobs_with_the_reason(home):
    waiting, paused = home.submitted(key_id="k1"), home.submitted(key_id="k1")
    home.queue.ask(None, paused.id, "pause")
    others, nobodys = home.submitted(key_id="k2"), home.submitted()
    assert home.queue.unfinished_keys() == {"k1", "k2"}
    assert {job.id for job in home.queue.revoke("k1", REVOKED)} == {waiting.id, paused.id}
    for job in (waiting, paused):
        ended = home.queue.get(None, job.id)
        assert (ended.status, ended.error) == ("cancelled", REVOKED)
        assert home.messages(job)[-1] == "The job was cancelled: The key is revoked."
    assert {home.queue.get(None, job.id).status for job in (others, nobodys)} == {"queued"}
    assert home.queue.unfinished_keys() == {"k2"}
    assert home.queue.revoke("k1", REVOKED) == ()


def test_a_running_job_of_a_revoked_key_is_cancelled_by_its_worker(home):
    job = home.submitted(key_id="k1")
    home.queue.claim("w1")
    home.queue.revoke("k1", REVOKED)
    assert home.queue.unfinished_keys() == frozenset()
    assert home.queue.heartbeat(job.id, "w1") == "cancel"
    ended = home.queue.finish(job.id, "w1", "cancelled")
    assert (ended.status, ended.error) == ("cancelled", REVOKED)


def test_a_dead_workers_job_of_a_revoked_key_is_cancelled(home):
    job = home.submitted(key_id="k1")
    home.queue.claim("w1")
    home.queue.revoke("k1", REVOKED)
    (ended,) = home.queue.release_lost(worker="w1")
    assert (ended.id, ended.status, ended.error) == (job.id, "cancelled", REVOKED)


def test_a_job_that_has_published_before_its_key_was_revoked_has_succeeded(home):
    job = home.submitted(key_id="k1")
    home.queue.claim("w1")
    home.queue.revoke("k1", REVOKED)
    ended = home.queue.finish(job.id, "w1", "succeeded", fine_tuned_model=MODEL, version="acme-support@1")
    assert (ended.status, ended.error) == ("succeeded", None)


def test_a_job_that_its_client_cancels_has_no_error(home):
    job = home.submitted(key_id="k1")
    assert home.queue.ask(None, job.id, "cancel").error is None
    assert home.messages(job)[-1] == "The job was cancelled"
