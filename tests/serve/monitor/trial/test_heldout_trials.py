"""Held-out questions of a trial: canary and stable are asked the same questions, before all others."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from adapters.store.manifest import QualityRules
from adapters.store.store import AdapterStore
from quality.held_out import HeldOutSet
from quality.metrics.settings import MetricConfig, NumericMetric, PlainMetric, PlainName
from quality.samples.store import QualityStore
from serve.errors import EngineRequestError, NotReadyError
from serve.records import EvaluationResult
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
    assert exam.gauge("held_out_questions_scored", FIRST) == 2


@pytest.mark.slow
async def test_a_canary_does_not_bring_its_own_questions(exam: Exam) -> None:
    exam.publish(held_out_set(2))
    exam.publish(held_out_set(2, topic="Easy"))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST, SECOND)
    await exam.turns(3)
    assert {body["messages"][0]["content"] for body in exam.serving.engine.bodies} == {"Term 0", "Term 1"}
    assert exam.gauge("held_out_questions_scored", SECOND) == 2
    assert exam.store.held_out_scores("medical", 2) == ()  # their numbers would mean other questions


@pytest.mark.slow
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


@pytest.mark.slow
async def test_another_trial_of_the_same_versions_is_asked_everything_anew(exam: Exam) -> None:
    await on_trial(exam, 2)
    await exam.turns(3)
    later = AdapterStore(exam.serving.store.root, clock=lambda: datetime(2026, 11, 22, tzinfo=UTC))
    later.set_aliases("medical", {"canary": 1})
    later.set_aliases("medical", {"canary": 2})  # before the questions' next turn
    await exam.turns(3)
    assert len(exam.scores.heard) == 4


@pytest.mark.slow
async def test_canaries_come_first_then_all_others_in_turn(exam: Exam) -> None:
    for _ in range(3):
        exam.publish(held_out_set(3))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST, SECOND, THIRD)
    await exam.turns(3)
    assert {model for model, _ in exam.asked()} == {"medical@1", "medical@2"}
    await exam.turns(2)
    assert {model for model, _ in exam.asked()[6:]} == {"medical@3"}


@pytest.mark.slow
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


def scored_by(metric: MetricConfig, *expected: str, in_scope: bool = True) -> HeldOutSet:
    asked = held_out_set(len(expected))
    questions = tuple(
        question.model_copy(update={"expected": right, "in_scope": in_scope})
        for question, right in zip(asked.questions, expected, strict=True)
    )
    return asked.model_copy(update={"metric": metric, "questions": questions})


async def tried(exam: Exam, questions: HeldOutSet, stable: str, canary: str, **changes: Any) -> None:
    for _ in range(2):
        exam.publish(questions, **changes)
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    exam.serving.engine.say = lambda body: stable if body["model"] == "medical@1" else canary
    await exam.resident(FIRST, SECOND)
    await exam.turns(3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "expected", "stable", "canary", "scores"),
    [
        ("json_fields", '{"a": 1, "b": 2}', '{"a": 1, "b": 2}', '{"a": 1, "b": 3}', (1.0, 0.5)),
        ("rouge_l", "one two three", "one two three", "one two", (1.0, 0.8)),
        ("accuracy", "Red", "red.", "blue", (1.0, 0.0)),
        ("valid_format", "{}", "{}", "no object", (1.0, 0.0)),
    ],
)
async def test_both_versions_are_scored_by_stables_metric(
    exam: Exam, metric: PlainName, expected: str, stable: str, canary: str, scores: tuple[float, float]
) -> None:
    questions = scored_by(PlainMetric(name=metric), expected)
    await tried(exam, questions, stable, canary, answer_schema={"type": "object"})
    ((_, _, found),) = exam.scores.heard
    assert found == pytest.approx(scores)
    assert exam.gauge("held_out_live_accuracy", SECOND) == pytest.approx(scores[1])


@pytest.mark.slow
async def test_a_refusal_is_scored_by_the_domains_own(exam: Exam) -> None:
    questions = scored_by(PlainMetric(name="refusal"), "No.", in_scope=False)
    await tried(exam, questions, "No.", "Yes!", quality=QualityRules(refusal="No."))
    assert exam.scores.heard == [(FIRST, SECOND, (1.0, 0.0))]


async def test_a_question_without_a_score_is_left_out_for_both(exam: Exam) -> None:
    await tried(exam, scored_by(NumericMetric(), "17", "none"), "17 g", "18 g")
    assert exam.scores.heard == [(FIRST, SECOND, (1.0, 0.0))]
    assert exam.gauge("held_out_questions_scored", FIRST) == 1


async def test_a_metric_that_a_version_lacks_the_refusal_for_is_named_once(
    exam: Exam, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="serve.monitor.trial"):
        await tried(exam, scored_by(PlainMetric(name="refusal"), "No."), "No.", "No.")
    assert exam.scores.heard == []
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("The held-out questions of medical@1 cannot be scored: metric `refusal` needs")


async def test_scores_by_another_metric_are_not_kept_as_those_of_a_versions_own_questions(exam: Exam) -> None:
    exam.publish(scored_by(PlainMetric(name="token_f1"), "0", "1"))
    exam.publish(held_out_set(2))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST, SECOND)
    await exam.turns(3)
    assert len(exam.store.held_out_scores("medical", 1)) == 2
    assert exam.store.held_out_scores("medical", 2) == ()


async def test_each_score_is_told_with_its_metric_and_version(exam: Exam) -> None:
    told: list[EvaluationResult] = []
    exam.serving.metrics.evaluated.listeners.append(told.append)
    await tried(exam, scored_by(PlainMetric(name="exact_match"), "0"), "0", "1")
    seen = sorted((one.lora_name, one.name, one.score, one.label) for one in told)
    assert seen == [("medical@1", "exact_match", 1.0, "pass"), ("medical@2", "exact_match", 0.0, "fail")]


async def test_a_score_between_has_no_label(exam: Exam) -> None:
    told: list[EvaluationResult] = []
    exam.serving.metrics.evaluated.listeners.append(told.append)
    await tried(exam, scored_by(PlainMetric(name="rouge_l"), "one two three"), "one two three", "one two")
    assert {(one.score, one.label) for one in told} == {(1.0, None), (0.8, None)}


async def test_a_listener_that_fails_keeps_no_question_from_being_scored(exam: Exam) -> None:
    def fail(result: EvaluationResult) -> None:
        raise RuntimeError(result.name)

    exam.serving.metrics.evaluated.listeners.append(fail)
    await tried(exam, scored_by(PlainMetric(name="exact_match"), "0"), "0", "0")
    assert exam.scores.heard == [(FIRST, SECOND, (1.0, 1.0))]
