"""Figures of every model on the same items, and how each differs from the first one; saved as JSON."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict

from config.dataset import DatasetManifest, DatasetRow
from config.items import MAX_CLASSES, items_of
from loadtest.evaluation.asking import Answers
from quality.metrics.answers import tool_use
from quality.metrics.classes import Confusion
from quality.metrics.figures import Figure, PairedDifference, difference_of, figure_of
from quality.metrics.item import Item, Metric
from quality.metrics.judged import Judged, JudgedPairs

NUM_SHOWN = 10
"""Items that one model alone gets wrong, of each kind."""


class ReportRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Value(ReportRecord):
    """A figure with its 95% interval."""

    value: float
    ci_low: float
    ci_high: float
    n: int


class Paired(ReportRecord):
    """A model's figure minus the first model's, on the items that both have a score for."""

    value: float
    ci_low: float
    ci_high: float
    p: float
    n: int


class JudgeNote(ReportRecord):
    """The judge of a metric, and how far it agrees with people: Cohen's kappa with its 95% interval."""

    judge: str
    num_labels: int
    """Answers, or pairs of them, that people and judge have both graded."""
    num_people: int = 0
    """Answers that people have graded."""
    weights: Literal["none", "quadratic"] = "none"
    kappa: float | None = None
    """None: no labels, or all labels and grades are the same."""
    ci_low: float | None = None
    ci_high: float | None = None


class MetricReport(ReportRecord):
    """One metric of one model."""

    metric: str
    higher_is_better: bool
    whole: Value
    by_slice: dict[str, Value]
    num_left_out: int
    left_out: tuple[str, ...]
    """The first of them, with the reason."""
    difference: Paired | None
    """None: the first model."""
    judge: JudgeNote | None = None
    """None: no judge decides this metric."""


class WrongItem(ReportRecord):
    """An item that one of two models alone gets wrong."""

    id: str
    question: str
    expected: str
    first: str
    second: str


class ModelReport(ReportRecord):
    """One model's figures and costs."""

    model: str
    served_by: str
    digest: str
    metrics: tuple[MetricReport, ...]
    prompt_tokens: float
    answer_tokens: float
    e2e_p50_s: float | None
    """None: answered offline."""
    wrong_alone: tuple[WrongItem, ...]
    """Wrong here, right in the first model."""
    right_alone: tuple[WrongItem, ...]
    num_wrong_alone: int = 0
    """Of which the first are in `wrong_alone`; 0 in older reports."""
    num_right_alone: int = 0
    confusion: dict[str, dict[str, int]] | None
    """Counts by expected and answered class; None: the answers are not few classes."""


class PerturbedItem(ReportRecord):
    """A perturbed question with a wrong answer; long texts are cut in the middle."""

    id: str
    variant: str
    question: str
    expected: str
    plain_answer: str | None
    """To the question as it stands; None: it is another question."""
    answer: str


class PerturbedModel(ReportRecord):
    """One model's answers to one perturbation.

    Attributes:
        plain: On the same questions unperturbed; None: the copies are other questions.
        difference: Perturbed minus unperturbed.
        worst: Right without the perturbation and wrong with it, those that lose most first.
    """

    score: Value
    num_left_out: int
    plain: Value | None
    difference: Paired | None
    worst: tuple[PerturbedItem, ...]


class PerturbationReport(ReportRecord):
    """One perturbation; `models` in the order of the report's, none where no question could be perturbed so."""

    perturbation: str
    expects_refusal: bool
    num_asked: int
    num_not_asked: int
    not_asked_because: str
    models: tuple[PerturbedModel, ...]


class RobustnessReport(ReportRecord):
    """Perturbed copies of questions that were drawn from the held-out ones."""

    metric: str
    seed: int
    num_drawn: int
    plain: tuple[Value, ...]
    """Each model's figure on the drawn questions, unperturbed."""
    perturbations: tuple[PerturbationReport, ...]


class EvaluationReport(ReportRecord):
    """What `lorikeet eval run` found."""

    schema_version: Literal[1] = 1
    domain: str
    dataset: str
    num_items: int
    few_shot: bool
    started_at: str
    models: tuple[ModelReport, ...]
    robustness: RobustnessReport | None = None
    """None: not asked, or an older report."""
    reference: str | None = None
    """Model whose answers were the expected ones; None: those of the data set."""


def make_report(
    manifest: DatasetManifest,
    rows: Sequence[DatasetRow],
    answers: Sequence[Answers],
    metrics: Sequence[Metric],
    *,
    few_shot: bool,
    started_at: str,
) -> EvaluationReport:
    """The first metric decides what counts as wrong."""
    items = [answered(rows, found) for found in answers]
    models = tuple(_model(found, own, items[0], metrics) for found, own in zip(answers, items, strict=True))
    return EvaluationReport(
        domain=manifest.domain, dataset=manifest.version, num_items=len(rows), few_shot=few_shot,
        started_at=started_at, models=models,
    )  # fmt: skip


def answered(rows: Sequence[DatasetRow], found: Answers) -> list[Item]:
    """The rows with a model's answers."""
    calls = [tuple(tool_use(c.get("name"), c.get("arguments")) for c in answer.calls) for answer in found.answers]
    return items_of(rows, [answer.text for answer in found.answers], calls)


def save_report(report: EvaluationReport, folder: Path) -> Path:
    """Write `<started_at>.json`, complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{report.started_at.replace(':', '')}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return partial.replace(path)


def last_report(folder: Path) -> EvaluationReport | None:
    """The newest saved report."""
    paths = sorted(folder.glob("*.json"))
    return EvaluationReport.model_validate_json(paths[-1].read_bytes()) if paths else None


def _model(found: Answers, items: list[Item], first: list[Item], metrics: Sequence[Metric]) -> ModelReport:
    deciding = metrics[0]
    by_id = {item.id: item for item in items}
    wrong, right = ((), ()) if items is first else _changed(deciding, first, items)
    earlier = {item.id: item for item in first}

    def shown(ids: Sequence[str]) -> tuple[WrongItem, ...]:
        return tuple(
            WrongItem(
                id=name,
                question=by_id[name].question,
                expected=by_id[name].expected,
                first=earlier[name].answer,
                second=by_id[name].answer,
            )
            for name in ids[:NUM_SHOWN]
        )

    return ModelReport(
        model=found.model,
        served_by=found.served_by,
        digest=found.digest,
        metrics=tuple(_metric(metric, first, items) for metric in metrics),
        prompt_tokens=sum(answer.num_prompt_tokens for answer in found.answers) / len(found.answers),
        answer_tokens=sum(answer.num_answer_tokens for answer in found.answers) / len(found.answers),
        e2e_p50_s=median(answer.e2e_s for answer in found.answers) or None,
        wrong_alone=shown(wrong),
        right_alone=shown(right),
        num_wrong_alone=len(wrong),
        num_right_alone=len(right),
        confusion=_confusion(items),
    )


def _changed(metric: Metric, first: list[Item], items: list[Item]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = difference_of(metric, first, items)
    return found.only_first, found.only_second


def _metric(metric: Metric, first: list[Item], items: list[Item]) -> MetricReport:
    figure = figure_of(metric, items)
    paired = None if items is first else difference_of(metric, first, items)
    return MetricReport(
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        whole=value_of(figure),
        by_slice={name: value_of(part) for name, part in figure.by_slice.items()},
        num_left_out=len(figure.left_out),
        left_out=tuple(f"{name}: {reason}" for name, reason in figure.left_out[:3]),
        difference=None if paired is None else paired_of(paired),
        judge=_judge_note(metric),
    )


def _judge_note(metric: Metric) -> JudgeNote | None:
    if not isinstance(metric, Judged | JudgedPairs):
        return None
    found = metric.agreement
    if found is None:
        return JudgeNote(judge=metric.judge, num_labels=0)
    return JudgeNote(
        judge=metric.judge,
        num_people=metric.num_people,
        num_labels=found.n,
        weights=found.weights,
        kappa=found.kappa,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
    )


def value_of(figure: Figure) -> Value:
    return Value(value=figure.value, ci_low=figure.ci_low, ci_high=figure.ci_high, n=figure.n)


def paired_of(found: PairedDifference) -> Paired:
    return Paired(value=found.value, ci_low=found.ci_low, ci_high=found.ci_high, p=found.p, n=found.n)


def _confusion(items: Sequence[Item]) -> dict[str, dict[str, int]] | None:
    found = Confusion.of(items)
    if not 1 < len(found.labels) <= MAX_CLASSES or len(found.labels) > len(items) / 2:
        return None
    table: dict[str, dict[str, int]] = {name: {} for name in found.labels}
    for (wanted, answered), count in sorted(found.counts.items()):
        table[wanted][answered] = count
    return table
