"""Training rows beside held-out ones: are they answered better, and completed from half of the question?"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from adapters.scores import Score
from adapters.store.evaluation_records import FigureRecord
from config.dataset import DatasetRow
from config.items import items_of
from config.rows import TextRow
from quality.intervals import unpaired_difference
from quality.metrics.answers import ByItem
from quality.metrics.figures import figure_of
from quality.metrics.item import Item, Metric
from train.data.encode import encode_prompt, token_ids
from train.data.template import render
from train.evaluate.figures import figure_record
from train.evaluate.local import Decoding
from train.evaluate.probes import AskedQuestions, Probe, answered
from train.methods.method import Trainable

_SEED = 13
_MAX_COMPLETED = 12
"""Tokens of a second half that are completed."""
_MAX_CHARS = 800
"""Of a document, half of which is shown."""

Answers = tuple[list[Item], list[Item]]
"""The base's and the adapter's answers to the same questions."""


@dataclass(frozen=True)
class GapProbe:
    """The same questions of training rows and of held-out rows.

    Attributes:
        part: Of the figure on training rows; `… gap` is that figure minus the held-out one.
        held_out: AskedQuestions; or the base's and the adapter's answers, where they are known already.
    """

    part: str
    metric: Metric
    train: AskedQuestions
    held_out: AskedQuestions | Answers

    @property
    def num_asked(self) -> int:
        return len(self.train.items) + (len(self.held_out.items) if isinstance(self.held_out, AskedQuestions) else 0)

    @property
    def asked(self) -> Any:
        parts = [self.train, self.held_out] if isinstance(self.held_out, AskedQuestions) else [self.train]
        asked = [part.asked for part in parts]
        return None if None in asked else asked

    def ask(self, model: Trainable) -> tuple[list[str], list[str]]:
        """Answers to the questions of training rows, and of held-out rows unless they are known."""
        return self.train.ask(model), self.held_out.ask(model) if isinstance(self.held_out, AskedQuestions) else []

    def figures(
        self, base: tuple[list[str], list[str]], adapter: tuple[list[str], list[str]]
    ) -> tuple[FigureRecord, ...]:
        by_base, by_adapter = (answered(self.train.items, answers) for answers, _ in (base, adapter))
        record = figure_record(self.metric, by_base, by_adapter, "overfitting", self.part)
        held_out = self.held_out
        if isinstance(held_out, AskedQuestions):
            held_out = answered(held_out.items, base[1]), answered(held_out.items, adapter[1])
        of_base, of_adapter = _gap(self.metric, by_base, held_out[0]), _gap(self.metric, by_adapter, held_out[1])
        if of_adapter is None:
            return (record,)
        gap = FigureRecord(
            kind="overfitting",
            metric=self.metric.name,
            part=f"{self.part} gap",
            adapter=of_adapter,
            base=of_base,
            higher_is_better=not self.metric.higher_is_better,
        )
        return record, gap


def _gap(metric: Metric, train: Sequence[Item], held_out: Sequence[Item]) -> Score | None:
    """The figure on training rows minus the one on held-out rows; None if either has no score."""
    on_held_out, on_train = figure_of(metric, held_out), figure_of(metric, train)
    if not on_held_out.n or not on_train.n:
        return None
    value, low, high = unpaired_difference(
        (on_held_out.value, on_held_out.ci_low, on_held_out.ci_high),
        (on_train.value, on_train.ci_low, on_train.ci_high),
    )
    return Score(value=value, ci_low=low, ci_high=high, n=min(on_train.n, on_held_out.n))


def sampled(rows: Sequence[DatasetRow], num_rows: int) -> list[DatasetRow]:
    """A seeded sample of the rows in scope, without replacement."""
    suited = [row for row in rows if row.in_scope]
    return random.Random(_SEED).sample(suited, min(num_rows, len(suited)))


def question_probes(
    train: Sequence[DatasetRow],
    held_out: Sequence[DatasetRow],
    known: Answers,
    metric: Metric,
    decoding: Decoding,
    tokenizer: PreTrainedTokenizerBase,
    at: datetime,
) -> list[Probe]:
    """Three probes of training rows.

    Args:
        train: A sample of the rows that were trained on; `held_out` as many others.
        known: The base's and the adapter's answers to all held-out questions in scope.
        decoding: That of the domain's requests.
        at: The time passed to the chat template.
    """
    whole = _questions(train, decoding, tokenizer, at)
    halves = tuple(_questions(_halved(rows), decoding, tokenizer, at) for rows in (train, held_out))
    texts = tuple(_continued(rows, tokenizer, at) for rows in (train, held_out))
    probes = [GapProbe("train rows", metric, whole, known), GapProbe("memorisation", metric, *halves)]
    if all(questions.items for questions in texts):
        probes.append(GapProbe("verbatim", verbatim(), *texts))
    return [probe for probe in probes if probe.train.items]


def document_probes(
    train: Sequence[TextRow], held_out: Sequence[TextRow], num_rows: int, tokenizer: PreTrainedTokenizerBase
) -> list[Probe]:
    """Whether documents that were trained on are continued word for word."""
    rng = random.Random(_SEED)
    samples = [rng.sample(list(rows), min(num_rows, len(rows))) for rows in (train, held_out)]
    questions = [_completions([_half_text(row.text[:_MAX_CHARS]) for row in rows], tokenizer) for rows in samples]
    return [GapProbe("verbatim", verbatim(), *questions)] if all(q.items for q in questions) else []


def verbatim() -> ByItem:
    """Share of the words of a text's second half that are written one after the other, from its first word on."""

    def share(item: Item) -> float:
        expected, found = item.expected.split(), item.answer.split()
        same = next((n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
        return (min(len(expected), len(found)) if same is None else same) / len(expected)

    return ByItem("verbatim_words", share, "mean")


def _questions(
    rows: Sequence[DatasetRow], decoding: Decoding, tokenizer: PreTrainedTokenizerBase, at: datetime
) -> AskedQuestions:
    prompts = [encode_prompt(tokenizer, row.prompt, at, row.tools) for row in rows]
    return AskedQuestions(plain_items(rows), prompts, decoding, tokenizer)


def plain_items(rows: Sequence[DatasetRow]) -> list[Item]:
    """Without answers and slices."""
    return [replace(item, slices={}) for item in items_of(rows, [""] * len(rows))]


def _halved(rows: Sequence[DatasetRow]) -> list[DatasetRow]:
    """The rows with the first half of their question alone; those whose question has one word are left out."""
    halved = []
    for row in rows:
        first, rest = _half_text(row.input)
        turn = row.prompt[-1]
        if rest and row.input in turn.content:
            asked = turn.model_copy(update={"content": turn.content.replace(row.input, first)})
            halved.append(row.model_copy(update={"messages": (*row.prompt[:-1], asked, row.messages[-1])}))
    return halved


def _continued(rows: Sequence[DatasetRow], tokenizer: PreTrainedTokenizerBase, at: datetime) -> AskedQuestions:
    """The rendered prompts up to half of the question, to be continued."""
    pairs = []
    for row in rows:
        turns = [message.for_template() for message in row.prompt]
        extra = {"tools": list(row.tools)} if row.tools else {}
        before, found, _ = render(tokenizer, turns, at, is_prompt=True, **extra).rpartition(row.input.strip())
        first, rest = _half_text(row.input.strip())
        pairs += [(before + first, rest)] if found else []
    return _completions(pairs, tokenizer)


def _completions(pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> AskedQuestions:
    """Beginnings to be continued; expected are the first words of what follows."""
    items: list[Item] = []
    prompts: list[tuple[int, ...]] = []
    for first, rest in pairs:
        following = token_ids(tokenizer, rest)[:_MAX_COMPLETED]
        expected = str(tokenizer.decode(following))
        if len(token_ids(tokenizer, rest)) > _MAX_COMPLETED:  # the last word may be cut
            expected = expected.rpartition(" ")[0]
        if expected.split() and first:
            items.append(Item(str(len(items) + 1), first, expected, ""))
            prompts.append(tuple(token_ids(tokenizer, first)))
    return AskedQuestions(items, prompts, Decoding(_MAX_COMPLETED), tokenizer)


def _half_text(text: str) -> tuple[str, str]:
    """Both halves by words; the second begins with its space. Of one word, the second is empty."""
    words = text.split(" ")
    half = len(words) // 2
    return (" ".join(words[:half]), "".join(f" {word}" for word in words[half:])) if half else (text, "")
