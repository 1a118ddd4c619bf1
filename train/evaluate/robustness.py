"""Base and adapter on perturbed copies of the held-out questions, as figures of a version."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.store.evaluation_records import FigureRecord
from config.dataset import DatasetRow
from config.items import items_of
from config.perturbed import neighbouring_questions, perturbed_row, plain_questions
from quality.metrics.item import Item, Metric
from quality.robustness.change import PerturbedQuestion
from quality.robustness.perturb import perturb
from quality.robustness.settings import PerturbationName
from train.data.encode import encode_prompt
from train.evaluate.figures import figure_record
from train.evaluate.local import AnsweredRows, generate, without_adapter
from train.methods.method import Trainable
from train.objectives.objective import Task

UNPERTURBED = "unperturbed"
"""Part of the figure of the drawn questions as they stand, beside which those of the perturbations are read."""

_LONG: PerturbationName = "long_context"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PerturbedQuestions:
    """Perturbed copies of held-out questions, the rows that ask them, and their prompts' token ids.

    Attributes:
        drawn: Indices of the held-out questions that were perturbed.
    """

    drawn: tuple[int, ...]
    copies: tuple[PerturbedQuestion, ...]
    rows: tuple[DatasetRow, ...]
    prompts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PerturbedAnswers:
    """Texts of base and adapter, in the order of the perturbed rows."""

    base: tuple[str, ...]
    adapter: tuple[str, ...]


def perturb_questions(
    task: Task, questions: Sequence[DatasetRow], datasets: Path, max_tokens: int | None
) -> PerturbedQuestions | None:
    """The copies by `evaluation.robustness`; None where it is not set.

    Args:
        datasets: Folder of all data sets.
        max_tokens: Of a prompt; longer ones are left out. None: any length.
    """
    dataset, settings = task.dataset, task.dataset.evaluation.robustness
    if settings is None:
        return None
    found = perturb(
        plain_questions(questions),
        settings,
        has_refusal=dataset.answer.refusal is not None,
        neighbours=neighbouring_questions(datasets, dataset),
        known=[getattr(row, "input", "") for rows in task.rows.values() for row in rows],
    )
    copies = [perturbed_row(dataset, questions[copy.number], copy) for copy in found.questions]
    prompts = [encode_prompt(task.tokenizer, row.prompt, task.template_time, row.tools) for row in copies]
    fitting = [n for n, prompt in enumerate(prompts) if max_tokens is None or len(prompt) <= max_tokens]
    if len(fitting) < len(copies):
        logger.warning(
            "%d of %d perturbed questions have more than %d tokens: they are not asked",
            len(copies) - len(fitting),
            len(copies),
            max_tokens,
        )
    return PerturbedQuestions(
        found.drawn,
        tuple(found.questions[n] for n in fitting),
        tuple(copies[n] for n in fitting),
        tuple(prompts[n] for n in fitting),
    )


def measure_robustness(
    model: Trainable, task: Task, perturbed: PerturbedQuestions, on_answers: Callable[[int], None]
) -> PerturbedAnswers:
    """Answers of base and adapter to the perturbed rows.

    Args:
        on_answers: Called with numbers of answers, in all two for each row.
    """
    with without_adapter(model):
        base = _answers(model, task, perturbed, on_answers)
    return PerturbedAnswers(base, _answers(model, task, perturbed, on_answers))


def robustness_figures(
    metric: Metric,
    perturbed: PerturbedQuestions,
    answers: PerturbedAnswers,
    questions: Sequence[DatasetRow],
    answered: AnsweredRows,
) -> tuple[FigureRecord, ...]:
    """The metric on the drawn questions as they stand, then on their copies, a figure for each perturbation.

    Args:
        questions: The held-out questions; `answered` their answers.
    """

    def figure(part: str, rows: Sequence[DatasetRow], base: Sequence[str], adapter: Sequence[str]) -> FigureRecord:
        first, second = _items(rows, base), _items(rows, adapter)
        return figure_record(metric, first, second, "robustness", part)

    drawn = perturbed.drawn
    figures = [
        figure(
            UNPERTURBED,
            [questions[n] for n in drawn],
            [answered.base[n].text for n in drawn],
            [answered.adapter[n].text for n in drawn],
        )
    ]
    for name in dict.fromkeys(copy.perturbation for copy in perturbed.copies):
        chosen = [n for n, copy in enumerate(perturbed.copies) if copy.perturbation == name]
        rows = [perturbed.rows[n] for n in chosen]
        base, adapter = ([texts[n] for n in chosen] for texts in (answers.base, answers.adapter))
        figures.append(figure(name, rows, base, adapter))
    return tuple(figures)


def _answers(
    model: Trainable, task: Task, perturbed: PerturbedQuestions, on_answers: Callable[[int], None]
) -> tuple[str, ...]:
    """Long contexts by themselves: they begin alike, and shorter prompts would be padded to their length."""
    texts: dict[int, str] = {}
    for is_long in (False, True):
        chosen = [n for n, copy in enumerate(perturbed.copies) if (copy.perturbation == _LONG) == is_long]
        found = generate(model, task.tokenizer, [perturbed.prompts[n] for n in chosen], task.dataset, on_answers)
        texts |= {n: answer.text for n, answer in zip(chosen, found, strict=True)}
    return tuple(texts[n] for n in range(len(perturbed.prompts)))


def _items(rows: Sequence[DatasetRow], texts: Sequence[str]) -> list[Item]:
    return [replace(item, slices={}) for item in items_of(rows, texts)]
