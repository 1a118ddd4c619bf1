"""What is measured of a trained version beside its own held-out questions: forgetting and overfitting."""

from collections.abc import Sequence
from dataclasses import replace

from config.dataset import DatasetManifest, DatasetRow
from config.rows import AnyRow, TextRow
from quality.metrics.item import Item, Metric
from train.evaluate.forgetting.measure import forgetting_probes
from train.evaluate.local import AnsweredRows, decoding_of
from train.evaluate.overfitting import document_probes, plain_items, question_probes, sampled
from train.evaluate.probes import Probe, answered
from train.objectives.objective import Objective
from train.training import Trained

OtherDomains = Sequence[tuple[DatasetManifest, Sequence[DatasetRow]]]


def probes_of(
    trained: Trained,
    objective: Objective,
    others: OtherDomains,
    metric: Metric,
    questions: Sequence[DatasetRow],
    known: AnsweredRows | None,
) -> list[Probe]:
    """Those of the domain's `evaluation.forgetting` and `evaluation.overfitting`; none of a reward model.

    Args:
        others: Other domains' held-out questions.
        metric: The domain's first one.
        questions: The held-out questions, and `known` what base and adapter answered.
    """
    if not objective.gives_answers:
        return []
    task = trained.task
    forgetting = forgetting_probes(task.config.evaluation.forgetting, task.tokenizer, task.template_time, others)
    return forgetting + _overfitting(trained, objective, metric, questions, known)


def _overfitting(
    trained: Trained,
    objective: Objective,
    metric: Metric,
    questions: Sequence[DatasetRow],
    known: AnsweredRows | None,
) -> list[Probe]:
    task, num_rows = trained.task, trained.task.config.evaluation.overfitting.num_rows
    rows = _seen_rows(trained)
    documents = [row for row in rows if isinstance(row, TextRow)]
    if num_rows and documents:
        held_out = [row for row in task.rows["test"] if isinstance(row, TextRow)]
        return document_probes(documents, held_out, num_rows, task.tokenizer)
    if not num_rows or known is None:
        return []
    train = sampled(objective.questions(replace(task, rows={"test": rows})), num_rows)
    decoding = decoding_of(task.dataset, task.tokenizer)
    both = _in_scope(questions, known)
    held_out_rows = sampled(questions, num_rows)
    return question_probes(train, held_out_rows, both, metric, decoding, task.tokenizer, task.template_time)


def _seen_rows(trained: Trained) -> Sequence[AnyRow]:
    """The training rows that the kept weights have seen; all, where that is not known."""
    rows = trained.task.rows["train"]
    return rows if trained.seen is None else [rows[number] for number in sorted(trained.seen)]


def _in_scope(questions: Sequence[DatasetRow], known: AnsweredRows) -> tuple[list[Item], list[Item]]:
    chosen = [n for n, row in enumerate(questions) if row.in_scope]
    items = plain_items([questions[n] for n in chosen])
    base, adapter = ([answers[n].text for n in chosen] for answers in (known.base, known.adapter))
    return answered(items, base), answered(items, adapter)
