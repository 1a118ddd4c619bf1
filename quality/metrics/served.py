"""The metrics by which a server scores its versions' held-out questions, and so judges canaries."""

from collections.abc import Sequence
from pathlib import Path

from quality.errors import MetricError
from quality.metrics.item import Item, LeftOut, Metric
from quality.metrics.settings import MetricConfig
from quality.scorers import AnswerFormat

SERVED_METRICS = (
    "exact_match",
    "json_fields",
    "accuracy",
    "span_f1",
    "token_f1",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "valid_format",
    "refusal",
    "numeric",
    "regex",
)
"""An answer's score is 0 to 1, higher is better, and takes neither a file of the domain nor another model."""

_REASONS = {
    "macro_f1": "unlike `accuracy`, it is not a mean of the answers' scores",
    "bleu": "its scores are 0 to 100",
    "chrf": "its scores are 0 to 100",
    "similarity": "its scores are -1 to 1",
    "length": "its scores have no upper bound",
    "tool_calls": "a server's questions have no tools",
    "python": "a server does not run the domain's files",
}


def check_served(config: MetricConfig) -> None:
    """Check that a server can score answers by this metric.

    Raises:
        MetricError: It cannot.
    """
    if config.name not in SERVED_METRICS:
        reason = _REASONS.get(config.name, "it asks another model")
        raise MetricError(
            f"metric `{config.name}` cannot score held-out questions on a server: {reason}. Set `evaluation.metric` to "
            f"one of {', '.join(SERVED_METRICS)}; `evaluation.metrics` may keep `{config.name}`."
        )


def served_metric(config: MetricConfig, answer_format: AnswerFormat, refusal: str | None) -> Metric:
    """The metric.

    Args:
        refusal: The domain's, for the metric of that name.

    Raises:
        MetricError: A server cannot compute the metric, or the domain lacks the refusal that it needs.
    """
    from quality.metrics.table import make_metrics  # loads sacrebleu

    check_served(config)
    (metric,) = make_metrics([config], folder=Path(), answer_format=answer_format, refusal=refusal)
    return metric


def score_one(metric: Metric, question: str, expected: str, answer: str, *, in_scope: bool) -> float | LeftOut:
    """The score of one answer, 0 to 1."""
    (score,) = metric.scores([Item("", question, expected, answer, in_scope)])
    return score


def scorable(metric: Metric, expected: Sequence[tuple[str, bool]]) -> list[bool]:
    """Whether the metric can score answers to questions with these expected answers, each with whether it is in scope.

    A metric leaves an item out for its expected answer alone, as one without a number.
    """
    return [
        not isinstance(score_one(metric, "", right, right, in_scope=in_scope), LeftOut) for right, in_scope in expected
    ]
