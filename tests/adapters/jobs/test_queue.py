import math

import pytest

from adapters.jobs.errors import (
    ClaimLostError,
    InvalidStatusError,
    NameTakenError,
    QuotaExceededError,
    UnknownIdError,
)
from adapters.jobs.queue import MAX_LOSSES, STALE_AFTER_S, JobQueue
from adapters.jobs.records import JobFailure
from tests.jobs_home import NOW_S, JobsHome, a_job

MODEL = "ft:smollm2-135m:acme:support:1a2b"
FAILURE = JobFailure(code="disk_full", message="The disk is full", param=None)


def test_a_job_goes_from_submission_to_success(home):
    job = home.queue.submit(a_job("acme", home.stored().id, NOW_S))
    assert home.queue.claim("w1") is None
    assert home.queue.validated(job.id).status == "queued"
    running = home.queue.claim("w1")
    assert (running.id, running.status, running.worker, running.started_at) == (job.id, "running", "w1", int(NOW_S))
    home.clock.now_s += 5
    done = home.queue.finish(
        job.id, "w1", "succeeded", fine_tuned_model=MODEL, version="acme-support@1", result_files=["file-1"]
    )
    assert (done.status, done.finished_at, done.worker) == ("succeeded", int(NOW_S) + 5, None)
    assert (done.fine_tuned_model, done.version, done.result_files) == (MODEL, "acme-support@1", ("file-1",))
    assert home.names.find(MODEL).version == "acme-support@1"
    assert home.messages(job) == [
        f"Created fine-tuning job: {job.id}",
        "Validating training file",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        f"New fine-tuned model created: {MODEL}",
        "The job has successfully completed",
    ]


def test_a_job_comes_back_as_it_was_submitted(home):
    job = home.submitted(metadata={"team": "blue"}, lorikeet={"alias": "canary", "gates": {"min_gain": 0.5}})
    assert home.queue.get("acme", job.id) == job


def test_half_characters_are_replaced_before_they_are_told(home):
    odd = {"metadata": {"a\ud800": "b\ud800"}, "lorikeet": {"gates": [math.nan, "\ud800"]}, "suffix": "\ud800"}
    job = home.submitted(**odd)
    assert (job.metadata, job.lorikeet, job.suffix) == ({"a?": "b?"}, {"gates": [None, "?"]}, "?")
    assert home.queue.get("acme", job.id) == job
    assert home.queue.list("acme", metadata={"\ud800": "x"}).items == ()
    home.queue.claim("w1")
    error = JobFailure(code="x", message="\ud800")
    assert home.queue.finish(job.id, "w1", "failed", error=error).error.message == "?"


@pytest.mark.parametrize("file_id", ["", "file-\ud800", "\x00", "x" * 100_000])
def test_odd_ids_of_files_are_unknown(home, file_id):
    with pytest.raises(UnknownIdError) as error:
        home.queue.submit(a_job("acme", file_id, NOW_S))
    assert len(str(error.value).encode()) < 200


@pytest.mark.parametrize("param", ["training_file", "validation_file"])
def test_a_job_needs_files_of_its_owner(home, param):
    mine, stranger = home.stored(), home.stored(owner="globex")
    job = a_job("acme", mine.id, NOW_S).model_copy(update={param: stranger.id})
    with pytest.raises(UnknownIdError) as error:
        home.queue.submit(job)
    assert error.value.param == param
    assert home.queue.list(None).items == ()
    home.files.delete("acme", mine.id)
    assert home.content() == [stranger.sha256]


def test_a_job_trains_on_a_file_deleted_since(home):
    training, validation = home.stored(b"rows"), home.stored(b"other rows")
    job = home.submitted(file=training, validation_file=validation.id)
    home.files.delete("acme", training.id)
    home.files.delete("acme", validation.id)
    home.queue.claim("w1")
    assert home.files.held_path(job.id, training.id).read_bytes() == b"rows"
    assert home.files.held_path(job.id, validation.id).read_bytes() == b"other rows"
    home.queue.finish(job.id, "w1", "succeeded")
    home.files.sweep()
    assert home.content() == []


def test_a_strangers_job_looks_like_none(home):
    job = home.submitted("globex")
    acts = [
        lambda job_id: home.queue.get("acme", job_id),
        lambda job_id: home.queue.ask("acme", job_id, "cancel"),
        lambda job_id: home.queue.events("acme", job_id),
        lambda job_id: home.queue.events_since("acme", job_id, 0),
        lambda job_id: home.queue.checkpoints("acme", job_id),
        lambda job_id: home.queue.list("acme", after=job_id),
    ]
    for act in acts:
        errors = []
        for job_id in (job.id, "ftjob-" + "0" * 24):
            with pytest.raises(UnknownIdError) as error:
                act(job_id)
            errors.append((str(error.value).replace(job_id, "X"), error.value.code, error.value.param))
        assert errors[0] == errors[1]
    assert home.queue.get(None, job.id) == job


def test_an_adapter_name_belongs_to_one_tenant(home):
    home.submitted("acme")
    with pytest.raises(NameTakenError, match="acme-support") as error:
        home.submitted("globex", adapter="acme-support")
    assert (error.value.code, error.value.param) == ("invalid_suffix", "suffix")
    home.submitted("acme")


def test_unfinished_jobs_are_limited(home):
    job = home.submitted()
    with pytest.raises(QuotaExceededError, match="1 unfinished"):
        home.queue.submit(a_job("acme", home.stored().id, NOW_S), max_unfinished=1)
    home.queue.ask("acme", job.id, "cancel")
    home.queue.submit(a_job("acme", home.stored().id, NOW_S), max_unfinished=1)


def test_jobs_are_listed_newest_first_in_pages(home):
    jobs = [home.submitted() for _ in range(5)]
    home.submitted("globex")
    first = home.queue.list("acme", limit=2)
    second = home.queue.list("acme", limit=10, after=first.items[-1].id)
    assert (first.items, first.has_more) == ((jobs[4], jobs[3]), True)
    assert (second.items, second.has_more) == ((jobs[2], jobs[1], jobs[0]), False)


def test_jobs_are_listed_by_metadata_and_status(home):
    blue = home.submitted(metadata={"team": "blue", 'odd "key".[0]': "x"})
    home.submitted(metadata={"team": "red"})
    home.submitted()
    assert home.queue.list("acme", metadata={"team": "blue", 'odd "key".[0]': "x"}).items == (blue,)
    assert home.queue.list("acme", metadata={"team": "blue", "other": "x"}).items == ()
    assert len(home.queue.list("acme", statuses=["queued", "running"]).items) == 3
    assert home.queue.list("acme", statuses=["running"]).items == ()


def test_each_job_is_claimed_once(home):
    jobs = {home.submitted().id for _ in range(3)}
    with home.again() as other:
        claims = [queue.claim(f"w{index}") for index, queue in enumerate([home.queue, other.queue] * 2)]
    assert {job.id for job in claims if job} == jobs
    assert claims[3] is None


def test_the_tenant_with_fewest_running_jobs_is_next(home):
    for _ in range(3):
        home.submitted("acme")
    home.submitted("globex")
    assert [home.queue.claim("w").owner for _ in range(4)] == ["acme", "globex", "acme", "acme"]


def test_the_tenant_with_fewest_seconds_is_next(home):
    job = home.running(owner="acme")
    home.clock.now_s += 10
    home.queue.finish(job.id, "w1", "succeeded")
    home.submitted("acme")
    home.submitted("globex")
    assert [home.queue.claim("w").owner for _ in range(2)] == ["globex", "acme"]


def test_seconds_of_yesterday_do_not_count(home):
    job = home.running(owner="acme")
    home.clock.now_s += 10
    home.queue.finish(job.id, "w1", "succeeded")
    assert home.queue.used_seconds("acme") == 10
    home.clock.now_s += 86_400 + 3600
    assert home.queue.used_seconds("acme") == 0


def test_a_tenant_that_used_its_seconds_waits(home):
    job = home.running(owner="acme")
    home.clock.now_s += 10
    home.queue.finish(job.id, "w1", "succeeded")
    home.submitted("acme")
    assert home.queue.claim("w1", max_owner_seconds=10) is None
    assert home.queue.claim("w1", max_owner_seconds=11) is not None


def test_heartbeats_count_no_time_twice(home):
    job = home.running()
    for seconds in (3, 4):
        home.clock.now_s += seconds
        home.queue.heartbeat(job.id, "w1")
    home.queue.release(job.id, "w1", "yields to clients")
    assert home.queue.used_seconds("acme") == 7
    assert home.queue.used_seconds("globex") == 0


def test_a_worker_that_slept_counts_little(home):
    job = home.running()
    home.clock.now_s += 10_000
    home.queue.heartbeat(job.id, "w1")
    assert home.queue.used_seconds("acme") == STALE_AFTER_S


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


WORKERS_ACTS = {
    "heartbeat": lambda queue, job_id: queue.heartbeat(job_id, "w1"),
    "progress": lambda queue, job_id: queue.progress(job_id, "w1", trained_tokens=9),
    "add_event": lambda queue, job_id: queue.add_event(job_id, "Step 1", worker="w1"),
    "add_checkpoint": lambda queue, job_id: queue.add_checkpoint(job_id, "w1", 1, model_name="ft:x", metrics={}),
    "paused": lambda queue, job_id: queue.paused(job_id, "w1"),
    "release": lambda queue, job_id: queue.release(job_id, "w1", "shutdown"),
    "finish": lambda queue, job_id: queue.finish(job_id, "w1", "succeeded", fine_tuned_model=MODEL, version="a@1"),
}


def everything(home: JobsHome) -> list[tuple[object, ...]]:
    with home.database.reading() as connection:
        return [tuple(line) for line in connection.execute("SELECT * FROM jobs")] + [
            tuple(line)
            for table in ("events", "checkpoints", "models")
            for line in connection.execute(f"SELECT * FROM {table}")
        ]


@pytest.mark.parametrize("act", WORKERS_ACTS)
def test_a_worker_without_claim_changes_nothing(home, act):
    job = home.running()
    home.clock.now_s += STALE_AFTER_S + 1
    home.queue.release_lost()
    home.queue.claim("w2")
    before = everything(home)
    with pytest.raises(ClaimLostError, match="'w1' no longer has"):
        WORKERS_ACTS[act](home.queue, job.id)
    assert everything(home) == before


def test_jobs_of_silent_workers_are_released(home):
    silent, alive = home.running("w1"), home.running("w2")
    home.clock.now_s += STALE_AFTER_S - 1
    home.queue.heartbeat(alive.id, "w2")
    assert home.queue.release_lost() == ()
    home.clock.now_s += 2
    (released,) = home.queue.release_lost()
    assert (released.id, released.status, released.worker, released.num_losses) == (silent.id, "queued", None, 1)
    assert home.queue.claim("w3").id == silent.id
    assert "The worker 'w1' was lost" in home.messages(silent)


def test_jobs_of_one_worker_are_released_at_once(home):
    job, other = home.running("w1"), home.running("w2")
    assert [job.id for job in home.queue.release_lost(worker="w1")] == [job.id]
    assert home.queue.get(None, other.id).status == "running"


def test_a_heartbeat_from_the_future_is_stale(home):
    home.running()
    home.clock.now_s -= 3600
    assert len(home.queue.release_lost()) == 1


@pytest.mark.parametrize(("action", "status"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_lost_job_ends_as_it_was_asked_to(home, action, status):
    job = home.running()
    home.queue.ask("acme", job.id, action)
    assert [released.status for released in home.queue.release_lost(worker="w1")] == [status]


def test_a_job_that_kills_its_workers_fails(home):
    job = home.submitted()
    for _ in range(MAX_LOSSES):
        home.queue.claim("w1")
        home.queue.release_lost(worker="w1")
    failed = home.queue.get("acme", job.id)
    assert (failed.status, failed.error.code) == ("failed", "worker_lost")
    assert home.queue.claim("w1") is None


def test_a_checkpoint_makes_losses_good(home):
    job = home.submitted()
    for step in range(MAX_LOSSES + 1):
        home.queue.claim("w1")
        home.queue.add_checkpoint(job.id, "w1", step, model_name=f"ft:x:ckpt-step-{step}", metrics={})
        home.queue.release_lost(worker="w1")
    assert home.queue.get("acme", job.id).status == "queued"


def test_a_worker_may_give_a_job_back(home):
    job = home.running()
    assert home.queue.release(job.id, "w1", "The server shuts down").num_losses == 0
    assert home.messages(job)[-2:] == ["The server shuts down", "Fine-tuning job waits for a worker"]


def test_an_event_with_a_key_is_told_once(home):
    job = home.running()
    first = home.queue.add_event(
        job.id, "Step 1: loss 2.5", worker="w1", type="metrics", data={"step": 1}, key="step 1"
    )
    home.queue.release_lost(worker="w1")
    home.queue.claim("w2")
    assert home.queue.add_event(job.id, "Step 1: loss 2.4", worker="w2", key="step 1") == first
    assert home.messages(job).count("Step 1: loss 2.5") == 1


def test_events_of_two_jobs_may_share_a_key(home):
    jobs = [home.running("w1"), home.running("w2")]
    for job, worker in zip(jobs, ("w1", "w2"), strict=True):
        home.queue.add_event(job.id, "Step 1", worker=worker, key="step 1")
    assert all("Step 1" in home.messages(job) for job in jobs)


def test_events_are_listed_newest_first_in_pages(home):
    job = home.running()
    for number in range(4, 7):
        home.queue.add_event(job.id, f"event {number}")
    page = home.queue.events("acme", job.id, limit=2)
    assert ([event.number for event in page.items], page.has_more) == ([6, 5], True)
    rest = home.queue.events("acme", job.id, after=page.items[-1].id)
    assert ([event.number for event in rest.items], rest.has_more) == ([4, 3, 2, 1], False)


def test_events_are_followed_by_their_number(home):
    job = home.running()
    assert [event.number for event in home.queue.events_since("acme", job.id, 1)] == [2, 3]
    assert home.queue.events_since("acme", job.id, 3) == ()


def test_events_of_another_job_are_not_listed_after(home):
    one, other = home.submitted(), home.submitted()
    foreign = home.queue.events("acme", other.id).items[0]
    with pytest.raises(UnknownIdError):
        home.queue.events("acme", one.id, after=foreign.id)


def test_numbers_that_are_no_json_become_null(home):
    job = home.running()
    event = home.queue.add_event(job.id, "half a character: \ud800", data={"loss": math.nan, "at": [math.inf, 1]})
    kept = home.queue.events_since("acme", job.id, event.number - 1)[0]
    assert (kept.message, kept.data) == ("half a character: ?", {"loss": None, "at": [None, 1]})
    home.queue.add_checkpoint(job.id, "w1", 1, model_name="ft:x", metrics={"train_loss": math.nan})
    assert home.queue.checkpoints("acme", job.id).items[0].metrics == {"train_loss": None}


def test_a_checkpoint_of_a_step_is_kept_once(home):
    job = home.running()
    first = home.queue.add_checkpoint(job.id, "w1", 40, model_name="ft:x:40", metrics={"step": 40.0}, version="a@1")
    assert home.queue.add_checkpoint(job.id, "w1", 40, model_name="ft:x:40b", metrics={}) == first
    second = home.queue.add_checkpoint(job.id, "w1", 80, model_name="ft:x:80", metrics={})
    assert home.queue.checkpoints("acme", job.id).items == (second, first)
    assert (home.names.find("ft:x:40").version, home.names.find("ft:x:80")) == ("a@1", None)


def test_trained_tokens_never_fall(home):
    job = home.running()
    home.queue.progress(job.id, "w1", trained_tokens=100, estimated_finish=7)
    home.queue.progress(job.id, "w1", trained_tokens=60)
    now = home.queue.get("acme", job.id)
    assert (now.trained_tokens, now.estimated_finish) == (100, 7)


def test_jobs_are_counted_by_status(home):
    home.submitted()
    home.running()
    assert home.queue.counts() == {"queued": 1, "running": 1}


def test_the_age_of_the_queue_is_known(home):
    assert home.queue.oldest_queued_s() == 0
    home.submitted()
    home.clock.now_s += 12
    assert home.queue.oldest_queued_s() == 12


def test_a_queue_of_another_process_continues(home):
    job = home.running()
    with home.again() as other:
        queue: JobQueue = other.queue
        assert queue.heartbeat(job.id, "w1") is None
        queue.finish(job.id, "w1", "succeeded")
    assert home.queue.get("acme", job.id).status == "succeeded"


REVOKED = JobFailure(code="invalid_api_key", message="The key is revoked.")


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
