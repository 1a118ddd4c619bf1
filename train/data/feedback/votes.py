"""What people and judges say of sampled answers, as examples: one vote each on how a question is answered."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

from config.dataset import Message, Origin
from config.domain import ChatConfig
from quality.samples.records import Feedback, Grade, Label, Sample, is_preference
from quality.samples.store import QualityStore
from train.data.cleaning.identity import prompt_key
from train.data.examples import Example

VoteKind = Literal["correction", "feedback", "preference", "label", "grade"]

_WHOLE = "stop"
"""Finish reason of an answer that was not cut off."""


@dataclass(frozen=True)
class Vote:
    """One voter's example.

    Attributes:
        who: The voter; of a client's user a hash.
        is_user: Whether a client's user says it, and not the operator's people or judge.
    """

    example: Example
    who: str
    is_user: bool
    at_s: float


@dataclass
class JudgedSample:
    """A sample, and all that was said of it."""

    sample: Sample
    feedback: list[Feedback] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    grades: list[Grade] = field(default_factory=list)

    def is_good(self, min_score: float, *, with_users: bool = True) -> bool | None:
        """Whether most scores reach `min_score`: people's, or where nobody gave one the judges'. None: half, or none.

        A user who corrects the answer does not score it: the correction is that user's vote.
        """
        people = [label.score for label in self.labels]
        if with_users:
            people += [each.score for each in self.feedback if each.score is not None and each.correction is None]
        scores = people or [grade.score for grade in self.grades]
        num_good = sum(score >= min_score for score in scores)
        return None if 2 * num_good == len(scores) else 2 * num_good > len(scores)

    @property
    def has_scores_of_people(self) -> bool:
        scored = any(each.score is not None and each.correction is None for each in self.feedback)
        return scored or bool(self.labels)


def read_judged(store: QualityStore, adapter: str, since_s: float | None) -> list[JudgedSample]:
    """Samples of an adapter with their conversation, and what was said of them since a time; oldest first."""
    feedback = store.feedback(adapter, since_s=since_s)
    labels = store.labels(adapter, since_s=since_s)
    grades = [grade for grade in store.grades(adapter, since_s=since_s) if not is_preference(grade.judge)]
    ids = {given.sample_id for given in feedback} | {label.sample_id for label in labels}
    ids |= {grade.sample_id for grade in grades}
    ids |= {given.over_id for given in feedback if given.over_id is not None}
    samples = (store.sample(sample_id) for sample_id in sorted(ids))
    found = {sample.id: JudgedSample(sample) for sample in samples if sample and sample.messages and sample.answer}
    for given in feedback:
        if given.sample_id in found:
            found[given.sample_id].feedback.append(given)
    for label in labels:
        if label.sample_id in found:
            found[label.sample_id].labels.append(label)
    for grade in grades:
        if grade.sample_id in found:
            found[grade.sample_id].grades.append(grade)
    return list(found.values())


def answer_votes(judged: Iterable[JudgedSample], chat: ChatConfig, min_score: float) -> Iterator[Vote]:
    """Votes for answers: corrections, and sampled answers that people or judges find good."""
    for each in judged:
        prompt = own_prompt(each.sample, chat)
        if prompt is None:
            continue
        for given in each.feedback:
            if given.correction is not None:
                yield _vote(each, "correction", given.who, given.at_s, _answer(prompt, given.correction))
        if each.is_good(min_score) and each.sample.signals.finish_reason == _WHOLE:
            yield from _votes_for(each, _answer(prompt, each.sample.answer or ""), min_score)


def _votes_for(each: JudgedSample, example: Example, min_score: float) -> Iterator[Vote]:
    for label in each.labels:
        if label.score >= min_score:
            yield _vote(each, "label", f"label {label.who}", label.at_s, example)
    for given in each.feedback:
        if given.score is not None and given.score >= min_score and given.correction is None:
            yield _vote(each, "feedback", given.who, given.at_s, example)
    if not each.has_scores_of_people:
        for grade in each.grades:
            if grade.score >= min_score:
                yield _vote(each, "grade", f"grade {grade.judge}", grade.at_s, example)


def preference_votes(judged: Sequence[JudgedSample], chat: ChatConfig, min_score: float) -> Iterator[Vote]:
    """Votes between answers: corrections before what they correct, users' preferences, and good before bad answers to
    one question as labels and judges have it."""
    by_id = {each.sample.id: each for each in judged}
    for each in judged:
        prompt, answer = own_prompt(each.sample, chat), each.sample.answer or ""
        if prompt is None:
            continue
        for given in each.feedback:
            if given.correction is not None:
                pair = _pair(prompt, given.correction, answer)
                yield from _votes_between(each, "correction", given.who, given.at_s, pair)
            if given.over_id in by_id:
                pair = _pair(prompt, answer, by_id[given.over_id].sample.answer or "")
                yield from _votes_between(each, "preference", given.who, given.at_s, pair)
    yield from _graded_pairs(judged, chat, min_score)


def _graded_pairs(judged: Iterable[JudgedSample], chat: ChatConfig, min_score: float) -> Iterator[Vote]:
    by_question: dict[tuple[Message, ...], list[JudgedSample]] = defaultdict(list)
    for each in judged:
        prompt = own_prompt(each.sample, chat)
        if prompt is not None and each.is_good(min_score, with_users=False) is not None:
            by_question[prompt].append(each)
    for prompt, answered in by_question.items():
        good = [each for each in answered if each.is_good(min_score, with_users=False)]
        bad = [each for each in answered if not each.is_good(min_score, with_users=False)]
        for better, worse in product(good[-1:], bad):
            kind: VoteKind = "label" if better.labels and worse.labels else "grade"
            pair = _pair(prompt, better.sample.answer or "", worse.sample.answer or "")
            yield from _votes_between(better, kind, kind, better.sample.at_s, pair)


def own_prompt(sample: Sample, chat: ChatConfig) -> tuple[Message, ...] | None:
    """The conversation without the domain's system prompt and `chat.user`; None unless it ends with a question."""
    before, _, after = chat.user.partition("{input}")
    turns = [Message(role=turn.role, content=turn.content) for turn in sample.messages]
    turns = [turn for turn in turns if turn.role != "system" or turn.content != chat.system]
    if not turns or turns[-1].role != "user":
        return None
    asked = turns[-1].content
    if len(asked) > len(before) + len(after) and asked.startswith(before) and asked.endswith(after):
        turns[-1] = Message(role="user", content=asked[len(before) : len(asked) - len(after)])
    return tuple(turns) if turns[-1].content.strip() else None


def newest_votes(votes: Iterable[Vote]) -> list[Vote]:
    """One vote of each voter on a question, the newest, however often the question was asked; newest first."""
    kept: dict[object, Vote] = {}
    for vote in sorted(votes, key=lambda vote: -vote.at_s):
        example = vote.example
        both = (example.chosen[-1].content, example.rejected[-1].content) if example.type == "preference" else ()
        kept.setdefault((vote.who, prompt_key(example), frozenset(both)), vote)
    return list(kept.values())


def _answer(prompt: tuple[Message, ...], text: str) -> Example:
    return Example("prompt_completion", prompt=prompt, completion=(Message(role="assistant", content=text),))


def _pair(prompt: tuple[Message, ...], chosen: str, rejected: str) -> Example:
    return Example(
        "preference",
        prompt=prompt,
        chosen=(Message(role="assistant", content=chosen),),
        rejected=(Message(role="assistant", content=rejected),),
    )


def _vote(each: JudgedSample, kind: VoteKind, who: str, at_s: float, example: Example) -> Vote:
    is_user = kind in ("correction", "feedback", "preference")
    sample, by = each.sample, f" by {who}" if is_user else ""
    origin = Origin(file=f"{sample.adapter}@{sample.version} {kind}{by} sample", line=sample.id)
    return Vote(replace(example, origin=origin), who, is_user, at_s)


def _votes_between(each: JudgedSample, kind: VoteKind, who: str, at_s: float, pair: Example) -> Iterator[Vote]:
    chosen, rejected = pair.chosen[-1].content.strip(), pair.rejected[-1].content.strip()
    if chosen and rejected and chosen != rejected:
        yield _vote(each, kind, who, at_s, pair)
