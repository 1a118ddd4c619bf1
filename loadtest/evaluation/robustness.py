"""Perturbed copies of held-out questions for a live server, and what its answers to them say."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from config.dataset import SPLITS, DatasetManifest, DatasetRow, read_split
from config.perturbed import neighbouring_questions, perturbed_row, plain_questions
from loadtest.evaluation.asking import Answers
from loadtest.evaluation.report import (
    PerturbationReport,
    PerturbedItem,
    PerturbedModel,
    RobustnessReport,
    answered,
    paired_of,
    value_of,
)
from quality.metrics.figures import figure_of
from quality.metrics.item import Item, Metric
from quality.robustness.change import PerturbedQuestion
from quality.robustness.figures import perturbation_figure
from quality.robustness.perturb import NOT_ASKED, PerturbedSet, perturb
from quality.robustness.settings import PerturbationName, RobustnessConfig

NUM_WORST = 5
"""Questions shown for one model and perturbation."""
_MAX_SHOWN_CHARS = 600


@dataclass(frozen=True)
class PerturbedRows:
    """Perturbed questions, and the row that asks each of them."""

    settings: RobustnessConfig
    found: PerturbedSet
    rows: tuple[DatasetRow, ...]


def perturb_rows(
    datasets: Path, manifest: DatasetManifest, rows: Sequence[DatasetRow], settings: RobustnessConfig
) -> PerturbedRows:
    """Perturbed copies of held-out rows; questions of another domain come from the other data sets.

    Raises:
        DatasetError: The domain's own rows are unreadable.
    """
    folder = datasets / manifest.domain
    found = perturb(
        plain_questions(rows),
        settings,
        has_refusal=manifest.answer.refusal is not None,
        neighbours=neighbouring_questions(datasets, manifest),
        known=[row.input for split in SPLITS for row in read_split(folder, split)],
    )
    own = tuple(perturbed_row(manifest, rows[question.number], question) for question in found.questions)
    return PerturbedRows(settings, found, own)


def robustness_report(
    perturbed: PerturbedRows, rows: Sequence[DatasetRow], answers: Sequence[Answers], metric: Metric
) -> RobustnessReport:
    """Score by perturbation.

    Args:
        rows: The unperturbed ones.
        answers: Of each model, to `rows` and then to the perturbed rows.
    """
    plain = [_without_slices(answered(rows, own.first(len(rows)))) for own in answers]
    return RobustnessReport(
        metric=metric.name,
        seed=perturbed.settings.seed,
        num_drawn=len(perturbed.found.drawn),
        plain=tuple(value_of(figure_of(metric, [items[n] for n in perturbed.found.drawn])) for items in plain),
        perturbations=tuple(
            _perturbation(name, perturbed, plain, answers, metric) for name in perturbed.settings.perturbations
        ),
    )


def _perturbation(
    name: PerturbationName,
    perturbed: PerturbedRows,
    plain: Sequence[list[Item]],
    answers: Sequence[Answers],
    metric: Metric,
) -> PerturbationReport:
    """A question that one model's server refused counts for no model, so that all are compared by the same ones."""
    start, num_drawn = len(plain[0]), len(perturbed.found.drawn)
    positions = perturbed.found.positions(name)
    refused = [own.refused[start + n] for n in positions for own in answers if start + n in own.refused]
    chosen = [n for n in positions if not any(start + n in own.refused for own in answers)]
    asked = [perturbed.found.questions[n] for n in chosen]
    reasons = [NOT_ASKED[name]] if len(positions) < num_drawn else []
    reasons += [f"refused by the server ({_cut(refused[0])})"] if refused else []
    return PerturbationReport(
        perturbation=name,
        expects_refusal=any(question.expects_refusal for question in asked),
        num_asked=len(asked),
        num_not_asked=num_drawn - len(asked),
        not_asked_because="; ".join(reasons),
        models=tuple(
            _model(asked, _items(chosen, perturbed, own, items), items, metric)
            for own, items in zip(answers, plain, strict=True)
            if asked
        ),
    )


def _items(chosen: Sequence[int], perturbed: PerturbedRows, answers: Answers, plain: Sequence[Item]) -> list[Item]:
    """The answers to perturbed questions, under the ids of the questions that they came from."""
    rows = [perturbed.rows[n] for n in chosen]
    own = replace(answers, answers=tuple(answers.answers[len(plain) + n] for n in chosen))
    ids = [plain[perturbed.found.questions[n].number].id for n in chosen]
    return [replace(item, id=own_id, slices={}) for item, own_id in zip(answered(rows, own), ids, strict=True)]


def _model(
    asked: Sequence[PerturbedQuestion], items: Sequence[Item], plain: Sequence[Item], metric: Metric
) -> PerturbedModel:
    is_replaced = asked[0].expects_refusal
    before = [plain[question.number] for question in asked]
    found = perturbation_figure(metric, items, None if is_replaced else before)
    positions = {item.id: position for position, item in enumerate(items)}
    return PerturbedModel(
        score=value_of(found.figure),
        num_left_out=len(found.figure.left_out),
        plain=None if found.plain is None else value_of(found.plain),
        difference=None if found.difference is None else paired_of(found.difference),
        worst=tuple(
            _shown_item(items[position], before[position], asked[position])
            for position in (positions[name] for name in found.worst[:NUM_WORST])
        ),
    )


def _shown_item(item: Item, before: Item, question: PerturbedQuestion) -> PerturbedItem:
    return PerturbedItem(
        id=item.id,
        variant=question.variant,
        question=_cut(item.question),
        expected=_cut(item.expected),
        plain_answer=None if question.expects_refusal else _cut(before.answer),
        answer=_cut(item.answer),
    )


def _without_slices(items: Sequence[Item]) -> list[Item]:
    return [replace(item, slices={}) for item in items]


def _cut(text: str) -> str:
    """Without its middle where it is long: a question stands at the end of a long context."""
    half = _MAX_SHOWN_CHARS // 2
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:half]} … {text[-half:]}"
