import pytest

from adapters.jobs.errors import ClaimLostError, InvalidStatusError, QuotaExceededError, UnknownIdError
from adapters.jobs.queue import STALE_AFTER_S
from adapters.jobs.records import Batch, BatchFault
from tests.jobs_home import NOW_S, JobsHome


def claimed(home: JobsHome, owner: str = "acme") -> Batch:
    home.batch(owner)
    batch = home.batches.claim("w1")
    assert batch is not None
    return batch


def test_a_batch_goes_from_submission_to_completion(home):
    batch = claimed(home)
    assert (batch.status, batch.worker) == ("validating", "w1")
    home.clock.now_s += 1
    assert home.batches.start(batch.id, "w1", 10, "medical").in_progress_at == int(NOW_S) + 1
    home.batches.progress(batch.id, "w1", num_completed=8, num_failed=2, input_tokens=70, output_tokens=50)
    home.clock.now_s += 1
    assert home.batches.finalize(batch.id, "w1").finalizing_at == int(NOW_S) + 2
    done = home.batches.finish(batch.id, "w1", "completed", output_file_id="file-1", error_file_id="file-2")
    assert (done.status, done.completed_at, done.worker) == ("completed", int(NOW_S) + 2, None)
    assert (done.num_total, done.num_completed, done.num_failed) == (10, 8, 2)
    assert (done.input_tokens, done.output_tokens, done.model) == (70, 50, "medical")
    assert (done.output_file_id, done.error_file_id) == ("file-1", "file-2")
    assert home.batches.claim("w1") is None


def test_a_batch_needs_a_file_of_its_owner(home):
    stranger = home.stored(owner="globex", purpose="batch")
    with pytest.raises(UnknownIdError) as error:
        home.batch("acme", stranger)
    assert error.value.param == "input_file_id"


def test_a_batch_reads_an_input_deleted_since(home):
    file = home.stored(b"requests", purpose="batch")
    batch = home.batch(file=file)
    home.files.delete("acme", file.id)
    assert home.files.held_path(batch.id, file.id).read_bytes() == b"requests"
    home.batches.claim("w1")
    home.batches.finish(batch.id, "w1", "failed", errors=[BatchFault(code="invalid_json", message="line 1", line=1)])
    home.files.sweep()
    assert home.content() == []
    assert home.batches.get("acme", batch.id).errors[0].line == 1


def test_a_strangers_batch_is_unknown(home):
    batch = home.batch("globex")
    for act in (home.batches.get, home.batches.cancel):
        with pytest.raises(UnknownIdError, match="No batch found"):
            act("acme", batch.id)
    with pytest.raises(UnknownIdError):
        home.batches.list("acme", after=batch.id)


def test_batches_are_listed_newest_first_in_pages(home):
    batches = [home.batch() for _ in range(3)]
    page = home.batches.list("acme", limit=2)
    assert (page.items, page.has_more) == ((batches[2], batches[1]), True)
    assert home.batches.list("acme", after=batches[1].id).items == (batches[0],)


def test_batches_are_claimed_once_and_fairly(home):
    for owner in ("acme", "acme", "globex"):
        home.batch(owner)
    claims = [home.batches.claim("w1") for _ in range(4)]
    assert [batch and batch.owner for batch in claims] == ["acme", "globex", "acme", None]


def test_unfinished_batches_are_limited(home):
    batch = home.batch()
    again = batch.model_copy(update={"id": "batch_2"})
    with pytest.raises(QuotaExceededError):
        home.batches.submit(again, max_unfinished=1)
    home.batches.cancel("acme", batch.id)
    home.batches.submit(again.model_copy(update={"input_file_id": home.stored().id}), max_unfinished=1)


def test_a_batch_that_nobody_began_is_cancelled_at_once(home):
    batch = home.batches.cancel("acme", home.batch().id)
    assert (batch.status, batch.cancelling_at, batch.cancelled_at) == ("cancelled", int(NOW_S), int(NOW_S))


def test_a_batch_in_work_is_cancelled_by_its_worker(home):
    batch = claimed(home)
    home.batches.start(batch.id, "w1", 10)
    assert home.batches.cancel("acme", batch.id).status == "cancelling"
    assert home.batches.heartbeat(batch.id, "w1") == "cancelling"
    assert home.batches.start(batch.id, "w1", 10).status == "cancelling"
    assert home.batches.finalize(batch.id, "w1").status == "cancelling"
    assert home.batches.cancel("acme", batch.id).status == "cancelling"
    assert home.batches.finish(batch.id, "w1", "cancelled", output_file_id="file-1").status == "cancelled"


def test_a_cancelled_batch_with_results_is_claimed_again(home):
    batch = claimed(home)
    home.batches.start(batch.id, "w1", 10)
    home.batches.release(batch.id, "w1")
    assert home.batches.cancel("acme", batch.id).status == "cancelling"
    assert home.batches.claim("w2").id == batch.id


def test_a_batch_that_has_ended_cannot_change(home):
    batch = claimed(home)
    first = home.batches.finish(batch.id, "w1", "completed")
    home.clock.now_s += 5
    assert home.batches.finish(batch.id, "w1", "completed") == first
    with pytest.raises(InvalidStatusError):
        home.batches.finish(batch.id, "w1", "failed")
    with pytest.raises(InvalidStatusError, match="already ended"):
        home.batches.cancel("acme", batch.id)


def test_a_restart_keeps_the_first_times(home):
    batch = claimed(home)
    home.batches.start(batch.id, "w1", 10)
    home.clock.now_s += STALE_AFTER_S + 1
    assert [lost.id for lost in home.batches.release_lost()] == [batch.id]
    assert home.batches.claim("w2").id == batch.id
    assert home.batches.start(batch.id, "w2", 10).in_progress_at == int(NOW_S)


WORKERS_ACTS = {
    "heartbeat": lambda batches, batch_id: batches.heartbeat(batch_id, "w1"),
    "start": lambda batches, batch_id: batches.start(batch_id, "w1", 3),
    "progress": lambda batches, batch_id: batches.progress(batch_id, "w1", num_completed=1, num_failed=0),
    "finalize": lambda batches, batch_id: batches.finalize(batch_id, "w1"),
    "release": lambda batches, batch_id: batches.release(batch_id, "w1"),
    "finish": lambda batches, batch_id: batches.finish(batch_id, "w1", "completed"),
}


@pytest.mark.parametrize("act", WORKERS_ACTS)
def test_a_worker_without_claim_changes_nothing(home, act):
    batch = claimed(home)
    home.batches.release_lost(worker="w1")
    home.batches.claim("w2")
    before = home.batches.get(None, batch.id)
    with pytest.raises(ClaimLostError, match="'w1' no longer has"):
        WORKERS_ACTS[act](home.batches, batch.id)
    assert home.batches.get(None, batch.id) == before


def test_a_batch_of_a_live_worker_is_not_released(home):
    batch = claimed(home)
    home.clock.now_s += STALE_AFTER_S - 1
    home.batches.heartbeat(batch.id, "w1")
    home.clock.now_s += 2
    assert home.batches.release_lost() == ()
    home.clock.now_s -= 3600
    assert len(home.batches.release_lost()) == 1


def test_batches_are_counted_by_status(home):
    home.batch()
    claimed(home)
    home.batches.cancel("acme", home.batch().id)
    assert home.batches.counts() == {"validating": 2, "cancelled": 1}


def test_a_batch_is_for_servers_of_its_base(home):
    batch = home.batch(base="large-nf4")
    assert home.batches.claim("s1", base="small-nf4") is None
    assert home.batches.claim("s2", base="large-nf4").id == batch.id


def test_a_batch_without_base_is_for_any_server(home):
    batch = home.batch()
    assert home.batches.claim("s1", base="small-nf4").id == batch.id


def test_an_expired_batch_is_ended_by_any_server(home):
    batch = home.batch(base="gone-nf4", expires_at=int(NOW_S) + 60)
    assert home.batches.claim("s1", base="small-nf4") is None
    home.clock.now_s += 60
    assert home.batches.claim("s1", base="small-nf4").id == batch.id
