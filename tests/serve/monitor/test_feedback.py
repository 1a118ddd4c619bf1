"""What becomes of feedback behind the route: found by its owner, hashed, redacted, never before its answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from quality.samples.records import Feedback, Turn
from quality.samples.store import QualityStore
from serve.errors import ConflictError, InvalidRequestError, RateLimitedError, UnknownAnswerError
from serve.monitor.feedback import MOST_OF_SAMPLE, GivenFeedback
from serve.records import GenerationRecord
from tests.generations import generation
from tests.serve.monitor.test_sampler import Watched

ASKED = (Turn("system", "Answer as JSON."), Turn("user", "Angina?"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[QualityStore]:
    with QualityStore(tmp_path / "quality.sqlite3", busy_timeout_s=0.1) as store:
        yield store


def answered(request_id: str = "r-1", messages: tuple[Turn, ...] = ASKED, tenant: str = "acme") -> GenerationRecord:
    response_id = f"chatcmpl-{request_id}"
    return generation(request_id=request_id, messages=messages, tenant=tenant, response_id=response_id)


def give(watched: Watched, answer_id: str = "r-1", tenant: str = "acme", **said: object) -> Feedback:
    given = GivenFeedback(tenant, answer_id, **({"score": 1.0} | said))  # type: ignore[arg-type]  # fields by name
    taken = watched.sampler.give_feedback(given)
    watched.sampler.step()
    return taken.result(timeout=0).feedback


@pytest.mark.parametrize("answer_id", ["r-1", "chatcmpl-r-1"])
@pytest.mark.parametrize("minutes", [0, 1])
def test_feedback_stands_beside_the_sample(store: QualityStore, answer_id: str, minutes: int) -> None:
    watched = Watched(store, privacy="full").see(answered(), minutes=minutes)
    given = give(watched, answer_id, correction="I20")
    (sample,) = store.samples()
    assert store.feedback(sample_id=sample.id) == (given,)
    assert (given.correction, sample.messages) == ("I20", ASKED)


def test_a_sample_with_feedback_is_stored_once(store: QualityStore) -> None:
    watched = Watched(store, privacy="full").see(answered())
    give(watched)
    watched.see(minutes=1)
    assert len(store.samples()) == 1


def test_feedback_right_behind_its_answer_finds_it(store: QualityStore) -> None:
    watched = Watched(store, privacy="full")
    watched.sampler.generation_finished(answered())
    assert give(watched).score == 1.0


@pytest.mark.parametrize(("tenant", "answer_id"), [("stranger", "r-1"), ("acme", "r-2")])
def test_a_strangers_answer_is_as_unknown_as_none(store: QualityStore, tenant: str, answer_id: str) -> None:
    watched = Watched(store, privacy="full").see(answered())
    with pytest.raises(UnknownAnswerError, match=f"request or response id '{answer_id}'"):
        give(watched, answer_id, tenant)


def test_who_said_it_is_a_hash_by_tenant_and_user(store: QualityStore) -> None:
    watched = Watched(store, privacy="full").see(answered(), answered("r-2", tenant="other"))
    said = [
        give(watched, user="ada").who,
        give(watched).who,
        give(watched, user="bob").who,
        give(watched, "r-2", "other", user="ada").who,
    ]
    assert len(set(said)) == 4
    assert not any(name in who for who in said for name in ("ada", "bob", "acme"))


def test_redacted_feedback_has_no_personal_data(store: QualityStore) -> None:
    watched = Watched(store, privacy="redacted").see(answered(messages=(Turn("user", "Mail bob@example.com"),)))
    given = give(watched, correction="Ask eve@example.com")
    assert given.correction == "Ask [EMAIL]"
    assert store.samples()[0].messages == (Turn("user", "Mail [EMAIL]"),)


def test_without_text_no_conversation_is_kept(store: QualityStore) -> None:
    (sample,) = Watched(store, privacy="features").samples(answered())
    assert (sample.messages, sample.request_hash, sample.response_hash) == ((), None, None)


def test_a_preference_names_two_answers_to_one_question(store: QualityStore) -> None:
    watched = Watched(store, privacy="full").see(answered(), answered("r-2"))
    given = give(watched, "r-2", score=None, over="r-1")
    assert {given.sample_id, given.over_id} == {sample.id for sample in store.samples()}


def test_an_answer_that_retention_deletes_meanwhile_is_unknown(store: QualityStore) -> None:
    watched = Watched(store, privacy="full").see(answered())
    give(watched)
    store.prune(before_s=1e12, most_samples=0)
    with pytest.raises(UnknownAnswerError):
        give(watched)


def test_a_flood_of_feedback_drops_no_answer(store: QualityStore) -> None:
    watched = Watched(store, privacy="full", most_queued=4).see(answered())
    for _ in range(2):
        watched.sampler.give_feedback(GivenFeedback("acme", "r-1", score=1.0))
    with pytest.raises(RateLimitedError, match="Too much waits"):
        watched.sampler.give_feedback(GivenFeedback("acme", "r-1", score=1.0))
    watched.see(answered("r-2"), minutes=1)
    assert len(store.samples()) == 2


def test_feedback_is_counted_by_what_it_says(store: QualityStore) -> None:
    watched = Watched(store, privacy="full").see(answered(), answered("r-2"))
    give(watched)
    give(watched, correction="I20")
    give(watched, score=None, over="r-2")
    registry = watched.metrics.registry
    counted = {
        kind: registry.get_sample_value("lorikeet_feedback_total", {"adapter": "medical", "version": "3", "kind": kind})
        for kind in ("score", "correction", "preference")
    }
    assert counted == {"score": 1, "correction": 1, "preference": 1}


@pytest.mark.parametrize(("over", "wrong"), [("r-1", "names the same one"), ("r-2", "another question's")])
def test_a_preference_between_different_questions_is_refused(store: QualityStore, over: str, wrong: str) -> None:
    watched = Watched(store, privacy="full").see(answered(), answered("r-2", messages=(Turn("user", "Other?"),)))
    with pytest.raises(InvalidRequestError, match=wrong):
        give(watched, score=None, over=over)


def test_an_answer_takes_so_many_users_feedback(store: QualityStore) -> None:
    watched = Watched(store, privacy="full").see(answered())
    for number in range(MOST_OF_SAMPLE):
        give(watched, user=str(number))
    with pytest.raises(ConflictError, match="100 users have given feedback"):
        give(watched, user="one more")


def test_an_error_of_the_store_reaches_who_gave_it_and_no_answer_is_lost(store: QualityStore) -> None:
    watched = Watched(store, privacy="full").see(answered())
    given = GivenFeedback("acme", "r-1", score=2.0)
    taken = watched.sampler.give_feedback(given)
    watched.see(answered("r-2"))
    assert isinstance(taken.exception(timeout=0), ValueError)
    assert give(watched, "r-2").score == 1.0
