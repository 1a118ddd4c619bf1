"""Checks as steps of a build, which keep all rows; the others run in `lorikeet data report` only."""

from collections.abc import Sequence

from train.data.checks.embeddings import embed_questions
from train.data.checks.label_errors import check_labels
from train.data.checks.refusals import check_refusals
from train.data.examples import Example
from train.data.steps import LABEL_ERRORS, REFUSALS, Step, StepResult, reported


def refusals_step(examples: Sequence[Example], refusal: str | None) -> StepResult:
    """Report answers that refuse and should not.

    Args:
        refusal: The domain's own, `answer.refusal`.
    """
    return reported(REFUSALS, examples, check_refusals(examples, refusal).findings)


def label_errors_step(examples: Sequence[Example]) -> StepResult:
    """Report suspected label errors; takes up to a minute, so only where a gate asks. Counts the rows that it checked.

    Raises:
        DataError: The extra `embeddings` is not installed.
    """
    in_scope = [example for example in examples if example.in_scope]
    labels = check_labels(embed_questions(in_scope))
    checked, findings = (labels.num_checked, labels.findings) if labels else (0, ())
    return StepResult(tuple(examples), Step(LABEL_ERRORS, checked, checked, findings=findings))
