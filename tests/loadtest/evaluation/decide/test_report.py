"""Figures and costs of hand-made answers."""

from pathlib import Path

import pytest

from adapters.scores import score_of
from adapters.store.evaluation_records import FigureRecord
from config.dataset import read_split
from loadtest.evaluation.decide.curve import TrainedPart
from loadtest.evaluation.decide.report import DecisionInputs, advise, curve_report, disturbed, way_reports
from loadtest.evaluation.decide.timed import TimedAnswer
from loadtest.evaluation.decide.ways import Way
from quality.metrics.answers import exact_match, length, valid_format
from quality.metrics.item import Metric
from quality.scorers import AnswerFormat
from tests.datasets_on_disk import ANSWER, SCHEMA, write_dataset

NUM_ROWS = 40


def answers(num_right: int, e2e_s: float) -> list[TimedAnswer]:
    return [
        TimedAnswer(str(n), ANSWER if n < num_right else "no", (), 30, 6, e2e_s / 2, e2e_s, num_left_out=n % 2)
        for n in range(NUM_ROWS)
    ]


def part(num_rows: int, num_right: int) -> TrainedPart:
    base, own = score_of(0, 100), score_of(num_right, 100)
    figure = FigureRecord(kind="metric", metric="exact_match", adapter=own, base=base, difference=own)
    return TrainedPart(num_rows, 10, "medical@1", figure, None, is_existing=False)


def inputs(
    folder: Path, adapter: list[TimedAnswer] | None, parts: tuple[TrainedPart, ...] = (), deciding: Metric | None = None
) -> DecisionInputs:
    rows = read_split(write_dataset(folder / "medical", num_test=NUM_ROWS), "test")
    found = {Way(False, "none", False): answers(4, 0.5)}
    if adapter is not None:
        found[Way(True, "none", False)] = adapter
    form = valid_format(AnswerFormat(SCHEMA))
    return DecisionInputs(rows, found, parts, deciding or exact_match(), form, 5, concurrency=4, price_per_hour=7.2)


def test_throughput_is_what_is_in_flight_by_its_time(tmp_path: Path) -> None:
    (base, adapter) = way_reports(inputs(tmp_path, answers(30, 0.25)))
    assert (base.answers_per_s, base.seconds_per_1000) == (8, 125)
    assert base.cost_per_1000 == pytest.approx(7.2 * 125 / 3600)
    assert (adapter.e2e_p50_s, adapter.ttft_p50_s, adapter.answers_per_s) == (0.25, 0.125, 16)
    assert adapter.num_cut == NUM_ROWS / 2


def test_times_that_something_disturbed_are_named(tmp_path: Path) -> None:
    halted = [*answers(30, 0.25)[:-1], answers(30, 20.0)[-1]]
    assert disturbed(way_reports(inputs(tmp_path, halted)), num_in_flight=4) == ["adapter"]


def test_a_difference_is_paired_with_the_base_alone(tmp_path: Path) -> None:
    base, adapter = way_reports(inputs(tmp_path, answers(30, 0.25)))
    assert base.difference is None
    assert adapter.difference is not None
    assert adapter.difference.value == pytest.approx(26 / NUM_ROWS)
    assert adapter.difference.ci_low > 0


def test_a_gain_is_advised_with_what_more_rows_may_add(tmp_path: Path) -> None:
    own = inputs(tmp_path, answers(30, 0.25), (part(200, 40), part(2000, 75)))
    curve = curve_report(own.parts, own.deciding)
    advice = advise(own, way_reports(own), curve)
    assert advice.choice == "adapter"
    assert any("2 times the training rows" in line for line in advice.would_change)


def test_an_adapter_that_is_not_served_is_compared_by_its_interval(tmp_path: Path) -> None:
    own = inputs(tmp_path, None, (part(200, 40), part(2000, 75)))
    reports = way_reports(own)
    assert (reports[-1].name, reports[-1].figure.n, reports[-1].answers_per_s) == ("adapter", 100, None)
    advice = advise(own, reports, None)
    assert advice.choice == "adapter"
    assert "+0.650" in advice.reason


def test_lower_may_be_better(tmp_path: Path) -> None:
    own = inputs(tmp_path, answers(NUM_ROWS, 0.5), deciding=length())
    assert advise(own, way_reports(own), None).choice == "base"  # one word instead of two
