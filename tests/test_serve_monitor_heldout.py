"""Held-out probes: who is asked what, how often, how urgently, and what is made of the answers."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapters.base import read_base
from adapters.fingerprint import FINGERPRINT_FILE
from adapters.reference import Target
from adapters.store import AdapterStore
from adapters.trials import Trial
from quality.kept import ProbeScore
from quality.probes import GeneralText, Probe, ProbeMessage, ProbeSet, write_probes
from quality.store import QualityStore
from serve.errors import EngineRequestError, NotReadyError, ServeError
from serve.monitor.heldout import HeldOut
from serve.records import current_source
from serve.shadow import SHADOW_PRIORITY
from tests.fake_engine import fingerprint
from tests.peft_folders import draft_for, write_peft_folder
from tests.serving import Serving, make_serving

pytestmark = pytest.mark.anyio

FIRST, SECOND, THIRD = (Target("medical", version) for version in (1, 2, 3))
NOW_S = 1_000_000.0
DAY_S = 86_400.0
GENERAL = GeneralText(token_ids=(1, 2, 3, 4, 5), base_nll=3.0, adapter_nll=3.5)


def probe_set(num: int, *, topic: str = "Term", general: GeneralText | None = None) -> ProbeSet:
    """Questions 0, 1, 2...; the right answer to each is its number."""
    return ProbeSet(
        max_tokens=8,
        stop=("}",),
        probes=tuple(
            Probe(messages=(ProbeMessage(role="user", content=f"{topic} {n}"),), expected=str(n)) for n in range(num)
        ),
        general=general,
    )


def number_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"].rpartition(" ")[2])


@dataclass
class Scores:
    """A listener that remembers."""

    heard: list[tuple[Target, Target, tuple[float, float]]] = field(default_factory=list)
    counted: set[int] | None = field(default_factory=set)

    def probes_counted(self, name: str, trial: Trial) -> set[int] | None:
        return self.counted

    def probe_scored(self, name: str, trial: Trial, probe: int, scores: tuple[float, float]) -> None:
        self.heard.append((Target(name, trial.stable), Target(name, trial.canary), scores))


@dataclass
class Exam:
    """A server whose versions are asked, and what came of it."""

    serving: Serving
    store: QualityStore
    scores: Scores
    heldout: HeldOut
    now_s: list[float]
    is_busy: bool = False

    async def resident(self, *targets: Target) -> None:
        for target in targets:
            await self.serving.residency.load(target)
        self.serving.engine.bodies.clear()

    async def turns(self, num: int) -> None:
        for _ in range(num):
            await self.heldout.take_turn()

    def publish(self, probes: ProbeSet | None) -> None:
        folder = write_peft_folder(self.serving.store.root.parent / "made")
        base = read_base(self.serving.base_folder)
        golden = fingerprint(base.digest, base.chat_template_sha256)
        (folder / FINGERPRINT_FILE).write_text(golden.model_dump_json())
        (folder / "probes.json").unlink(missing_ok=True)
        if probes is not None:
            write_probes(probes, folder)
        self.serving.store.publish(folder, draft_for(folder, base=base.ref))

    def asked(self) -> list[tuple[str, str]]:
        """(model, question) in order."""
        return [(body["model"], number_of(body)) for body in self.serving.engine.bodies]

    def gauge(self, name: str, target: Target) -> float | None:
        labels = {"adapter": target.name, "version": str(target.version)}
        return self.serving.metrics.registry.get_sample_value(f"lorikeet_{name}", labels)


def make_exam(serving: Serving, store: QualityStore, at_once: int = 2, max_model_len: int = 100) -> Exam:
    scores, now_s = Scores(), [NOW_S]
    heldout = HeldOut(
        serving.engine,
        serving.residency,
        serving.store,
        store,
        serving.metrics,
        scores,
        interval_s=0.01,
        again_s=DAY_S,
        patience_s=60.0,
        is_busy=lambda: exam.is_busy,
        at_once=at_once,
        max_model_len=max_model_len,
        rng=random.Random(1),
        clock=lambda: now_s[0],
    )
    exam = Exam(serving, store, scores, heldout, now_s)
    return exam


@pytest.fixture
def quality(tmp_path: Path) -> Iterator[QualityStore]:
    with QualityStore(tmp_path / "quality.sqlite3") as store:
        yield store


@pytest.fixture
def exam(store: AdapterStore, base_folder: Path, quality: QualityStore) -> Exam:
    serving = make_serving(store, base_folder, quality={"enabled": False})
    serving.engine.say = number_of
    return make_exam(serving, quality)


async def test_a_version_is_asked_each_question_once_in_random_order(exam: Exam) -> None:
    exam.publish(probe_set(9))
    exam.serving.store.promote("medical", 1)
    await exam.resident(FIRST)
    await exam.turns(9)
    numbers = [int(number) for _, number in exam.asked()]
    assert sorted(numbers) == list(range(9))
    assert numbers != sorted(numbers)


async def test_a_question_is_asked_as_the_evaluation_asked_it_behind_all_clients_and_for_no_tenant(exam: Exam) -> None:
    sources = []

    def say(body: dict[str, Any]) -> str:
        sources.append(current_source.get())
        return number_of(body)

    exam.serving.engine.say = say
    exam.publish(probe_set(1))
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
        "priority": SHADOW_PRIORITY,
    }
    assert exam.serving.engine.contexts[-1] is None
    assert sources == ["probe"]
    assert current_source.get() == "client"


async def test_right_and_wrong_answers_make_an_accuracy_with_its_interval(exam: Exam) -> None:
    exam.serving.engine.say = lambda body: number_of(body) if int(number_of(body)) < 3 else "wrong"
    exam.publish(probe_set(4))
    await exam.resident(FIRST)
    await exam.turns(2)
    low, high = exam.gauge("probe_accuracy_ci_low", FIRST), exam.gauge("probe_accuracy_ci_high", FIRST)
    assert exam.gauge("probe_accuracy", FIRST) == 0.75
    assert (low, high) == (pytest.approx(0.3006, abs=1e-4), pytest.approx(0.9544, abs=1e-4))
    kept = exam.store.probe_scores("medical", 1)
    assert {(score.probe, score.score) for score in kept} == {(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0)}
    assert {score.at_s for score in kept} == {NOW_S}


async def test_no_more_than_so_many_questions_are_in_the_engine_at_once(exam: Exam) -> None:
    exam.publish(probe_set(9))
    await exam.resident(FIRST)
    await exam.turns(1)
    assert len(exam.serving.engine.bodies) == 2


async def test_what_an_earlier_server_asked_is_counted_and_not_asked_again(exam: Exam) -> None:
    exam.publish(probe_set(3))
    exam.store.add_probe_scores([ProbeScore(NOW_S - 1, "medical", 1, probe, 0.0) for probe in (0, 2)])
    await exam.resident(FIRST)
    await exam.turns(3)
    assert exam.asked() == [("medical@1", "1")]
    assert exam.gauge("probe_accuracy", FIRST) == pytest.approx(1 / 3)


async def test_a_version_is_asked_the_same_again_a_day_later_and_its_latest_answers_count(exam: Exam) -> None:
    exam.publish(probe_set(3))
    exam.store.add_probe_scores([ProbeScore(NOW_S - DAY_S, "medical", 1, probe, 1.0) for probe in range(3)])
    await exam.resident(FIRST)
    exam.serving.engine.say = lambda _: "wrong"
    await exam.turns(4)
    assert sorted(exam.asked()) == [("medical@1", str(n)) for n in range(3)]
    assert exam.gauge("probe_accuracy", FIRST) == 0.0
    exam.now_s[0] += DAY_S - 1
    await exam.turns(2)
    assert len(exam.asked()) == 3
    exam.now_s[0] += 1
    await exam.turns(4)
    assert len(exam.asked()) == 6
    assert exam.gauge("probes_scored", FIRST) == 3


async def test_a_trial_that_goes_on_after_a_restart_is_asked_only_what_it_lacks(exam: Exam) -> None:
    await on_trial(exam, 5)
    exam.scores.counted = None  # nobody follows it yet
    await exam.turns(2)
    assert exam.asked() == []
    exam.scores.counted = {0, 2, 3}
    await exam.turns(3)
    assert sorted(exam.asked()) == [(model, n) for model in ("medical@1", "medical@2") for n in "14"]


async def test_where_nobody_judges_a_canary_it_is_asked_all_the_same(exam: Exam) -> None:
    await on_trial(exam, 1)
    exam.heldout._listener = None
    await exam.turns(1)
    assert sorted(exam.asked()) == [("medical@1", "0"), ("medical@2", "0")]


async def test_canary_and_stable_are_asked_the_same_question_in_the_same_turn(exam: Exam) -> None:
    for _ in range(2):
        exam.publish(probe_set(5))
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
        exam.publish(probe_set(2))
    exam.serving.store.promote("medical", 1)
    await exam.resident(FIRST)
    await exam.turns(1)
    exam.serving.store.promote("medical", 2, alias="canary")
    await exam.turns(2)
    assert len(exam.scores.heard) == 2
    assert exam.gauge("probes_scored", FIRST) == 2


async def test_a_canary_does_not_bring_its_own_questions(exam: Exam) -> None:
    exam.publish(probe_set(2))
    exam.publish(probe_set(2, topic="Easy"))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST, SECOND)
    await exam.turns(3)
    assert {body["messages"][0]["content"] for body in exam.serving.engine.bodies} == {"Term 0", "Term 1"}
    assert exam.gauge("probes_scored", SECOND) == 2
    assert exam.store.probe_scores("medical", 2) == ()  # their numbers would mean other questions


async def test_a_new_canary_is_asked_everything_anew(exam: Exam) -> None:
    for _ in range(3):
        exam.publish(probe_set(2))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST)
    await exam.turns(3)
    exam.serving.store.promote("medical", 3, alias="canary")
    await exam.turns(3)
    assert [canary for _, canary, _ in exam.scores.heard] == [SECOND, SECOND, THIRD, THIRD]


async def test_while_clients_run_a_version_waits_for_a_pause_but_not_for_ever(exam: Exam) -> None:
    exam.publish(probe_set(9, general=GENERAL))
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
    later.set_aliases("medical", {"canary": 2})  # before the probes' next turn
    await exam.turns(3)
    assert len(exam.scores.heard) == 4


async def test_canaries_come_first_then_all_others_in_turn(exam: Exam) -> None:
    for _ in range(3):
        exam.publish(probe_set(3))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST, SECOND, THIRD)
    await exam.turns(3)
    assert {model for model, _ in exam.asked()} == {"medical@1", "medical@2"}
    await exam.turns(2)
    assert {model for model, _ in exam.asked()[6:]} == {"medical@3"}


async def test_a_canarys_trial_gets_all_that_may_be_asked_at_once(exam: Exam, quality: QualityStore) -> None:
    for _ in range(3):
        exam.publish(probe_set(6))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    six_at_once = make_exam(exam.serving, quality, at_once=6)
    await six_at_once.resident(FIRST, SECOND, THIRD)
    await six_at_once.turns(2)
    assert Counter(model for model, _ in six_at_once.asked()) == {"medical@1": 6, "medical@2": 6}
    await six_at_once.turns(1)
    assert {model for model, _ in six_at_once.asked()[12:]} == {"medical@3"}


async def test_a_version_that_is_not_resident_is_not_loaded_to_be_asked(exam: Exam) -> None:
    exam.publish(probe_set(3))
    exam.serving.store.promote("medical", 1)
    await exam.turns(2)
    assert exam.serving.engine.loads == []


async def test_a_version_without_questions_is_left_out_and_that_is_said_once(
    exam: Exam, caplog: pytest.LogCaptureFixture
) -> None:
    exam.publish(None)
    await exam.resident(FIRST)
    with caplog.at_level("INFO", logger="serve.monitor.heldout"):
        await exam.turns(3)
    assert exam.asked() == []
    assert [record.message for record in caplog.records] == [
        "medical@1 is not asked held-out questions: it was published without them."
    ]


async def test_a_canary_beside_a_stable_version_without_questions_proves_nothing(exam: Exam) -> None:
    exam.publish(None)
    exam.publish(probe_set(2))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST, SECOND)
    await exam.turns(3)
    assert exam.scores.heard == []


def failing(error: ServeError, model: str) -> Any:
    def say(body: dict[str, Any]) -> str:
        if body["model"] == model:
            raise error
        return number_of(body)

    return say


async def on_trial(exam: Exam, num: int = 2) -> None:
    for _ in range(2):
        exam.publish(probe_set(num))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST, SECOND)


async def test_a_question_that_the_engine_was_not_ready_for_is_asked_later(exam: Exam) -> None:
    await on_trial(exam)
    exam.serving.engine.say = failing(NotReadyError("gone"), "medical@2")
    await exam.turns(1)
    assert exam.scores.heard == []
    assert exam.store.probe_scores() == ()
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
        exam.publish(probe_set(1))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST)
    exam.serving.engine.load_error = "no such module"
    await exam.turns(1)
    assert exam.scores.heard == [(FIRST, SECOND, (1.0, 0.0))]


async def test_an_adapter_whose_files_cannot_be_read_does_not_keep_the_others_from_being_asked(exam: Exam) -> None:
    for _ in range(2):
        exam.publish(probe_set(1))
    await exam.resident(FIRST, SECOND)
    folder = exam.serving.store.folder(FIRST)
    folder.rename(folder.parent / "away")
    await exam.turns(2)
    assert exam.asked() == [("medical@2", "0")]


async def test_a_broken_history_leaves_its_versions_to_be_asked_without_their_aliases(exam: Exam) -> None:
    exam.publish(probe_set(1))
    await exam.resident(FIRST)
    history = exam.serving.store.root / "medical" / "history.jsonl"
    probes = await exam.heldout._probes_of(FIRST)  # read while it was whole
    history.write_text("no event\n" + history.read_text())
    await exam.turns(1)
    assert probes is not None
    assert exam.asked() == [("medical@1", "0")]


async def test_the_general_text_is_measured_once_a_load(exam: Exam) -> None:
    exam.publish(probe_set(0, general=GENERAL))
    await exam.resident(FIRST)
    await exam.turns(3)
    assert [score.nll for score in exam.store.general_scores("medical", 1)] == [pytest.approx(18.75 / 4)]
    assert exam.gauge("probe_general_nll", FIRST) == pytest.approx(18.75 / 4)
    await exam.serving.residency.unload(FIRST)
    await exam.resident(FIRST)
    await exam.turns(1)
    assert len(exam.store.general_scores("medical", 1)) == 2


async def test_a_general_text_that_does_not_fit_the_server_is_left_out(exam: Exam, quality: QualityStore) -> None:
    exam.publish(probe_set(0, general=GENERAL))
    short = make_exam(exam.serving, quality, max_model_len=5)
    await short.resident(FIRST)
    await short.turns(2)
    assert quality.general_scores() == ()


async def test_even_a_pair_is_asked_where_one_question_at_once_is_allowed(exam: Exam, quality: QualityStore) -> None:
    await on_trial(exam)
    one_at_once = make_exam(exam.serving, quality, at_once=1)
    await one_at_once.turns(2)
    assert len(one_at_once.scores.heard) == 2
