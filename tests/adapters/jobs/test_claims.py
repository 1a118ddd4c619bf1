import pytest

from adapters.jobs.errors import ClaimLostError
from adapters.jobs.queue import MAX_LOSSES, STALE_AFTER_S
from tests.jobs_home import MODEL, JobsHome


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


def test_trained_tokens_never_fall(home):
    job = home.running()
    home.queue.progress(job.id, "w1", trained_tokens=100, estimated_finish=7)
    home.queue.progress(job.id, "w1", trained_tokens=60)
    now = home.queue.get("acme", job.id)
    assert (now.trained_tokens, now.estimated_finish) == (100, 7)
