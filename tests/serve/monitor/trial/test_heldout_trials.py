"""Held-out questions of a trial: canary and stable are asked the same questions, before all others."""

from collections import Counter
from datetime import UTC, datetime

import pytest

from adapters.store.store import AdapterStore
from quality.samples.store import QualityStore
from serve.errors import EngineRequestError, NotReadyError
from tests.heldout_exam import FIRST, SECOND, THIRD, Exam, failing, held_out_set, make_exam, number_of, on_trial

pytestmark = pytest.mark.anyio


async def test_a_trial_that_goes_on_after_a_restart_is_asked_only_what_it_lacks(exam: Exam) -> None:
    await on_trial(exam, 5)
    exam.scores.counted = None  # nobody follows it yet
    await exam.turns(2)
    assert exam.asked() == []
    exam.scores.counted = {0, 2, 3}
    await exam.turns(3)
    assert sorted(exam.asked()) == [(model, n) for model in ("medical@1", "medical@2") for n in "14"]


async def test_where_nobody_judges_a_canary_it_is_asked_all_the_same(exam: Exam, quality: QualityStore) -> None:
    await on_trial(exam, 1)
    unjudged = make_exam(exam.serving, quality, is_judged=False)
    await unjudged.turns(1)
    assert sorted(unjudged.asked()) == [("medical@1", "0"), ("medical@2", "0")]


async def test_canary_and_stable_are_asked_the_same_question_in_the_same_turn(exam: Exam) -> None:
    for _ in range(2):
        exam.publish(held_out_set(5))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    exam.serving.engine.say = lambda body: number_of(body) if body["model"] == "medical@1" else "wrong"
    await exam.resident(FIRST)
    await exam.turns(7)
    asked = exam.asked()
    assert Counter(asked) == {(str(target), str(n)): 1 for target in (FIRST, SECOND) for n in range(5)}
    assert all(asked[at][1] == asked[at + 1][1] for at in range(0, 10, 2))
    assert exam.scores.heard == [(FIRST, SECOND, (1.0, 0.0))] * 5


async def test_a_canary_is_asked_stables_questions_though_stable_was_asked_them_before(exam: Exam) -> None:
    for _ in range(2):
        exam.publish(held_out_set(2))
    exam.serving.store.promote("medical", 1)
    await exam.resident(FIRST)
    await exam.turns(1)
    exam.serving.store.promote("medical", 2, alias="canary")
    await exam.turns(2)
    assert len(exam.scores.heard) == 2
    assert exam.gauge("heldout_questions_scored", FIRST) == 2


async def test_a_canary_does_not_bring_its_own_questions(exam: Exam) -> None:
    exam.publish(held_out_set(2))
    exam.publish(held_out_set(2, topic="Easy"))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST, SECOND)
    await exam.turns(3)
    assert {body["messages"][0]["content"] for body in exam.serving.engine.bodies} == {"Term 0", "Term 1"}
    assert exam.gauge("heldout_questions_scored", SECOND) == 2
    assert exam.store.held_out_scores("medical", 2) == ()  # their numbers would mean other questions


async def test_a_new_canary_is_asked_everything_anew(exam: Exam) -> None:
    for _ in range(3):
        exam.publish(held_out_set(2))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST)
    await exam.turns(3)
    exam.serving.store.promote("medical", 3, alias="canary")
    await exam.turns(3)
    assert [canary for _, canary, _ in exam.scores.heard] == [SECOND, SECOND, THIRD, THIRD]


async def test_a_canarys_trial_does_not_wait_for_a_pause(exam: Exam) -> None:
    await on_trial(exam, 3)
    exam.is_busy = True
    await exam.turns(3)
    assert len(exam.scores.heard) == 3


async def test_another_trial_of_the_same_versions_is_asked_everything_anew(exam: Exam) -> None:
    await on_trial(exam, 2)
    await exam.turns(3)
    later = AdapterStore(exam.serving.store.root, clock=lambda: datetime(2026, 11, 22, tzinfo=UTC))
    later.set_aliases("medical", {"canary": 1})
    later.set_aliases("medical", {"canary": 2})  # before the questions' next turn
    await exam.turns(3)
    assert len(exam.scores.heard) == 4


async def test_canaries_come_first_then_all_others_in_turn(exam: Exam) -> None:
    for _ in range(3):
        exam.publish(held_out_set(3))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST, SECOND, THIRD)
    await exam.turns(3)
    assert {model for model, _ in exam.asked()} == {"medical@1", "medical@2"}
    await exam.turns(2)
    assert {model for model, _ in exam.asked()[6:]} == {"medical@3"}


async def test_a_canarys_trial_gets_all_that_may_be_asked_at_once(exam: Exam, quality: QualityStore) -> None:
    for _ in range(3):
        exam.publish(held_out_set(6))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    six_at_once = make_exam(exam.serving, quality, at_once=6)
    await six_at_once.resident(FIRST, SECOND, THIRD)
    await six_at_once.turns(2)
    assert Counter(model for model, _ in six_at_once.asked()) == {"medical@1": 6, "medical@2": 6}
    await six_at_once.turns(1)
    assert {model for model, _ in six_at_once.asked()[12:]} == {"medical@3"}


async def test_a_canary_beside_a_stable_version_without_questions_proves_nothing(exam: Exam) -> None:
    exam.publish(None)
    exam.publish(held_out_set(2))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST, SECOND)
    await exam.turns(3)
    assert exam.scores.heard == []


async def test_a_question_that_the_engine_was_not_ready_for_is_asked_later(exam: Exam) -> None:
    await on_trial(exam)
    exam.serving.engine.say = failing(NotReadyError("gone"), "medical@2")
    await exam.turns(1)
    assert exam.scores.heard == []
    assert exam.store.held_out_scores() == ()
    exam.serving.engine.say = number_of
    await exam.turns(2)
    assert len(exam.scores.heard) == 2


async def test_a_question_that_the_engine_does_not_take_says_nothing_of_the_versions(exam: Exam) -> None:
    await on_trial(exam)
    exam.serving.engine.say = failing(EngineRequestError("too long", 400), "medical@2")
    await exam.turns(3)
    assert exam.scores.heard == []
    assert len(exam.asked()) == 4  # and it is not tried for ever


async def test_a_canary_that_is_refused_answers_every_question_wrongly(exam: Exam) -> None:
    for _ in range(2):
        exam.publish(held_out_set(1))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST)
    exam.serving.engine.load_error = "no such module"
    await exam.turns(1)
    assert exam.scores.heard == [(FIRST, SECOND, (1.0, 0.0))]


async def test_even_a_pair_is_asked_where_one_question_at_once_is_allowed(exam: Exam, quality: QualityStore) -> None:
    await on_trial(exam)
    one_at_once = make_exam(exam.serving, quality, at_once=1)
    await one_at_once.turns(2)
    assert len(one_at_once.scores.heard) == 2
