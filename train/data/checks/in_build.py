"""The checks that run in every build, as its steps; the others run in `lorikeet data report`."""

from collections.abc import Sequence

from config.data import DataConfig
from config.domain import AnswerConfig
from train.data.checks.embeddings import embed_questions
from train.data.checks.label_errors import check_labels
from train.data.checks.refusals import check_refusals
from train.data.checks.rendered import check_rendered
from train.data.examples import Example
from train.data.steps import LABEL_ERRORS, REFUSALS, Step, reported


def check_in_build(examples: Sequence[Example], config: DataConfig, answer: AnswerConfig) -> tuple[Step, ...]:
    """Cheap checks, which keep all rows; label errors cost seconds to a minute, so only if a gate asks for them.

    Raises:
        DataError: A gate asks for label errors, and the extra `embeddings` is not installed.
    """
    refusals = reported(REFUSALS, examples, check_refusals(examples, answer.refusal).findings)
    steps = [refusals.step, check_rendered(examples).step]
    if config.gates.max_label_errors is not None:
        labels = check_labels(embed_questions(examples))
        if labels is not None:
            steps.append(Step(LABEL_ERRORS, labels.num_checked, labels.num_checked, findings=labels.findings))
    return tuple(steps)
