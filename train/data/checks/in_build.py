"""Checks as steps of a build, which keep all rows; the others run in `lorikeet data report` only."""

from collections.abc import Sequence

from train.data.checks.balance import has_classes
from train.data.checks.embeddings import embed_questions
from train.data.checks.label_errors import check_labels
from train.data.checks.refusals import check_refusals
from train.data.examples import Example
from train.data.steps import LABEL_ERRORS, REFUSALS, Step, StepResult, reported
from train.errors import DataError


def refusals_step(examples: Sequence[Example], refusal: str | None) -> StepResult:
    """Report answers that refuse and should not.

    Args:
        refusal: The domain's own, `answer.refusal`.
    """
    return reported(REFUSALS, examples, check_refusals(examples, refusal).findings)


def label_errors_step(examples: Sequence[Example]) -> StepResult:
    """Report suspected label errors; takes up to a minute, so only where a gate asks. Counts the rows that it checked.

    Raises:
        DataError: The extra `embeddings` is not installed, or answers are not classes.
    """
    in_scope = [example for example in examples if example.in_scope]
    labels = check_labels(embed_questions(in_scope)) if has_classes(in_scope) else None
    if labels is None:
        raise DataError(
            "`data.gates.max_label_errors` is set, but answers are not classes: too few repeat. Remove the gate."
        )
    step = Step(LABEL_ERRORS, labels.num_checked, labels.num_checked, findings=labels.findings)
    return StepResult(tuple(examples), step)
