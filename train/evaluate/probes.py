"""What a version takes along of its domain, so that a server can watch it: probes, general text, a drift baseline."""

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from adapters.store.manifest import Forgetting, QualityRules
from config.dataset import DatasetRow
from config.schema import DomainConfig
from quality.drift import Exchange
from quality.probes import GeneralText, HeldOutQuestion, ProbeMessage, ProbeSet
from train.data.general import FORGETTING_TEXT
from train.evaluate.local import EvaluatedAnswer

_BASELINE_SEED = 13


def make_probes(
    config: DomainConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[DatasetRow],
    answers: Sequence[EvaluatedAnswer],
    forgetting: Forgetting,
) -> ProbeSet:
    """The held-out rows as probes, and the version's own answers to them as the drift baseline.

    Both stay out where the domain does not publish its probes: token ids tell as much as text does.

    Args:
        answers: The version's, in the order of `rows`.
    """
    is_published = config.quality.publish_probes
    return ProbeSet(
        metric=config.evaluation.metric,
        max_tokens=config.evaluation.max_new_tokens,
        stop=config.evaluation.stop,
        probes=tuple(map(probe_of, rows)) if is_published else (),
        general=_general_text(tokenizer, forgetting),
        baseline=_baseline(answers) if is_published else (),
    )


def probe_of(row: DatasetRow) -> HeldOutQuestion:
    messages = tuple(ProbeMessage(role=message.role, content=message.content) for message in row.prompt)
    return HeldOutQuestion(messages=messages, expected=row.output)


def quality_rules(config: DomainConfig) -> QualityRules:
    """The domain's rules, as its versions carry them."""
    fields = config.quality.model_dump(include=set(QualityRules.model_fields))
    return QualityRules.model_validate(fields | {"refusal": config.quality.refusal or config.answer.refusal})


def _general_text(tokenizer: PreTrainedTokenizerBase, forgetting: Forgetting) -> GeneralText:
    token_ids = tuple(tokenizer(FORGETTING_TEXT, add_special_tokens=False)["input_ids"])
    return GeneralText(token_ids=token_ids, base_nll=forgetting.base_nll, adapter_nll=forgetting.adapter_nll)


def _baseline(answers: Sequence[EvaluatedAnswer]) -> tuple[Exchange, ...]:
    """Shuffled: every other one becomes the yardstick, and rows might come sorted."""
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
