"""Figures of the evaluation at publication, as metrics of the versions that are resident."""

import pytest
from prometheus_client import CollectorRegistry

from adapters.reference import Target
from adapters.scores import Score
from adapters.store.evaluation_records import FigureKind, FigureRecord
from adapters.store.manifest import QualityRules
from serve.observe.eval_metrics import EvalMetrics
from serve.observe.metrics import ServeMetrics
from serve.observe.series import VersionFamilies
from tests.serve.observe.test_metrics import manifest

TARGET = Target("medical", 3)


def score(value: float) -> Score:
    return Score(value=value, ci_low=value - 0.1, ci_high=value + 0.1, n=40)


def figure(metric: str, part: str = "", value: float = 0.8, kind: FigureKind = "metric") -> FigureRecord:
    return FigureRecord(kind=kind, metric=metric, part=part, adapter=score(value), base=score(0.2))


FIGURES = (
    figure("exact_match"),
    figure("exact_match", "scope: out", 0.5),
    figure("exact_match", "typos", 0.6, "robustness"),
    figure("nats per token", "general English", 3.8, "forgetting"),
)


def loaded(*figures: FigureRecord, **changes: object) -> ServeMetrics:
    metrics = ServeMetrics(CollectorRegistry(), "base")
    made = manifest(**changes).model_copy(update={"figures": figures or FIGURES})
    metrics.adapter_loaded(made, 0.5, 0.02)
    return metrics


def shown(registry: CollectorRegistry, name: str = "lorikeet_eval_score") -> dict[tuple[str, str, str], float]:
    """Values by version, metric and slice."""
    return {
        (sample.labels["version"], sample.labels["metric"], sample.labels["slice"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_each_figure_is_shown_by_the_parts_of_its_key() -> None:
    assert shown(loaded().registry) == {
        ("3", "exact_match", ""): 0.8,
        ("3", "exact_match", "scope: out"): 0.5,
        ("3", "robustness", "typos"): 0.6,
        ("3", "forgetting", "general English"): 3.8,
    }


def test_a_figure_has_its_interval_and_the_bases() -> None:
    registry = loaded(figure("exact_match")).registry
    ends = [shown(registry, f"lorikeet_eval_{name}") for name in ("score_ci_low", "score_ci_high", "base_score")]
    assert ends == [{("3", "exact_match", ""): pytest.approx(value)} for value in (0.7, 0.9, 0.2)]


def test_a_base_that_was_not_measured_has_no_series() -> None:
    registry = loaded(figure("exact_match").model_copy(update={"base": None})).registry
    assert shown(registry, "lorikeet_eval_base_score") == {}


@pytest.mark.parametrize("goes", ["adapter_unloaded", "adapter_retired"])
def test_figures_go_with_their_version(goes: str) -> None:
    metrics = loaded()
    getattr(metrics, goes)(TARGET)
    assert shown(metrics.registry) == {}


@pytest.mark.slow
def test_a_version_that_is_loaded_again_shows_them_again() -> None:
    metrics = loaded()
    metrics.adapter_unloaded(TARGET)
    metrics.adapter_loaded(manifest().model_copy(update={"figures": FIGURES}), 0.5, 0.02)
    assert len(shown(metrics.registry)) == len(FIGURES)


def test_of_many_slices_the_figures_of_everything_and_of_robustness_come_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slices = [figure("exact_match", f"class: {n}") for n in range(90)]
    robust, whole = figure("exact_match", "typos", kind="robustness"), figure("rouge_l")
    metrics = loaded(*slices, robust, whole)
    metrics.adapter_unloaded(TARGET)
    metrics.adapter_loaded(manifest().model_copy(update={"figures": (*slices, robust, whole)}), 0.5, 0.02)
    names = list(shown(metrics.registry))
    assert len(names) == 60
    assert {("3", "rouge_l", ""), ("3", "robustness", "typos"), ("3", "exact_match", "class: 0")} <= set(names)
    (said,) = caplog.messages
    assert said.startswith("60 of 92 figures of medical@3 are in the metrics")


def test_all_versions_together_have_a_bound_and_leave_their_room(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    metrics = EvalMetrics(VersionFamilies(registry), most=5)
    for version in (1, 2, 3):
        metrics.show(Target("medical", version), FIGURES)
    assert [version for version, _, _ in shown(registry)] == ["1"] * 4 + ["2"]
    assert len(caplog.messages) == 2
    metrics.hide(Target("medical", 1))
    metrics.show(Target("medical", 3), FIGURES)
    assert [version for version, _, _ in shown(registry)] == ["2"] + ["3"] * 4


def test_a_long_slice_is_cut_and_shown_once() -> None:
    registry = loaded(figure("exact_match", "a" * 200, 0.1), figure("exact_match", "a" * 300, 0.2)).registry
    assert shown(registry) == {("3", "exact_match", "a" * 80): 0.1}


def test_accuracy_at_publish_is_by_the_metric_that_servers_score_by() -> None:
    rules = QualityRules(held_out_metric="json_fields")
    registry = loaded(figure("exact_match"), figure("json_fields", value=0.9), quality=rules).registry
    labels = {"adapter": "medical", "version": "3"}
    assert registry.get_sample_value("lorikeet_adapter_held_out_accuracy", labels) == 0.9
    assert registry.get_sample_value("lorikeet_adapter_held_out_base_accuracy", labels) == 0.2


def test_a_metric_without_a_figure_shows_no_accuracy_at_publish() -> None:
    registry = loaded(figure("exact_match"), quality=QualityRules(held_out_metric="json_fields")).registry
    assert (
        registry.get_sample_value("lorikeet_adapter_held_out_accuracy", {"adapter": "medical", "version": "3"}) is None
    )
