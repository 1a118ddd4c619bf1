"""Gates: what a version needs to become stable by itself, by default and with settings."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from adapters.scores import Score, score_of
from adapters.store.evaluation_records import Evaluation, FigureRecord, Forgetting, ObjectiveScore
from adapters.store.manifest import BaseRef, LoraSpec, Manifest
from config.domain import FigureGate, GatesConfig
from quality.metrics.answers import ByItem, exact_match
from quality.metrics.classes import MacroF1
from quality.metrics.item import Item, Metric
from tests.figure_records import figure
from train.evaluate.figures import figure_record
from train.evaluate.paired import above_chance, paired_mean
from train.gates import GateEvidence, gain_of, gate_reason, judge_gates

N = 240


def score(value: float, n: int = N) -> Score:
    return score_of(round(value * n), n)


def evaluation_of(valid: float, base_valid: float = 0.1, n: int = N) -> Evaluation:
    return Evaluation(
        metric="exact_match",
        base=score(0.1, n),
        adapter=score(0.8, n),
        base_valid_format=score(base_valid, n),
        valid_format=score(valid, n),
    )


def measured(
    *figures: FigureRecord,
    valid: float = 0.95,
    forgotten: float = 0.0,
    scores: dict[str, ObjectiveScore] | None = None,
    gated_by: str = "exact_match",
) -> GateEvidence:
    whole = figures or (figure("exact_match", 0.1, 0.8),)
    return GateEvidence(
        gain=gain_of(gated_by, scores or {}, whole),
        evaluation=evaluation_of(valid),
        scores=scores or {},
        forgetting=Forgetting(text="English prose", num_tokens=400, base_nll=3.5, adapter_nll=3.5 + forgotten),
        figures=whole,
    )


def stable_with(valid: float) -> Manifest:
    return Manifest(
        name="medical",
        base=BaseRef(name="tiny", digest="b" * 64, quantization="none"),
        lora=LoraSpec(),
        evaluation=evaluation_of(valid),
        version=2,
        digest="d" * 64,
        files=(),
        created_at="2026-11-29T00:00:00+00:00",
    )


def judged(found: GateEvidence, gates: GatesConfig | None = None, stable: Manifest | None = None) -> tuple[bool, str]:
    outcomes = judge_gates(found, gates or GatesConfig(), stable)
    return all(gate.is_met for gate in outcomes), gate_reason(outcomes)


def test_a_good_first_version_passes_with_its_numbers() -> None:
    passed, reason = judged(measured())
    assert passed
    assert reason.startswith("gates passed: gain of exact_match +0.700 (+0.660 to +0.740, n 240) is above zero")
    assert "English prose: +0.000 nats per token is within max_forgetting 2.000" in reason


def test_a_gain_within_chance_is_refused_by_default() -> None:
    passed, reason = judged(measured(figure("exact_match", 0.50, 0.52)))
    assert not passed
    assert reason == (
        "gates failed: gain of exact_match +0.020 (-0.020 to +0.060, n 240) is not above zero beyond chance (p 0.400)"
    )


def test_an_interval_alone_does_not_prove_a_gain() -> None:
    """Of few questions a bootstrap's is too narrow; nor does p alone, which is of another test."""
    few = figure("exact_match", 0.1, 0.6, n=8).model_copy(update={"p": 0.125})
    assert not judged(measured(few))[0]
    wide = figure("exact_match", 0.1, 0.6, half=0.6).model_copy(update={"p": 0.04})
    assert not judged(measured(wide))[0]


def test_the_first_metric_decides_the_gain() -> None:
    passed, reason = judged(measured(figure("macro_f1", 0.5, 0.5), figure("exact_match", 0.1, 0.8)))
    assert not passed
    assert "gain of macro_f1 +0.000" in reason


def test_less_is_better_where_the_metric_says_so() -> None:
    shorter = figure("length", 80.0, 40.0).model_copy(update={"higher_is_better": False})
    assert judged(measured(shorter))[0]
    assert "gain of length +40.000" in judged(measured(shorter))[1]


def test_an_objectives_own_score_decides_its_gain() -> None:
    scores = {"reward_accuracy": above_chance([True] * 30 + [False] * 10)}
    found = measured(figure("exact_match", 0.5, 0.5), scores=scores, gated_by="reward_accuracy")
    assert judged(found) == (True, judged(found)[1])
    assert "gain of reward_accuracy +0.250" in judged(found)[1]


def test_too_few_rows_cannot_promote() -> None:
    scores = {"reward_accuracy": above_chance([True] * 5)}
    passed, reason = judged(measured(scores=scores, gated_by="reward_accuracy"))
    assert not passed
    assert "fewer than 6 questions" in reason


def test_nothing_measured_cannot_promote() -> None:
    assert judged(GateEvidence(None, None, {}, None, ())) == (
        False,
        "gates failed: the gain was not measured: no question has a score",
    )


@pytest.mark.parametrize(
    ("valid", "n", "passed"),
    [
        pytest.param(0.97, 240, True, id="equal"),
        pytest.param(0.95, 240, True, id="by chance"),
        pytest.param(0.925, 240, False, id="beyond chance"),
        pytest.param(0.90, 20, False, id="more than the margin"),
    ],
)
def test_valid_format_keeps_up_with_the_stable_version(valid: float, n: int, passed: bool) -> None:
    found = replace(measured(), evaluation=evaluation_of(valid, n=n))
    is_passed, reason = judged(found, stable=stable_with(0.97))
    assert is_passed == passed
    assert "that of medical@2, 0.971" in reason


def test_a_first_version_keeps_up_with_the_valid_format_of_its_base() -> None:
    passed, reason = judged(measured(valid=0.0))
    assert not passed
    assert "valid format 0.000 (0.000 to 0.016, n 240) is below that of the base, 0.100" in reason


def test_forgotten_general_text_keeps_a_version_back() -> None:
    passed, reason = judged(measured(forgotten=2.1))
    assert not passed
    assert "English prose: +2.100 nats per token is above max_forgetting 2.000" in reason
    assert judged(measured(forgotten=2.1), GatesConfig(max_forgetting=3.0))[0]
    assert not judged(measured(forgotten=0.2), GatesConfig(max_forgetting=0.1))[0]


def test_a_text_is_judged_once() -> None:
    prose = figure("nats per token", 3.5, 3.9, kind="forgetting", part="prose")
    prose = prose.model_copy(update={"higher_is_better": False})
    assert "English prose" not in judged(measured(figure("exact_match", 0.1, 0.8), prose))[1]


GOOD = figure("exact_match", 0.1, 0.8)


@pytest.mark.parametrize(
    ("lost", "half", "gates", "passed"),
    [
        pytest.param(0.6, 0.05, {}, False, id="much"),
        pytest.param(0.6, 0.65, {}, True, id="within chance"),
        pytest.param(0.75, 0.36, {}, True, id="6 of 8, and the limit is within the interval"),
        pytest.param(0.2, 0.05, {}, True, id="within the limit"),
        pytest.param(0.2, 0.25, {}, True, id="within both"),
        pytest.param(0.6, 0.65, {"max_forgetting": 0.1}, False, id="a set limit goes by the value"),
        pytest.param(0.6, 0.05, {"figures": {"forgetting[sums]": {"min_difference": -0.7}}}, True, id="its own"),
    ],
)
def test_lost_tasks_keep_a_version_back(lost: float, half: float, gates: dict[str, Any], passed: bool) -> None:
    tasks = figure("exact_match", 0.8, 0.8 - lost, kind="forgetting", part="sums", half=half)
    assert judged(measured(GOOD, tasks), GatesConfig.model_validate(gates))[0] == passed


def test_settings_are_compared_with_values() -> None:
    gates = GatesConfig(min_gain=0.01, min_valid_format=0.9)
    assert judged(measured(figure("exact_match", 0.50, 0.52)), gates)[0]
    passed, reason = judged(measured(figure("exact_match", 0.50, 0.505), valid=0.5), gates)
    assert not passed
    assert "gain of exact_match +0.005 (-0.035 to +0.045, n 240) is below min_gain +0.010" in reason
    assert "valid format 0.500 (0.437 to 0.563, n 240) is below min_valid_format 0.900" in reason


def test_rounding_does_not_fail_a_gain_that_is_just_enough() -> None:
    assert judged(measured(figure("exact_match", 0.4, 0.7)), GatesConfig(min_gain=0.3))[0]


@pytest.mark.parametrize(
    ("key", "gate", "finding"),
    [
        ("macro_f1", {"min": 0.9}, "macro_f1 0.800 (0.760 to 0.840, n 240) is below min 0.900"),
        ("macro_f1", {"max": 0.7}, "macro_f1 0.800 (0.760 to 0.840, n 240) is above max 0.700"),
        ("exact_match[scope: out]", {"min": 0.9}, "exact_match[scope: out] 0.500 (0.460 to 0.540, n 240) is below"),
        ("robustness[typos]", {"min": 0.4}, "robustness[typos] 0.300"),
        (
            "forgetting[sums]",
            {"min_difference": -0.05},
            "forgetting[sums] difference to the base -0.100 (-0.140 to -0.060, n 240) is below min -0.050",
        ),
        ("macro_f2", {"min": 0.1}, "macro_f2 was not measured; figures of this version: exact_match, macro_f1, exact_"),
        ("json_fields", {"min": 0.0}, "json_fields has no question with a score"),
    ],
)
def test_a_gate_can_name_any_figure(key: str, gate: dict[str, float], finding: str) -> None:
    figures = (
        GOOD,
        figure("macro_f1", 0.1, 0.8),
        figure("exact_match", 0.1, 0.5, part="scope: out"),
        figure("exact_match", 0.1, 0.3, kind="robustness", part="typos"),
        figure("exact_match", 0.6, 0.5, kind="forgetting", part="sums"),
        figure("json_fields", 0.0, 0.0, n=0),
    )
    passed, reason = judged(measured(*figures), GatesConfig(figures={key: FigureGate.model_validate(gate)}))
    assert not passed
    assert reason.startswith(f"gates failed: {finding}")


def test_a_met_figure_is_told_too() -> None:
    passed, reason = judged(measured(), GatesConfig(figures={"exact_match": FigureGate(min=0.5, min_difference=0.1)}))
    assert passed
    assert "exact_match 0.800 (0.760 to 0.840, n 240) is at least min 0.500" in reason
    assert reason.endswith("; and 1 more")


@pytest.mark.parametrize("gate", [{}, {"min": 0.9, "max": 0.1}, {"min": float("nan")}, {"mean": 0.5}])
def test_a_gate_that_asks_for_nothing_or_the_impossible_is_refused(gate: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        FigureGate.model_validate(gate)


def items(answers: list[str]) -> list[Item]:
    return [Item(id=str(n), question="", expected=str(n % 3), answer=answer) for n, answer in enumerate(answers)]


def closeness(item: Item) -> float:
    return 1 / (1 + abs(float(item.answer) - float(item.expected)))


METRICS: dict[str, Metric] = {
    "share": exact_match(),
    "mean": ByItem("closeness", closeness, "mean"),
    "corpus": MacroF1(),
}


@pytest.mark.parametrize(
    ("kind", "n", "num_trials"),
    [
        *((kind, n, 400) for kind in ("share", "mean") for n in (8, 20, 60)),
        pytest.param("corpus", 20, 100, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_chance_seldom_promotes_a_worthless_adapter(kind: str, n: int, num_trials: int) -> None:
    """Base and adapter throw the same dice: by the test one in 40 is promoted, here at most one in 20."""
    rng = np.random.default_rng(5)
    promoted = 0
    for _ in range(num_trials):
        skill = rng.random(n)
        base, adapter = (thrown(rng, skill) for _ in range(2))
        promoted += judged(measured(figure_record(METRICS[kind], base, adapter)))[0]
    assert promoted / num_trials <= 0.05


def thrown(rng: np.random.Generator, skill: npt.NDArray[np.float64]) -> list[Item]:
    """Answers of which each is right with its probability of `skill`, and else by chance."""
    is_right, other = rng.random(len(skill)) < skill, rng.integers(0, 3, len(skill))
    return items([str(n % 3) if right else str(o) for n, (right, o) in enumerate(zip(is_right, other, strict=True))])


@pytest.mark.slow
def test_a_better_adapter_is_promoted() -> None:
    rng = np.random.default_rng(5)
    promoted = 0
    for _ in range(100):
        base, adapter = (thrown(rng, np.full(60, skill)) for skill in (0.2, 0.7))
        promoted += judged(measured(figure_record(exact_match(), base, adapter)))[0]
    assert promoted >= 95


@pytest.mark.slow
def test_mean_rewards_of_a_worthless_adapter_seldom_gain() -> None:
    rng = np.random.default_rng(7)
    trials = [paired_mean(list(rng.normal(size=8)), list(rng.normal(size=8))) for _ in range(1000)]
    assert sum(gain is not None and gain.ci_low > 0 for gain in trials) <= 40
