"""Monitoring data of a version: held-out questions, general text and the drift baseline."""

import logging
import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from adapters.store.evaluation_records import Forgetting
from adapters.store.manifest import QualityRules
from config.dataset import DatasetRow
from config.domain import DomainConfig
from quality.drift import Exchange
from quality.held_out import GeneralText, HeldOutMessage, HeldOutQuestion, HeldOutSet
from quality.metrics.item import Metric
from quality.metrics.served import scorable, served_metric
from quality.metrics.settings import PlainMetric
from quality.scorers import AnswerFormat
from train.data.general import FORGETTING_TEXT
from train.evaluate.local import EvaluatedAnswer

_BASELINE_SEED = 13

logger = logging.getLogger(__name__)


def make_held_out(
    config: DomainConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[DatasetRow],
    answers: Sequence[EvaluatedAnswer],
    forgetting: Forgetting,
) -> HeldOutSet:
    """Questions from the held-out rows, and the drift baseline from the version's own answers to them.

    Both are left out if the domain does not publish its held-out questions, because token ids reveal the text.

    Args:
        answers: The version's, in the order of `rows`.
    """
    is_published = config.quality.publish_held_out
    return HeldOutSet(
        metric=config.evaluation.held_out_metric if is_published else PlainMetric(name="exact_match"),
        max_tokens=config.evaluation.max_new_tokens,
        stop=config.evaluation.stop,
        questions=_questions(config, rows) if is_published else (),
        general=_general_text(tokenizer, forgetting),
        baseline=_baseline(answers) if is_published else (),
    )


def check_held_out(config: DomainConfig) -> None:
    """Check that servers can score the held-out questions that this domain publishes.

    Raises:
        MetricError: The deciding metric takes more than the answer, or has other scores than 0 to 1.
    """
    if config.quality.publish_held_out:
        _metric(config)


def _metric(config: DomainConfig) -> Metric:
    rules = quality_rules(config)
    return served_metric(config.evaluation.held_out_metric, AnswerFormat(config.answer.json_schema), rules.refusal)


def _questions(config: DomainConfig, rows: Sequence[DatasetRow]) -> tuple[HeldOutQuestion, ...]:
    """The questions that a server can ask and score: it sends texts alone, with the version's own system prompt."""
    asked = [row for row in rows if _can_be_asked(row, config.chat.system)]
    if len(asked) < len(rows):
        logger.warning(
            "%d of %d held-out questions have tools or a system prompt of their own: a server does not ask them",
            len(rows) - len(asked),
            len(rows),
        )
    metric = _metric(config)
    scored = scorable(metric, [(row.output, row.in_scope) for row in asked])
    if not all(scored):
        logger.warning(
            "%d of %d held-out questions have an expected answer that `%s` cannot score: a server does not ask them",
            scored.count(False),
            len(asked),
            metric.name,
        )
    return tuple(question_of(row) for row, is_scored in zip(asked, scored, strict=True) if is_scored)


def _can_be_asked(row: DatasetRow, system: str) -> bool:
    is_text = all(
        turn.role in ("user", "assistant") or (turn.role == "system" and turn.content == system) for turn in row.prompt
    )
    return is_text and not row.tools and not any(turn.tool_calls for turn in row.messages)


def question_of(row: DatasetRow) -> HeldOutQuestion:
    messages = tuple(HeldOutMessage(role=message.role, content=message.content) for message in row.prompt)
    return HeldOutQuestion(messages=messages, expected=row.output, in_scope=row.in_scope)


def quality_rules(config: DomainConfig) -> QualityRules:
    """The domain's answer rules, as stored in its versions."""
    fields = config.quality.model_dump(include=set(QualityRules.model_fields))
    own = {
        "refusal": config.quality.refusal or config.answer.refusal,
        "held_out_metric": config.evaluation.held_out_metric.name,
    }
    return QualityRules.model_validate(fields | own)


def _general_text(tokenizer: PreTrainedTokenizerBase, forgetting: Forgetting) -> GeneralText:
    token_ids = tuple(tokenizer(FORGETTING_TEXT, add_special_tokens=False)["input_ids"])
    return GeneralText(token_ids=token_ids, base_nll=forgetting.base_nll, adapter_nll=forgetting.adapter_nll)


def _baseline(answers: Sequence[EvaluatedAnswer]) -> tuple[Exchange, ...]:
    """Shuffle the rows: every other one becomes the drift reference, and the input may be sorted."""
    exchanges = [
        Exchange(
            prompt_tokens=answer.prompt_token_ids,
            completion_tokens=answer.token_ids,
            mean_logprob=round(answer.mean_logprob, 5),
        )
        for answer in answers
    ]
    random.Random(_BASELINE_SEED).shuffle(exchanges)
    return tuple(exchanges)
