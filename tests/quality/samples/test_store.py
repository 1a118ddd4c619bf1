import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quality.errors import QualityStoreError
from quality.samples.schema import FORMAT
from quality.samples.store import DriftCheck, GeneralScore, Grade, HeldOutScore, Label, QualityStore, Sample, TrialPair
from quality.signals import Signals, signals_of
from tests.tracked_files import ROOT

SIGNALS = signals_of("Neoplasms", num_tokens=3, finish_reason="stop", token_logprobs=(-0.5, -0.25, -0.75))
SAMPLE = Sample(
    id=0,
    at_s=100.0,
    request_id="r-1",
    adapter="medical",
    version=3,
    tenant_hash="a1b2",
    source="client",
    privacy="full",
    num_prompt_tokens=40,
    ttft_s=0.2,
    e2e_s=1.0,
    signals=SIGNALS,
    prompt="Code of angina?",
    answer="Neoplasms",
)

# Writes a batch of two and dies before the second row is in.
DIES_IN_A_BATCH = """
import os, sys
from pathlib import Path
from quality.samples.store import QualityStore
from tests.quality.samples.test_store import SAMPLE

class Deadly:
    def __getattr__(self, name):
        os._exit(9)

QualityStore(Path(sys.argv[1])).add_samples([SAMPLE, Deadly()])
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[QualityStore]:
    with QualityStore(tmp_path / "quality.sqlite3", busy_timeout_s=0.5) as store:
        yield store


def sample(at_s: float = 100.0, **changes: Any) -> Sample:
    return replace(SAMPLE, at_s=at_s, **changes)


def drift_check(number: int, at_s: float = 100.0, **changes: Any) -> DriftCheck:
    return replace(DriftCheck(at_s, "medical", 3, number, 100, False, "no drift", {"psi": 0.25}), **changes)


def test_a_sample_comes_back_as_it_was_kept(store: QualityStore) -> None:
    number = store.add_sample(SAMPLE)
    assert store.sample(number) == replace(SAMPLE, id=number)


def test_a_sample_of_numbers_only_has_no_text(store: QualityStore) -> None:
    numbers = sample(privacy="features", prompt=None, answer=None, request_id=None, tenant_hash=None, ttft_s=None)
    store.add_sample(numbers)
    assert store.samples() == (replace(numbers, id=1),)


def test_samples_are_chosen_by_version_and_time_newest_last(store: QualityStore) -> None:
    store.add_samples([sample(at_s) for at_s in (300.0, 100.0, 200.0)])
    store.add_samples([sample(adapter="legal"), sample(version=2)])
    assert [kept.at_s for kept in store.samples("medical", 3)] == [100.0, 200.0, 300.0]
    assert [kept.at_s for kept in store.samples("medical", 3, limit=2)] == [200.0, 300.0]
    assert [kept.at_s for kept in store.samples(since_s=200.0)] == [200.0, 300.0]
    assert len(store.samples("medical")) == 4


def test_scores_and_drift_checks_come_back_as_they_were_kept(store: QualityStore) -> None:
    questions = (HeldOutScore(1.0, "medical", 3, 0, 1.0), HeldOutScore(2.0, "medical", 3, 7, 0.0))
    store.add_held_out_scores(questions)
    store.add_general_score(GeneralScore(1.0, "medical", 3, 2.5))
    store.add_drift_check(drift_check(1, is_drift=True))
    assert store.held_out_scores("medical", 3) == questions
    assert store.held_out_scores("medical", 4) == ()
    assert store.general_scores() == (GeneralScore(1.0, "medical", 3, 2.5),)
    assert store.drift_checks("medical") == (drift_check(1, is_drift=True),)


def test_what_a_trial_showed_comes_back_in_order_and_for_that_trial_only(store: QualityStore) -> None:
    def pair(at_s: float, began_at: str = "2026-11-22T09:00:00+00:00", question: int | None = None) -> TrialPair:
        return TrialPair(at_s, "medical", 1, 2, began_at, "score", 1.0, 0.0, question, "ada", "bob", 20)

    shown = (pair(30.0, question=4), pair(30.0), pair(31.0))
    store.add_trial_pairs([*shown, pair(30.0, "2026-11-21T09:00:00+00:00"), pair(1.0)])
    store.prune(before_s=10.0, most_samples=1)
    assert store.trial_pairs("medical", 1, 2, "2026-11-22T09:00:00+00:00") == shown
    assert store.trial_pairs("medical", 1, 3, "2026-11-22T09:00:00+00:00") == ()


def file_of_schema(version: int, path: Path) -> sqlite3.Connection:
    """A file as a program of this schema version left it."""
    connection = sqlite3.connect(path, isolation_level=None)
    for script in FORMAT.migrations[:version]:
        connection.executescript(script)
    connection.executescript(f"PRAGMA application_id = {FORMAT.application_id}; PRAGMA user_version = {version}")
    return connection


def test_a_file_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    older = file_of_schema(1, tmp_path / "older.sqlite3")
    older.execute("INSERT INTO probe_scores VALUES (1.0, 'medical', 3, 7, 0.5)")
    older.execute("INSERT INTO drift_looks VALUES (1.0, 'medical', 3, 2, 100, 0, '', '{}')")
    older.close()
    with QualityStore(tmp_path / "older.sqlite3") as store:
        assert store.held_out_scores("medical", 3) == (HeldOutScore(1.0, "medical", 3, 7, 0.5),)
        assert [check.number for check in store.drift_checks("medical", 3)] == [2]
        store.add_trial_pairs([TrialPair(1.0, "medical", 1, 2, "then", "slow", 0.0, 1.0)])
        store.add_judge_tokens("large", "2026-11-22", 5)
        assert store.judge_tokens("large", "2026-11-22") == 5


def test_pairs_of_a_server_that_did_not_know_users_stay_without_them(tmp_path: Path) -> None:
    path = tmp_path / "older.sqlite3"
    older = file_of_schema(3, path)
    older.execute("INSERT INTO trial_pairs VALUES (1.0, 'medical', 1, 2, 'then', 'error', 0.0, 1.0, NULL)")
    older.close()
    with QualityStore(path) as store:
        assert store.trial_pairs("medical", 1, 2, "then") == (
            TrialPair(1.0, "medical", 1, 2, "then", "error", 0.0, 1.0),
        )


def test_a_later_grade_of_a_judge_replaces_the_earlier_one(store: QualityStore) -> None:
    number = store.add_sample(SAMPLE)
    store.add_grade(Grade(number, "large", 1.0, 0.25, "vague"))
    store.add_grade(Grade(number, "small", 1.0, 0.75))
    store.add_grade(Grade(number, "large", 2.0, 0.5, "fair"))
    assert store.grades(judge="large") == (Grade(number, "large", 2.0, 0.5, "fair"),)
    assert len(store.grades("medical", 3)) == 2
    assert store.grades("legal") == ()


def test_a_judge_gets_the_samples_that_it_has_not_graded(store: QualityStore) -> None:
    first, second, _ = store.add_samples([sample(1.0), sample(2.0), sample(3.0, answer=None, prompt=None)])
    store.add_grade(Grade(first, "large", 5.0, 1.0))
    assert [kept.id for kept in store.ungraded("large", 10)] == [second]
    assert [kept.id for kept in store.ungraded("small", 10)] == [first, second]
    assert [kept.id for kept in store.ungraded("small", 1)] == [second]


def test_a_person_gets_the_samples_that_nobody_has_labelled(store: QualityStore) -> None:
    first, second = store.add_samples([sample(1.0), sample(2.0)])
    store.add_sample(sample(adapter="legal"))
    store.add_label(Label(second, "ann", 5.0, 1.0, "right"))
    assert [kept.id for kept in store.unlabelled("medical", 10)] == [first]
    assert [kept.adapter for kept in store.unlabelled(None, 10)] == ["medical", "legal"]
    assert store.labels(sample_id=second, who="ann") == (Label(second, "ann", 5.0, 1.0, "right"),)


def test_what_is_said_of_an_unknown_sample_is_refused(store: QualityStore) -> None:
    with pytest.raises(KeyError, match="There is no sample 9"):
        store.add_label(Label(9, "ann", 1.0, 1.0))


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_score_is_from_0_to_1(score: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        Grade(1, "large", 1.0, score)


def test_drift_checks_are_counted_on_after_a_restart_and_after_retention(store: QualityStore) -> None:
    assert store.last_drift_check("medical", 3) == 0
    for number in (1, 2):
        store.add_drift_check(drift_check(number))
    store.prune(before_s=1e9, most_samples=10)
    with QualityStore(store.path) as later:
        assert later.last_drift_check("medical", 3) == 2
        assert [kept.number for kept in later.drift_checks()] == [2]


def test_retention_deletes_what_is_old_and_what_is_too_much(store: QualityStore) -> None:
    old, middle, new = store.add_samples([sample(1.0), sample(20.0), sample(30.0)])
    for number in (old, middle, new):
        store.add_grade(Grade(number, "large", 30.0, 1.0))
        store.add_label(Label(number, "ann", 30.0, 1.0))
    store.add_held_out_scores([HeldOutScore(1.0, "medical", 3, 0, 1.0), HeldOutScore(30.0, "medical", 3, 0, 1.0)])
    assert store.prune(before_s=10.0, most_samples=1) == 2
    assert [kept.id for kept in store.samples()] == [new]
    remaining: list[Grade | Label] = [*store.grades(), *store.labels()]
    assert [kept.sample_id for kept in remaining] == [new, new]
    assert [kept.at_s for kept in store.held_out_scores()] == [30.0]


def test_an_id_is_never_used_twice(store: QualityStore) -> None:
    number = store.add_sample(SAMPLE)
    store.prune(before_s=1e9, most_samples=0)
    assert store.add_sample(SAMPLE) > number


def test_deleted_text_is_gone_from_the_files_and_its_space_is_given_back(store: QualityStore) -> None:
    store.add_samples([sample(answer="mySecret" * 1000) for _ in range(50)])
    assert any(b"mySecret" in file.read_bytes() for file in store.path.parent.iterdir())
    full = sum(file.stat().st_size for file in store.path.parent.iterdir())
    store.prune(before_s=1e9, most_samples=0)
    assert not any(b"mySecret" in file.read_bytes() for file in store.path.parent.iterdir())
    assert sum(file.stat().st_size for file in store.path.parent.iterdir()) < full / 4


def test_only_its_owner_may_read_the_file(store: QualityStore) -> None:
    store.add_sample(SAMPLE)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in store.path.parent.iterdir()}
    assert modes == {0o600}


def test_a_batch_is_kept_as_a_whole_or_not_at_all(store: QualityStore) -> None:
    with pytest.raises(AttributeError):
        store.add_samples([SAMPLE, None])  # type: ignore[list-item]  # a fault in the middle of a batch
    assert store.samples() == ()
    assert store.add_sample(SAMPLE) == 1


@pytest.mark.slow
def test_a_process_that_dies_in_a_batch_leaves_none_of_it(store: QualityStore) -> None:
    store.add_sample(SAMPLE)
    command = [sys.executable, "-c", DIES_IN_A_BATCH, str(store.path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False, timeout=120)
    assert done.returncode == 9
    assert len(store.samples()) == 1
    store.add_sample(SAMPLE)


@pytest.mark.slow
def test_threads_and_connections_write_and_read_at_once(store: QualityStore) -> None:
    other = QualityStore(store.path)

    def write(to: QualityStore) -> None:
        for _ in range(25):
            to.add_samples([SAMPLE, SAMPLE])
            to.samples(limit=1)

    threads = [threading.Thread(target=write, args=(to,)) for to in (store, store, other, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert len({kept.id for kept in store.samples()}) == 200


@pytest.mark.slow
def test_a_reader_does_not_wait_for_a_writer(store: QualityStore) -> None:
    store.add_sample(SAMPLE)
    writer = sqlite3.connect(store.path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert len(store.samples()) == 1
    with pytest.raises(QualityStoreError, match="database is locked"):
        store.add_sample(SAMPLE)
    writer.execute("ROLLBACK")
    writer.close()
    store.add_sample(SAMPLE)


@pytest.mark.slow
def test_several_processes_may_make_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "quality.sqlite3"
    stores: list[QualityStore] = []
    threads = [threading.Thread(target=lambda: stores.append(QualityStore(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, store in enumerate(stores):
        assert store.add_sample(SAMPLE) == number + 1
        store.close()
    assert len(stores) == 8


def test_a_newer_file_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "quality.sqlite3"
    QualityStore(path).close()
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {FORMAT.version + 1}")
    newer.close()
    before = path.read_bytes()
    with pytest.raises(QualityStoreError, match=f"has schema version {FORMAT.version + 1}, written by a newer"):
        QualityStore(path)
    assert path.read_bytes() == before


def test_another_programs_file_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "bookmarks.sqlite3"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(QualityStoreError, match="another program's SQLite file"):
        QualityStore(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "quality.sqlite3"
    path.write_text("hello" * 1000)
    with pytest.raises(QualityStoreError, match="cannot be opened: file is not a database"):
        QualityStore(path)


def test_a_store_says_whose_file_it_is(store: QualityStore) -> None:
    assert store._connection.execute("PRAGMA application_id").fetchone()[0] == FORMAT.application_id


def test_signals_without_log_probabilities_come_back_so(store: QualityStore) -> None:
    signals = signals_of("", num_tokens=0, finish_reason=None)
    store.add_sample(sample(signals=signals))
    kept: Signals = store.samples()[0].signals
    assert kept == signals


@pytest.mark.slow
def test_a_judge_draws_its_share_of_the_samples_and_always_the_same_ones(store: QualityStore) -> None:
    store.add_samples([sample(at_s=float(second)) for second in range(1000)])
    drawn = [{one.id for one in store.ungraded("judge", 1000, share)} for share in (0.0, 0.1, 0.5, 1.0)]
    assert [len(ids) for ids in drawn] == pytest.approx([0, 100, 500, 1000], abs=5)
    assert drawn[1] < drawn[2] < drawn[3]


def test_labels_of_a_batch_are_kept_all_or_none(store: QualityStore) -> None:
    sample_id = store.add_sample(SAMPLE)
    with pytest.raises(KeyError, match="no sample 99"):
        store.add_labels([Label(sample_id, "ada", 1.0, 1.0), Label(99, "ada", 1.0, 0.0)])
    assert store.labels() == ()


def test_a_label_can_be_taken_back(store: QualityStore) -> None:
    sample_id = store.add_sample(SAMPLE)
    store.add_labels([Label(sample_id, "ada", 1.0, 1.0), Label(sample_id, "bob", 1.0, 0.0)])
    store.remove_label(sample_id, "ada")
    assert [label.who for label in store.labels()] == ["bob"]


def test_a_judges_tokens_are_counted_by_day_and_never_below_0(store: QualityStore) -> None:
    for num_tokens in (500, -200, 100):
        store.add_judge_tokens("judge", "2026-11-22", num_tokens)
    store.add_judge_tokens("judge", "2026-11-23", -7)
    days = ("2026-11-21", "2026-11-22", "2026-11-23")
    assert [store.judge_tokens("judge", day) for day in days] == [0, 400, 0]


def test_a_judges_tokens_outlive_a_restart_but_not_retention(store: QualityStore) -> None:
    store.add_judge_tokens("judge", "2026-11-22", 500)
    with QualityStore(store.path) as again:
        assert again.judge_tokens("judge", "2026-11-22") == 500
        again.prune(before_s=1795392000.0, most_samples=10)  # 2026-11-23 00:00 UTC
        assert again.judge_tokens("judge", "2026-11-22") == 0


def test_a_store_tells_of_which_versions_it_keeps_anything(store: QualityStore) -> None:
    store.add_samples([sample(), sample(version=4), sample(adapter="base", version=0)])
    store.add_held_out_scores([HeldOutScore(1.0, "legal", 1, 0, 1.0)])
    assert store.versions() == (("base", 0), ("legal", 1), ("medical", 3), ("medical", 4))


def test_half_a_character_costs_that_character_and_not_the_batch(store: QualityStore) -> None:
    store.add_samples([SAMPLE, sample(prompt="I20 \ud83d", answer="a\x00b\ud83d")])
    kept = store.samples()[1]
    assert (kept.prompt, kept.answer) == ("I20 ?", "a\x00b?")
