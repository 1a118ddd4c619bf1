import math

import pytest

from adapters.jobs.errors import (
    NameTakenError,
    QuotaExceededError,
    UnknownIdError,
)
from adapters.jobs.queue import JobQueue
from adapters.jobs.records import JobFailure
from tests.jobs_home import MODEL, NOW_S, a_job


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
