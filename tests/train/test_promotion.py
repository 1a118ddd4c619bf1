"""Promotion: gates that name nothing are refused before training, and a broken stable version loses nothing."""

import logging
from pathlib import Path
from typing import Any

import pytest

from adapters.reference import Target
from adapters.store.manifest import MANIFEST_FILE
from adapters.store.store import AdapterStore
from config.dataset import DatasetRow, conversation
from config.domain import DomainConfig
from config.load import domain_of
from tests.figure_records import figure
from tests.peft_folders import EVALUATION, draft_for
from tests.tiny_llama import tiny_domain
from train.errors import RecipeError
from train.evaluate.figures import metrics_of
from train.gates import GateEvidence, gain_of
from train.objectives.table import objective_of
from train.promotion import Promotion, check_gate_keys, decide_promotion, for_alias


def domain(folder: Path, **fields: Any) -> DomainConfig:
    plain = tiny_domain(folder / "colours.jsonl").model_dump(mode="json", exclude_unset=True, by_alias=True)
    plain["gates"] = {}
    return domain_of(plain | fields, folder / "colours.yaml")


def gated_by(folder: Path, *keys: str, **fields: Any) -> DomainConfig:
    return domain(folder, gates={"figures": {key: {"min": 0.5} for key in keys}}, **fields)


def rows(config: DomainConfig) -> list[DatasetRow]:
    return [
        DatasetRow(messages=conversation(config.chat, text, text), input=text, output=text, in_scope=True)
        for text in ("red", "green")
    ]


def check(config: DomainConfig) -> None:
    check_gate_keys(config, metrics_of(config), rows(config))


@pytest.mark.parametrize(
    "key", ["exact_match", "valid_format[scope: in]", "exact_match[class: red]", "robustness[typos]", "forgetting[x]"]
)
def test_a_gate_of_a_measured_figure_is_taken(tmp_path: Path, key: str) -> None:
    check(gated_by(tmp_path, key, evaluation={"robustness": {"perturbations": ["typos"]}}))


@pytest.mark.parametrize(
    "key", ["exactmatch", "macro_f1", "exact_match[scope: inside]", "exact_match[class: blue]", "robustness[typos]", ""]
)
def test_a_gate_of_nothing_measured_is_refused_before_training(tmp_path: Path, key: str) -> None:
    with pytest.raises(
        RecipeError, match=r"names '.*', which this domain does not measure\. It measures exact_match, "
    ):
        check(gated_by(tmp_path, key))


def test_a_metric_of_ones_own_is_gated_by_its_functions_name(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("def polite(answer, expected, question):\n    return 1.0\n")
    check(gated_by(tmp_path, "polite", evaluation={"metrics": ["python: score.py:polite"]}))


@pytest.mark.parametrize(
    ("metric", "message"),
    [("python: gone.py:polite", "gone.py not found"), ("refusal", "needs the domain's refusal")],
)
def test_a_metric_that_lacks_something_is_refused_before_training(tmp_path: Path, metric: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        metrics_of(domain(tmp_path, evaluation={"metrics": [metric]}))


def evidence(gain: float) -> GateEvidence:
    figures = (figure("exact_match", 0.1, 0.1 + gain),)
    return GateEvidence(gain_of("exact_match", {}, figures), EVALUATION, {}, None, figures)


def decided(config: DomainConfig, store: AdapterStore, gain: float, *, force: bool = False) -> Promotion:
    return decide_promotion(config, objective_of(config), evidence(gain), store, force=force)


def test_a_forced_promotion_says_what_failed(tmp_path: Path, store: AdapterStore) -> None:
    assert not decided(domain(tmp_path), store, 0.0).is_promoted
    forced = decided(domain(tmp_path), store, 0.0, force=True)
    assert forced.is_promoted
    assert forced.reason.startswith("forced: gates failed: gain of exact_match +0.000")


def test_what_passes_need_not_be_forced(tmp_path: Path, store: AdapterStore) -> None:
    assert decided(domain(tmp_path), store, 0.5, force=True).reason.startswith("gates passed: ")


def test_a_reward_model_is_not_promoted_by_force(tmp_path: Path, store: AdapterStore) -> None:
    promotion = decided(domain(tmp_path, objective="reward"), store, 0.5, force=True)
    assert not promotion.is_promoted
    assert promotion.reason.endswith("not promoted: a reward model is not served")


def test_a_broken_stable_version_is_left_out_of_the_comparison(
    tmp_path: Path, store: AdapterStore, peft_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.publish(peft_folder, draft_for(peft_folder, name="colours", evaluation=EVALUATION))
    store.promote("colours", 1)
    assert "is not below that of colours@1, 1.000" in decided(domain(tmp_path), store, 0.5).reason
    path = store.folder(Target("colours", 1)) / MANIFEST_FILE
    path.chmod(0o600)
    path.write_text("{")
    with caplog.at_level(logging.WARNING):
        assert "is not below that of the base, 0.250" in decided(domain(tmp_path), store, 0.5).reason
    assert "The gates judge without the stable version" in caplog.text


def test_a_job_moves_the_alias_that_it_names() -> None:
    promotion = Promotion(True, "gates passed", ())
    assert for_alias(promotion, "canary") == Promotion(True, "gates passed", (), "canary")
    assert for_alias(promotion, None) == Promotion(False, "no alias was to move; gates passed", ())
