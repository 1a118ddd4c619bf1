import math

import pytest

from adapters.jobs.errors import UnknownIdError


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
