"""Feedback in the quality store: beside its sample, found by hashes, bounded."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from quality.samples.privacy import id_hash
from quality.samples.records import Feedback, Turn
from quality.samples.store import QualityStore
from tests.samples import SAMPLE

HASH = id_hash(b"key", "acme", "r-1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[QualityStore]:
    with QualityStore(tmp_path / "quality.sqlite3", busy_timeout_s=0.5) as store:
        yield store


def test_feedback_comes_back_as_it_was_given(store: QualityStore) -> None:
    first, second = store.add_samples([SAMPLE, SAMPLE])
    given = Feedback(second, "ada", 5.0, score=0.5, correction="I21", over_id=first)
    assert store.add_feedback(given, most_of_sample=1)
    assert store.feedback("medical") == (given,)
    assert store.feedback("legal") == ()


def test_a_users_later_feedback_replaces_the_earlier_one(store: QualityStore) -> None:
    sample_id = store.add_sample(SAMPLE)
    for score in (0.0, 1.0):
        assert store.add_feedback(Feedback(sample_id, "ada", 5.0, score=score), most_of_sample=1)
    assert [given.score for given in store.feedback()] == [1.0]


def test_one_sample_has_a_bounded_number_of_users(store: QualityStore) -> None:
    sample_id = store.add_sample(SAMPLE)
    taken = [store.add_feedback(Feedback(sample_id, f"u{n}", 5.0, score=1.0), most_of_sample=2) for n in range(3)]
    assert taken == [True, True, False]


def test_feedback_goes_with_either_sample_that_it_names(store: QualityStore) -> None:
    old = store.add_sample(replace(SAMPLE, at_s=1.0))
    new = store.add_sample(SAMPLE)
    store.add_feedback(Feedback(new, "ada", 5.0, over_id=old), most_of_sample=1)
    store.prune(before_s=2.0, most_samples=10)
    assert store.feedback() == ()


@pytest.mark.parametrize(("sample_id", "over_id"), [(9, None), (1, 9)])
def test_feedback_on_an_unknown_sample_is_refused(store: QualityStore, sample_id: int, over_id: int | None) -> None:
    store.add_sample(SAMPLE)
    with pytest.raises(KeyError, match="no sample 9"):
        store.add_feedback(Feedback(sample_id, "ada", 5.0, score=1.0, over_id=over_id), most_of_sample=1)


def test_a_sample_is_found_by_request_or_answer(store: QualityStore) -> None:
    answer = id_hash(b"key", "acme", "chatcmpl-1")
    kept = replace(SAMPLE, request_hash=HASH, response_hash=answer, messages=(Turn("user", "Angina?"),))
    sample_id = store.add_sample(kept)
    assert store.sample_of(HASH) == store.sample_of(answer) == replace(kept, id=sample_id)


def test_the_newest_of_requests_with_one_id_counts(store: QualityStore) -> None:
    ids = store.add_samples([replace(SAMPLE, request_hash=HASH)] * 2)
    found = store.sample_of(HASH)
    assert found is not None
    assert found.id == max(ids)


def test_another_tenants_same_id_has_another_hash() -> None:
    assert id_hash(b"key", "other", "r-1") != HASH


def test_feedback_that_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a score, a correction or a preference"):
        Feedback(1, "ada", 5.0)
