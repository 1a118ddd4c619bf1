"""A canary's answers beside stable's: what the judge is shown of both, and what it prefers."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from config.monitor import JudgeConfig
from quality.samples.records import Grade
from serve.engine.protocol import BACKGROUND_PRIORITY, Answer
from serve.monitor.judge.asking import HttpJudge, http_judge_client
from serve.monitor.judge.comparing import Comparing
from serve.monitor.judge.judging import Judging
from serve.records import Caller, EvaluationResult
from tests.fake_engine import FakeEngine
from tests.judge_bench import GOOD, URL, Bench, Endpoint, sample
from tests.samples import NOON_S
from tests.serving import make_serving

pytestmark = pytest.mark.anyio


class AnsweringEngine(FakeEngine):
    """Every version says the same."""

    async def answer(self, endpoint: Any, body: dict[str, Any], caller: Caller, result: Any = None) -> Answer:
        self.endpoints = [*getattr(self, "endpoints", []), endpoint]
        self.bodies.append(body)
        return Answer({"choices": [{"text": "I21"}]})


class Trial:
    """medical@1 is stable and medical@2 its canary, whose answer is a sample."""

    def __init__(self, bench: Bench, base_folder: Path) -> None:
        self.bench = bench
        self.serving = make_serving(bench.adapters, base_folder)
        self.serving.publish("medical")
        self.serving.publish("medical", promote=False)
        bench.adapters.promote("medical", 2, "canary")
        self.engine = AnsweringEngine()
        self.canarys = bench.quality.add_sample(sample(version=2))

    async def judged(self, *replies: Any, **changes: Any) -> Endpoint:
        endpoint = Endpoint(*replies)
        config = JudgeConfig.model_validate({"url": URL, "model": "m", "sample_rate": 1.0, "pairwise": True} | changes)
        client = http_judge_client(URL, None, config.timeout_s, httpx.MockTransport(endpoint))
        bench = self.bench
        residency, adapters = self.serving.residency, bench.adapters
        comparing = Comparing(self.engine, residency, adapters, bench.quality, bench.time)
        calls: dict[str, Any] = {"clock": bench.time, "sleep": bench.time.sleep, "jitter": lambda: 0.0}
        judge = HttpJudge(client, "m", bench.time)
        await Judging(judge, bench.quality, bench.metrics, config, adapters, comparing, **calls).round()
        return endpoint

    def preference(self) -> list[float]:
        return [grade.score for grade in self.bench.quality.grades(judge="m against medical@1")]


@pytest.fixture
def trial(bench: Bench, base_folder: Path) -> Trial:
    return Trial(bench, base_folder)


def better(word: str) -> dict[str, str]:
    return {"reason": "So.", "better": word}


@pytest.mark.parametrize(
    ("shown", "swapped", "score"),
    [("second", "first", 1.0), ("first", "second", 0.0), ("first", "first", 0.5), ("tie", "tie", 0.5)],
)
async def test_a_canarys_answer_is_compared_with_stables_in_both_orders(
    trial: Trial, shown: str, swapped: str, score: float
) -> None:
    endpoint = await trial.judged(better(shown), better(swapped), GOOD)
    assert trial.preference() == [score]
    first, second = (body["messages"][1]["content"] for body in endpoint.bodies[:2])
    assert first.index("I21") < first.index("I20")
    assert second.index("I20") < second.index("I21")
    assert [grade.judge for grade in trial.bench.quality.grades()] == ["m against medical@1", "m"]


async def test_a_canarys_preference_is_exported_beside_its_score(trial: Trial) -> None:
    await trial.judged(better("second"), better("first"), GOOD)
    bench = trial.bench
    await bench.judging_by(HttpJudge(http_judge_client(URL, None, 1.0), "m"), JudgeConfig()).show()
    assert bench.value("preference", adapter="medical", version="2") == 1.0
    assert bench.value("score", adapter="medical", version="2", calibrated="false") == 0.75


async def test_a_preference_is_told_beside_the_grade(trial: Trial) -> None:
    told: list[EvaluationResult] = []
    trial.bench.metrics.evaluated.listeners.append(told.append)
    await trial.judged(better("second"), better("first"), GOOD)
    assert [(one.name, one.lora_name, one.score) for one in told] == [
        ("judge_preference", "medical@2", 1.0),
        ("judge", "medical@2", 0.75),
    ]


async def test_stable_is_asked_the_very_prompt_behind_all_clients(trial: Trial) -> None:
    await trial.judged(better("tie"), better("tie"), GOOD)
    (body,) = trial.engine.bodies
    assert (trial.engine.endpoints, body["model"], body["prompt"]) == (["completions"], "medical@1", "Angina?")
    assert (body["priority"], body["add_special_tokens"], body["temperature"]) == (BACKGROUND_PRIORITY, False, 0)


@pytest.mark.slow
async def test_only_a_canarys_answers_are_compared(trial: Trial) -> None:
    trial.bench.quality.add_samples([sample(1), sample(2, adapter="base", version=0), sample(3, adapter="legal")])
    await trial.judged(GOOD, GOOD, GOOD, better("tie"), better("tie"), GOOD)
    assert trial.preference() == [0.5]
    assert len(trial.bench.quality.grades(judge="m")) == 4


async def test_a_redacted_prompt_is_not_put_to_stable(trial: Trial) -> None:
    trial.bench.quality.prune(before_s=NOON_S + 1, most_samples=10)
    trial.bench.quality.add_sample(sample(5, version=2, privacy="redacted", prompt="Write to [EMAIL]"))
    await trial.judged(GOOD)
    assert trial.preference() == []
    assert trial.bench.scores() == [0.75]


async def test_where_stable_does_not_answer_the_canary_is_graded_alone(trial: Trial) -> None:
    trial.serving.engine.load_error = "no room"
    await trial.judged(GOOD)
    assert trial.preference() == []
    assert trial.bench.scores() == [0.75]


async def test_a_comparison_that_is_kept_is_not_made_again(trial: Trial) -> None:
    trial.bench.quality.add_grade(Grade(trial.canarys, "m against medical@1", NOON_S, 1.0))
    await trial.judged(GOOD)
    assert trial.preference() == [1.0]
    assert trial.engine.bodies == []
