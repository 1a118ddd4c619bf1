"""One user's wrong corrections, 30% of all: what reaches the rows, and what gates and verdict make of the rest.

A simulation: the model is nearest neighbour by words, which memorises each row and so takes poison as it comes. The
data set, the gates and the verdict are the real ones.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from adapters.scores import score_of
from adapters.store.evaluation_records import Evaluation
from config.dataset import DatasetRow, Message, read_split
from config.domain import GatesConfig
from config.home import Home
from config.items import items_of
from quality.metrics.answers import exact_match
from quality.policy import CanaryPolicy
from quality.verdict import Evidence, Observation, Verdict, decide
from tests.train.data.feedback.said import Said, begin
from train.data.feedback.build import FromSamples, build_from_samples
from train.evaluate.figures import figure_record
from train.gates import GateEvidence, gain_of, judge_gates

CLASSES = 6
WORDS = [[f"{chr(97 + number)}{place}word" for place in range(12)] for number in range(CLASSES)]
NUM_CORRECTIONS = 200
NUM_HELD_OUT = 300
POISON = "class 0"
UNBOUNDED = FromSamples(max_user_share=1.0)

Row = tuple[str, str]
"""Question and answer."""


def drawn(rng: random.Random, number: int) -> Row:
    """A question of six words of its class, and the right answer."""
    kind = number % CLASSES
    return " ".join(rng.sample(WORDS[kind], 6)), f"class {kind}"


def model_answer(rows: Sequence[Row], question: str) -> str:
    """That of the row with most words in common; the newest of equal ones."""
    words = set(question.split())
    return max(reversed(rows), key=lambda row: len(words & set(row[0].split())))[1]


@pytest.fixture
def said(tmp_path: Path) -> Iterator[Said]:
    """70% right corrections by a user each, 30% wrong ones by one user."""
    said, rng = begin(Home(tmp_path)), random.Random(7)
    for number in range(NUM_CORRECTIONS):
        question, right = drawn(rng, number)
        is_poison = number % 10 in (1, 4, 8)
        wrong = POISON if right != POISON else "class 1"
        said.feedback(said.answer(question, "?"), "poisoner" if is_poison else f"user {number}", None,
                      wrong if is_poison else right)  # fmt: skip
    yield said
    said.store.close()


HELD_OUT = [drawn(random.Random(number), number) for number in range(NUM_HELD_OUT)]
STABLE = [drawn(random.Random(10_000 + number), number) for number in range(120)]


def built_rows(said: Said, settings: FromSamples) -> list[DatasetRow]:
    build_from_samples(said.home, "medical", settings)
    return read_split(said.home.datasets / "medical-feedback", "train")


def trained(said: Said, settings: FromSamples) -> list[Row]:
    """What the canary knows: corrections outweigh what stable knew, as in a training that goes on from it."""
    rows = [(row.input, row.output) for row in built_rows(said, settings)]
    return [*STABLE[:30], *rows]


def right_of(rows: Sequence[Row]) -> list[bool]:
    return [model_answer(rows, question) == answer for question, answer in HELD_OUT]


def verdict_on(canary: Sequence[Row]) -> Verdict:
    """The real verdict: held-out questions asked of both, healthy traffic of 300 users each."""

    def evidence(rows: Sequence[Row]) -> Evidence:
        scores = tuple(Observation(float(n), float(right)) for n, right in enumerate(right_of(rows)))
        healthy = tuple(Observation(float(n), 0.0, f"user {n}") for n in range(300))
        return Evidence(scores, healthy, healthy)

    return decide(evidence(STABLE), evidence(canary), CanaryPolicy())


def gates_of(canary: Sequence[Row]) -> bool:
    """The real gates, beside a base that answers nothing."""
    rows = [
        DatasetRow(messages=(Message(role="assistant", content=answer),), input=question, output=answer)
        for question, answer in HELD_OUT
    ]
    texts = [model_answer(canary, question) for question, _ in HELD_OUT]
    base, adapter = items_of(rows, [""] * len(rows)), items_of(rows, texts)
    figure = figure_record(exact_match(), base, adapter)
    valid = score_of(NUM_HELD_OUT, NUM_HELD_OUT)
    evaluation = Evaluation(
        metric="exact_match", base=figure.base, adapter=figure.adapter, base_valid_format=valid, valid_format=valid
    )
    measured = GateEvidence(gain_of("exact_match", {}, [figure]), evaluation, {}, None, [figure])
    return all(gate.is_met for gate in judge_gates(measured, GatesConfig(), None))


@pytest.mark.slow
def test_a_poisoner_has_at_most_the_share_of_the_rows(said: Said) -> None:
    owners = Counter(
        row.origin.file.rpartition(" by ")[2] for row in built_rows(said, FromSamples()) if row.origin is not None
    )
    assert 0 < owners["poisoner sample"] <= 0.05 * owners.total()
    assert len(owners) == 1 + 0.7 * NUM_CORRECTIONS


@pytest.mark.slow
def test_unbounded_poison_is_not_promoted(said: Said) -> None:
    canary = trained(said, UNBOUNDED)
    verdict = verdict_on(canary)
    assert verdict.action == "rollback", verdict.reason
    assert gates_of(canary)  # it is better than the base, so the gates alone would let it pass


@pytest.mark.slow
def test_the_bounded_rest_does_no_harm_beyond_the_margin(said: Said) -> None:
    verdict = verdict_on(trained(said, FromSamples()))
    assert verdict.comparisons[0].state == "within", verdict.reason


@pytest.mark.slow
def test_poison_on_questions_that_others_correct_is_gone(said: Said) -> None:
    question, right = drawn(random.Random(99), 1)
    for who, answer in (("poisoner", POISON), ("u1", right), ("u2", right)):
        said.feedback(said.answer(question, "?"), who, None, answer)
    assert {row.output for row in built_rows(said, UNBOUNDED) if row.input == question} == {right}
