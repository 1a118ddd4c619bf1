"""What is asked of base and adapter alike beside the domain's held-out questions, and the figures that it gives."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import fsum, isfinite
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from adapters.store.evaluation_records import NATS, FigureKind, FigureRecord
from quality.metrics.classes import Accuracy
from quality.metrics.item import Item, Metric
from train.evaluate.figures import figure_record
from train.evaluate.likelihood import ending_logprobs, mean_nats, token_nats
from train.evaluate.local import Decoding, answer_prompts, without_adapter
from train.methods.method import Trainable

logger = logging.getLogger(__name__)


class Probe(Protocol):
    """Asks a model, and compares what the base and the adapter gave."""

    @property
    def num_asked(self) -> int: ...

    def ask(self, model: Trainable) -> Any: ...

    def figures(self, base: Any, adapter: Any) -> tuple[FigureRecord, ...]:
        """Of the results of `ask`."""
        ...


def run_probes(
    model: Trainable, probes: Sequence[Probe], on_answers: Callable[[int], None] = lambda count: None
) -> tuple[FigureRecord, ...]:
    """Figures of all probes, in order; the base is asked first, all of them."""

    def ask() -> list[Any]:
        results = []
        for probe in probes:
            results.append(probe.ask(model))
            on_answers(probe.num_asked)
        return results

    with without_adapter(model):
        base = ask()
    adapter = ask()
    return tuple(
        figure for probe, *found in zip(probes, base, adapter, strict=True) for figure in probe.figures(*found)
    )


@dataclass(frozen=True)
class TextProbe:
    """Likelihood of a text."""

    part: str
    token_ids: tuple[int, ...]
    num_asked: int = 1

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

    def ask(self, model: Trainable) -> list[Item]:
        answers = answer_prompts(model, self.tokenizer, self.prompts, self.decoding)
        return answered(self.items, [answer.text for answer in answers])


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

    def ask(self, model: Trainable) -> list[Item]:
        return self.questions.ask(model)

    def figures(self, base: list[Item], adapter: list[Item]) -> tuple[FigureRecord, ...]:
        record = figure_record(self.metric, base, adapter, self.kind, self.part)
        return (record.model_copy(update={"chance": self.chance}),)


def answered(items: Sequence[Item], answers: Sequence[str]) -> list[Item]:
    return [replace(item, answer=answer) for item, answer in zip(items, answers, strict=True)]


def most_frequent_share(expected: Sequence[str]) -> float:
    """What always giving the most frequent answer reaches."""
    return Counter(expected).most_common(1)[0][1] / len(expected) if expected else 0.0
