"""Held-out questions: who is asked what, how often, how urgently, and what is made of the answers."""

import asyncio

import pytest

from adapters.store.manifest import RequestDefaults
from quality.held_out import HeldOutMessage, HeldOutQuestion, HeldOutSet
from quality.samples.records import HeldOutScore
from quality.samples.store import QualityStore
from serve.engine.protocol import BACKGROUND_PRIORITY
from serve.records import Caller
from tests.heldout_exam import DAY_S, FIRST, GENERAL, NOW_S, SECOND, Exam, held_out_set, make_exam, number_of

pytestmark = pytest.mark.anyio


async def test_a_version_is_asked_each_question_once_in_random_order(exam: Exam) -> None:
    exam.publish(held_out_set(9))
    exam.serving.store.promote("medical", 1)
    await exam.resident(FIRST)
    await exam.turns(9)
    numbers = [int(number) for _, number in exam.asked()]
    assert sorted(numbers) == list(range(9))
    assert numbers != sorted(numbers)


async def test_a_question_is_asked_as_the_evaluation_asked_it_behind_all_clients_and_for_no_tenant(exam: Exam) -> None:
    exam.publish(held_out_set(1))
    await exam.resident(FIRST)
    await exam.turns(1)
    (body,) = exam.serving.engine.bodies
    assert body == {
        "model": "medical@1",
        "messages": [{"role": "user", "content": "Term 0"}],
        "temperature": 0.0,
        "max_tokens": 8,
        "stop": ["}"],
        "include_stop_str_in_output": True,
        "priority": BACKGROUND_PRIORITY,
    }
    assert exam.serving.engine.callers == [Caller("monitor")]


async def test_a_version_with_defaults_is_asked_as_a_bare_client_asks_it(exam: Exam) -> None:
    turns = (HeldOutMessage(role="system", content="Old."), HeldOutMessage(role="user", content="Term 0"))
    held_out = HeldOutSet(max_tokens=8, stop=("}",), questions=(HeldOutQuestion(messages=turns, expected="0"),))
    exam.publish(held_out, defaults=RequestDefaults(system="New.", temperature=0.5, max_tokens=5))
    await exam.resident(FIRST)
    await exam.turns(1)
    (body,) = exam.serving.engine.bodies
    assert [turn["content"] for turn in body["messages"]] == ["New.", "Term 0"]
    # What the version has no default for, the set of questions has.
    assert (body["temperature"], body["max_tokens"], body["stop"]) == (0.5, 5, ["}"])


async def test_right_and_wrong_answers_make_an_accuracy_with_its_interval(exam: Exam) -> None:
    exam.serving.engine.say = lambda body: number_of(body) if int(number_of(body)) < 3 else "wrong"
    exam.publish(held_out_set(4))
    await exam.resident(FIRST)
    await exam.turns(2)
    low, high = exam.gauge("held_out_live_accuracy_ci_low", FIRST), exam.gauge("held_out_live_accuracy_ci_high", FIRST)
    assert exam.gauge("held_out_live_accuracy", FIRST) == 0.75
    assert (low, high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    kept = exam.store.held_out_scores("medical", 1)
    assert {(score.question, score.score) for score in kept} == {(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0)}
    assert {score.at_s for score in kept} == {NOW_S}


async def test_no_more_than_so_many_questions_are_in_the_engine_at_once(exam: Exam) -> None:
    exam.publish(held_out_set(9))
    await exam.resident(FIRST)
    await exam.turns(1)
    assert len(exam.serving.engine.bodies) == 2


async def test_what_an_earlier_server_asked_is_counted_and_not_asked_again(exam: Exam) -> None:
    exam.publish(held_out_set(3))
    exam.store.add_held_out_scores([HeldOutScore(NOW_S - 1, "medical", 1, question, 0.0) for question in (0, 2)])
    await exam.resident(FIRST)
    await exam.turns(3)
    assert exam.asked() == [("medical@1", "1")]
    assert exam.gauge("held_out_live_accuracy", FIRST) == pytest.approx(1 / 3)


async def test_a_version_is_asked_the_same_again_a_day_later_and_its_latest_answers_count(exam: Exam) -> None:
    exam.publish(held_out_set(3))
    exam.store.add_held_out_scores([HeldOutScore(NOW_S - DAY_S, "medical", 1, question, 1.0) for question in range(3)])
    await exam.resident(FIRST)
    exam.serving.engine.say = lambda _: "wrong"
    await exam.turns(4)
    assert sorted(exam.asked()) == [("medical@1", str(n)) for n in range(3)]
    assert exam.gauge("held_out_live_accuracy", FIRST) == 0.0
    exam.now_s[0] += DAY_S - 1
    await exam.turns(2)
    assert len(exam.asked()) == 3
    exam.now_s[0] += 1
    await exam.turns(4)
    assert len(exam.asked()) == 6
    assert exam.gauge("held_out_questions_scored", FIRST) == 3


async def test_while_clients_run_a_version_waits_for_a_pause_but_not_for_ever(exam: Exam) -> None:
    exam.publish(held_out_set(9, general=GENERAL))
    await exam.resident(FIRST)
    exam.is_busy = True
    await exam.turns(3)
    assert exam.asked() == []
    assert exam.store.general_scores() == ()
    exam.now_s[0] += 60
    await exam.turns(3)
    assert len(exam.asked()) == 2  # one turn
    assert len(exam.store.general_scores()) == 1
    exam.is_busy = False
    await exam.turns(2)
    assert len(exam.asked()) == 6


async def test_a_version_that_is_not_resident_is_not_loaded_to_be_asked(exam: Exam) -> None:
    exam.publish(held_out_set(3))
    exam.serving.store.promote("medical", 1)
    await exam.turns(2)
    assert exam.serving.engine.loads == []


async def test_a_version_without_questions_is_left_out_and_that_is_said_once(
    exam: Exam, caplog: pytest.LogCaptureFixture
) -> None:
    exam.publish(None)
    await exam.resident(FIRST)
    with caplog.at_level("INFO", logger="serve.monitor.trial"):
        await exam.turns(3)
    assert exam.asked() == []
    assert [record.message for record in caplog.records] == [
        "medical@1 has no held-out questions: it was published without them."
    ]


async def test_an_adapter_whose_files_cannot_be_read_does_not_keep_the_others_from_being_asked(exam: Exam) -> None:
    for _ in range(2):
        exam.publish(held_out_set(1))
    await exam.resident(FIRST, SECOND)
    folder = exam.serving.store.folder(FIRST)
    folder.rename(folder.parent / "away")
    await exam.turns(2)
    assert exam.asked() == [("medical@2", "0")]


async def test_a_broken_history_leaves_its_versions_to_be_asked_without_their_aliases(exam: Exam) -> None:
    exam.publish(held_out_set(1))
    await exam.resident(FIRST)
    history = exam.serving.store.root / "medical" / "history.jsonl"
    await exam.turns(1)  # its questions are read while it is whole
    history.write_text("no event\n" + history.read_text())
    exam.now_s[0] += DAY_S + 1
    await exam.turns(1)
    assert exam.asked() == [("medical@1", "0")] * 2


@pytest.mark.slow
async def test_the_general_text_is_measured_once_a_load(exam: Exam) -> None:
    exam.publish(held_out_set(0, general=GENERAL))
    await exam.resident(FIRST)
    await exam.turns(3)
    assert [score.nll for score in exam.store.general_scores("medical", 1)] == [pytest.approx(18.75 / 4)]
    assert exam.gauge("general_text_nll", FIRST) == pytest.approx(18.75 / 4)
    await exam.serving.residency.unload(FIRST)
    await exam.resident(FIRST)
    await exam.turns(1)
    assert len(exam.store.general_scores("medical", 1)) == 2


async def test_a_general_text_that_does_not_fit_the_server_is_left_out(exam: Exam, quality: QualityStore) -> None:
    exam.publish(held_out_set(0, general=GENERAL))
    short = make_exam(exam.serving, quality, max_model_len=5)
    await short.resident(FIRST)
    await short.turns(2)
    assert quality.general_scores() == ()


async def test_a_question_that_a_pause_interrupts_is_asked_later(exam: Exam) -> None:
    exam.publish(held_out_set(1))
    await exam.resident(FIRST)
    exam.serving.engine.never_answers = True
    turn = asyncio.create_task(exam.turns(1))
    await exam.serving.engine.answering.wait()
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)
    exam.serving.engine.never_answers = False
    await exam.turns(2)
    assert exam.asked() == [("medical@1", "0"), ("medical@1", "0")]
    assert exam.gauge("held_out_questions_scored", FIRST) == 1


@pytest.mark.parametrize("jump_s", [-365 * DAY_S, 365 * DAY_S])
async def test_a_clock_that_jumps_does_not_stop_the_questions(exam: Exam, jump_s: float) -> None:
    exam.publish(held_out_set(2))
    await exam.resident(FIRST)
    await exam.turns(2)
    exam.now_s[0] += jump_s
    exam.is_busy = True
    await exam.turns(2)
    assert len(exam.asked()) == 4
