"""What `lorikeet eval decide` found: figures and costs of every way, the learning curve, and one recommendation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from statistics import fmean, median
from typing import Literal

from adapters.scores import Score
from config.dataset import DatasetRow
from config.items import items_of
from loadtest.evaluation.decide.curve import TrainedPart
from loadtest.evaluation.decide.timed import TimedAnswer
from loadtest.evaluation.decide.ways import Way
from loadtest.evaluation.report import ReportRecord, Value
from loadtest.load.files import replace_text
from quality.learning_curve import CurvePoint, LearningCurve
from quality.metrics.answers import tool_use
from quality.metrics.figures import difference_of, figure_of
from quality.metrics.item import Item, Metric
from quality.recommendation import Advantage, Advice, AnswerOption, MoreRows, recommend

_FACTORS = (2.0, 4.0)
"""Multiples of the training rows that the curve is extrapolated to."""

DISTURBED = 2.0
"""Mean by median time of an answer, from which something else must have run beside the server."""

TRAINED_ONLY = "adapter"
"""Name of an adapter that was trained for the curve and is not served."""


class WayReport(ReportRecord):
    """One way to answer; times and tokens are null where it was not served."""

    name: str
    is_adapter: bool
    context: str
    is_constrained: bool
    figure: Value
    difference: Value | None
    """Minus the base alone, paired by question; None: the base alone."""
    valid_format: Value | None
    prompt_tokens: float | None = None
    answer_tokens: float | None = None
    ttft_p50_s: float | None = None
    e2e_p50_s: float | None = None
    answers_per_s: float | None = None
    seconds_per_1000: float | None = None
    cost_per_1000: float | None = None
    num_cut: int = 0
    """Questions whose examples or passages did not all fit into the context."""
    num_left_out: int = 0
    """Questions that the metric could not score."""


class PartReport(ReportRecord):
    """A point of the learning curve, by training's own evaluation."""

    num_rows: int
    num_steps: int
    lora_name: str
    figure: Value
    is_existing: bool


class GainReport(ReportRecord):
    """What more rows may add."""

    factor: float
    num_rows: int
    gain: float
    ci_low: float
    ci_high: float


class CurveReport(ReportRecord):
    points: tuple[PartReport, ...]
    gains: tuple[GainReport, ...]
    bounds: tuple[float, float] | None


class AdviceReport(ReportRecord):
    choice: str
    summary: str
    reason: str
    would_change: tuple[str, ...]


class DecisionReport(ReportRecord):
    """What `lorikeet eval decide` found."""

    schema_version: Literal[1] = 1
    domain: str
    dataset: str
    started_at: str
    machine: str
    metric: str
    higher_is_better: bool
    num_items: int
    num_train: int
    concurrency: int
    price_per_hour: float | None
    base: str
    adapter: str | None
    ways: tuple[WayReport, ...]
    curve: CurveReport | None
    advice: AdviceReport
    notes: tuple[str, ...]


@dataclass(frozen=True)
class DecisionInputs:
    """All that a report is made from.

    Attributes:
        answers: Of each way, in the order of the rows.
        parts: Of the learning curve; the last one stands for the adapter where none is served.
    """

    rows: Sequence[DatasetRow]
    answers: Mapping[Way, Sequence[TimedAnswer]]
    parts: Sequence[TrainedPart]
    deciding: Metric
    valid_format: Metric
    num_examples: int
    concurrency: int
    price_per_hour: float | None


def way_reports(inputs: DecisionInputs) -> list[WayReport]:
    """The base alone first; last, an adapter that was only trained."""
    items = _items(inputs)
    plain = next(iter(items.values()))
    found = [_way(inputs, way, own, plain) for way, own in items.items()]
    if inputs.parts and not any(way.is_adapter for way in items):
        found.append(_trained_only(inputs.parts[-1]))
    return found


def disturbed(reports: Sequence[WayReport], num_in_flight: int) -> list[str]:
    """Ways whose mean time of an answer is far above the median; costs follow the mean."""
    return [
        report.name
        for report in reports
        if report.answers_per_s
        and report.e2e_p50_s
        and num_in_flight / report.answers_per_s > DISTURBED * report.e2e_p50_s
    ]


def curve_report(parts: Sequence[TrainedPart], metric: Metric) -> CurveReport | None:
    if not parts:
        return None
    curve = fitted(parts, metric)
    gains = [(factor, curve.gain(factor)) for factor in _FACTORS]
    return CurveReport(
        points=tuple(
            PartReport(
                num_rows=part.num_rows,
                num_steps=part.num_steps,
                lora_name=part.lora_name,
                figure=value_of(part.figure.adapter),
                is_existing=part.is_existing,
            )
            for part in parts
        ),
        gains=tuple(
            GainReport(factor=factor, num_rows=e.num_rows, gain=e.gain, ci_low=e.ci_low, ci_high=e.ci_high)
            for factor, e in gains
        ),
        bounds=metric.bounds,
    )


def fitted(parts: Sequence[TrainedPart], metric: Metric) -> LearningCurve:
    scores = [(part.num_rows, part.figure.adapter) for part in parts]
    points = [CurvePoint(rows, own.value, own.ci_low, own.ci_high, own.n) for rows, own in scores]
    return LearningCurve(points, metric.bounds, higher_is_better=metric.higher_is_better)


def advise(inputs: DecisionInputs, reports: Sequence[WayReport], curve: CurveReport | None) -> Advice:
    """The recommendation, by `quality/recommendation.py`."""
    items = {way.name(inputs.num_examples): own for way, own in _items(inputs).items()}
    efforts = {way.name(inputs.num_examples): way.effort for way in inputs.answers}
    by_name = {report.name: report for report in reports}
    options = [
        AnswerOption(r.name, r.is_adapter, efforts.get(r.name, 10), r.figure.value, r.seconds_per_1000) for r in reports
    ]
    sign = 1 if inputs.deciding.higher_is_better else -1

    def compare(first: AnswerOption, second: AnswerOption) -> Advantage:
        if first.name in items and second.name in items:
            paired = difference_of(inputs.deciding, items[first.name], items[second.name])
            value, low, high = paired.value, paired.ci_low, paired.ci_high
        else:
            apart = _unpaired(by_name[first.name].figure, by_name[second.name].figure)
            value, low, high = apart.value, apart.ci_low, apart.ci_high
        return Advantage(sign * value, *sorted((sign * low, sign * high)))

    more = None
    if curve:
        doubled = curve.gains[0]
        more = MoreRows(doubled.factor, doubled.gain, doubled.ci_low, doubled.ci_high)
    return recommend(options, compare, metric=inputs.deciding.name, num_items=len(inputs.rows), more_rows=more)


def save_decision(report: DecisionReport, folder: Path) -> Path:
    """Write `<started_at>.json`, complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{report.started_at.replace(':', '')}.json"
    replace_text(path, report.model_dump_json(indent=2) + "\n")
    return path


def value_of(score: Score) -> Value:
    return Value(value=score.value, ci_low=score.ci_low, ci_high=score.ci_high, n=score.n)


def _items(inputs: DecisionInputs) -> dict[Way, list[Item]]:
    return {
        way: items_of(
            inputs.rows,
            [answer.text for answer in answers],
            [tuple(tool_use(c.get("name"), c.get("arguments")) for c in answer.calls) for answer in answers],
        )
        for way, answers in inputs.answers.items()
    }


def _way(inputs: DecisionInputs, way: Way, items: Sequence[Item], plain: Sequence[Item]) -> WayReport:
    answers = inputs.answers[way]
    figure, valid = figure_of(inputs.deciding, items), figure_of(inputs.valid_format, items)
    paired = None if items is plain else difference_of(inputs.deciding, plain, items)
    # A closed loop: that many requests are always in flight (Little's law).
    per_s = min(inputs.concurrency, len(answers)) / max(fmean(answer.e2e_s for answer in answers), 1e-9)
    price = inputs.price_per_hour
    return WayReport(
        name=way.name(inputs.num_examples),
        is_adapter=way.is_adapter,
        context=way.context,
        is_constrained=way.is_constrained,
        figure=Value(value=figure.value, ci_low=figure.ci_low, ci_high=figure.ci_high, n=figure.n),
        difference=paired and Value(value=paired.value, ci_low=paired.ci_low, ci_high=paired.ci_high, n=paired.n),
        valid_format=Value(value=valid.value, ci_low=valid.ci_low, ci_high=valid.ci_high, n=valid.n),
        prompt_tokens=fmean(answer.num_prompt_tokens for answer in answers),
        answer_tokens=fmean(answer.num_answer_tokens for answer in answers),
        ttft_p50_s=median(answer.ttft_s for answer in answers),
        e2e_p50_s=median(answer.e2e_s for answer in answers),
        answers_per_s=per_s,
        seconds_per_1000=1000 / per_s,
        cost_per_1000=None if price is None else price * 1000 / per_s / 3600,
        num_cut=sum(answer.num_left_out > 0 for answer in answers),
        num_left_out=len(figure.left_out),
    )


def _trained_only(part: TrainedPart) -> WayReport:
    """By training's own evaluation; its base is the base alone."""
    difference, valid = part.figure.difference, part.valid_format
    return WayReport(
        name=TRAINED_ONLY,
        is_adapter=True,
        context="none",
        is_constrained=False,
        figure=value_of(part.figure.adapter),
        difference=difference and value_of(difference),
        valid_format=valid and value_of(valid.adapter),
        num_left_out=part.figure.num_left_out,
    )


def _unpaired(first: Value, second: Value) -> Value:
    """The second figure minus the first one, as of different questions: wider than a paired difference."""
    half = hypot(first.ci_high - first.ci_low, second.ci_high - second.ci_low) / 2
    value = second.value - first.value
    return Value(value=value, ci_low=value - half, ci_high=value + half, n=min(first.n, second.n))
