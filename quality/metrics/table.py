"""The metrics by their names in a domain's YAML."""

from collections.abc import Callable, Sequence
from pathlib import Path

from quality.embedding import embed, missing_packages
from quality.errors import MetricError
from quality.metrics import answers, classes, texts
from quality.metrics.custom import load_custom
from quality.metrics.item import Metric
from quality.metrics.judged import Judged, JudgedPairs
from quality.metrics.settings import JudgeMetric, MetricConfig, NumericMetric, PairwiseMetric, PythonMetric, RegexMetric
from quality.scorers import AnswerFormat

_PLAIN: dict[str, Callable[[], Metric]] = {
    "exact_match": answers.exact_match,
    "json_fields": answers.json_fields,
    "accuracy": classes.Accuracy,
    "macro_f1": classes.MacroF1,
    "span_f1": answers.span_f1,
    "token_f1": answers.token_f1,
    "rouge_1": lambda: texts.rouge_n(1),
    "rouge_2": lambda: texts.rouge_n(2),
    "rouge_l": texts.rouge_l,
    "bleu": texts.bleu,
    "chrf": texts.chrf,
    "similarity": lambda: _similarity(),
    "tool_calls": answers.tool_calls,
    "length": answers.length,
}


def make_metrics(
    wanted: Sequence[MetricConfig], *, folder: Path, answer_format: AnswerFormat, refusal: str | None
) -> list[Metric]:
    """The metrics in order.

    Args:
        folder: That of the domain's YAML, for a function of one's own.
        refusal: The domain's refusal, for the metric of that name.

    Raises:
        MetricError: A metric lacks what it needs: a file, a package, the domain's refusal.
    """
    return [_make(config, folder, answer_format, refusal) for config in wanted]


def _make(config: MetricConfig, folder: Path, answer_format: AnswerFormat, refusal: str | None) -> Metric:
    if isinstance(config, RegexMetric):
        return answers.regex(config.pattern)
    if isinstance(config, NumericMetric):
        return answers.numeric(config.tolerance, config.relative)
    if isinstance(config, JudgeMetric):
        return Judged(config)
    if isinstance(config, PairwiseMetric):
        return JudgedPairs(config)
    if isinstance(config, PythonMetric):
        return load_custom(config.function, folder)
    if config.name == "valid_format":
        return answers.valid_format(answer_format)
    if config.name == "refusal":
        if refusal is None:
            raise MetricError("metric `refusal` needs the domain's refusal: set `answer.refusal`.")
        return answers.refusal(refusal)
    return _PLAIN[config.name]()


def _similarity() -> texts.Similarity:
    if missing := missing_packages():
        raise MetricError(
            f"metric `similarity` needs {' and '.join(missing)}. Install it (`pip install 'lorikeet[embeddings]'`), or "
            "leave the metric out."
        )
    return texts.Similarity(embed)
