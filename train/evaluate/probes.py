"""What is asked of base and adapter alike beside the domain's held-out questions, and the figures that it gives."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import fsum, isfinite
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from adapters.store.evaluation_records import NATS, FigureKind, FigureRecord
from quality.metrics.classes import Accuracy
from quality.metrics.item import Item, Metric
from train.evaluate.base_answers import BaseAnswers
from train.evaluate.figures import figure_record
from train.evaluate.likelihood import ending_logprobs, mean_nats, token_nats
from train.evaluate.local import Decoding, answer_prompts, without_adapter
from train.methods.method import Trainable

logger = logging.getLogger(__name__)


class Probe(Protocol):
    """Asks a model, and compares what the base and the adapter gave."""

    @property
    def num_asked(self) -> int: ...

    @property
    def asked(self) -> Any:
        """All that the results depend on beside the model, as JSON; None: the base is asked in every training."""
        ...

    def ask(self, model: Trainable) -> Any: ...

    def figures(self, base: Any, adapter: Any) -> tuple[FigureRecord, ...]:
        """Of the results of `ask`."""
        ...


def run_probes(
    model: Trainable,
    probes: Sequence[Probe],
    on_answers: Callable[[int], None] = lambda count: None,
    known: BaseAnswers | None = None,
) -> tuple[FigureRecord, ...]:
    """Figures of all probes, in order; the base is asked first, all of them.

    Args:
        known: Has answers of the base from earlier trainings, and keeps new ones.
    """

    def ask(known: BaseAnswers | None) -> list[Any]:
        results = []
        for probe in probes:
            results.append(known.of(model, probe.asked, partial(probe.ask, model)) if known else probe.ask(model))
            on_answers(probe.num_asked)
        return results

    with without_adapter(model):
        base = ask(known)
    adapter = ask(None)
    return tuple(
        figure for probe, *found in zip(probes, base, adapter, strict=True) for figure in probe.figures(*found)
    )


@dataclass(frozen=True)
class TextProbe:
    """Likelihood of a text."""

    part: str
    token_ids: tuple[int, ...]
    num_asked: int = 1

    @property
    def asked(self) -> Any:
        return ["text", self.token_ids]

    def ask(self, model: Trainable) -> list[float]:
        return token_nats(model, self.token_ids)

    def figures(self, base: list[float], adapter: list[float]) -> tuple[FigureRecord, ...]:
        if not all(map(isfinite, (*base, *adapter))):
            logger.warning("the likelihood of the text %r is not finite and is left out", self.part)
            return ()
        more = [with_it - without for without, with_it in zip(base, adapter, strict=True)]
        record = FigureRecord(
            kind="forgetting",
            metric=NATS,
            part=self.part,
            adapter=mean_nats(adapter),
            base=mean_nats(base),
            difference=mean_nats(more),
            higher_is_better=False,
        )
        return (record,)


@dataclass(frozen=True)
class ChoiceProbe:
    """Which of several words a model finds most likely after a beginning; the first word is the right one."""

    part: str
    tokenizer: PreTrainedTokenizerBase
    choices: Sequence[tuple[str, tuple[str, ...]]]

    @property
    def num_asked(self) -> int:
        return len(self.choices)

    @property
    def asked(self) -> Any:
        return ["choices", self.choices]

    def ask(self, model: Trainable) -> list[str]:
        pairs = [(beginning, word) for beginning, words in self.choices for word in words]
        logprobs = dict(zip(pairs, ending_logprobs(model, self.tokenizer, pairs), strict=True))
        return [max(words, key=lambda word: logprobs[beginning, word]) for beginning, words in self.choices]

    def figures(self, base: list[str], adapter: list[str]) -> tuple[FigureRecord, ...]:
        items = [Item(str(n), beginning, words[0], "") for n, (beginning, words) in enumerate(self.choices, 1)]
        record = figure_record(Accuracy(), answered(items, base), answered(items, adapter), "forgetting", self.part)
        chance = fsum(1 / len(words) for _, words in self.choices) / len(self.choices)
        return (record.model_copy(update={"chance": chance}),)


@dataclass(frozen=True)
class AskedQuestions:
    """Prompts with what their answers are scored by; `items` have no answer yet."""

    items: Sequence[Item]
    prompts: Sequence[tuple[int, ...]]
    decoding: Decoding
    tokenizer: PreTrainedTokenizerBase

    @property
    def asked(self) -> Any:
        return self.decoding.asked(self.prompts)

    def ask(self, model: Trainable) -> list[str]:
        return [answer.text for answer in answer_prompts(model, self.tokenizer, self.prompts, self.decoding)]


@dataclass(frozen=True)
class AnswerProbe:
    """Answers to questions, scored by a metric.

    Attributes:
        chance: What guessing reaches.
    """

    kind: FigureKind
    part: str
    metric: Metric
    questions: AskedQuestions
    chance: float

    @property
    def num_asked(self) -> int:
        return len(self.questions.items)

    @property
    def asked(self) -> Any:
        return self.questions.asked

    def ask(self, model: Trainable) -> list[str]:
        return self.questions.ask(model)

    def figures(self, base: list[str], adapter: list[str]) -> tuple[FigureRecord, ...]:
        items = self.questions.items
        record = figure_record(self.metric, answered(items, base), answered(items, adapter), self.kind, self.part)
        return (record.model_copy(update={"chance": self.chance}),)


def answered(items: Sequence[Item], answers: Sequence[str]) -> list[Item]:
    return [replace(item, answer=answer) for item, answer in zip(items, answers, strict=True)]


def most_frequent_share(expected: Sequence[str]) -> float:
    """What always giving the most frequent answer reaches."""
    return Counter(expected).most_common(1)[0][1] / len(expected) if expected else 0.0
