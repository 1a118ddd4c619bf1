"""Label errors and outliers, on embeddings drawn around a centre for each class."""

from dataclasses import replace

import numpy as np
import pytest

from config.dataset import Message
from tests.train.data.checks.rows import example
from train.data.checks.embeddings import EmbeddedExamples, embed_questions
from train.data.checks.label_errors import check_labels
from train.data.checks.outliers import Outliers, check_outliers
from train.data.examples import Example

CLASSES = ("red", "green", "blue")


def embedded(num_rows: int, num_all: int | None = None) -> EmbeddedExamples:
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(len(CLASSES), 16))
    vectors = centres[np.arange(num_rows) % len(CLASSES)] + 0.4 * rng.normal(size=(num_rows, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = tuple(example(f"item {n}", CLASSES[n % len(CLASSES)], line=n + 1) for n in range(num_rows))
    return EmbeddedExamples(rows, vectors.astype(np.float32), num_all or num_rows)


def answered(row: Example, answer: str) -> Example:
    return replace(row, completion=(Message(role="assistant", content=answer),))


@pytest.mark.slow
def test_a_wrong_answer_is_suspected():
    given = embedded(90)
    rows = list(given.examples)
    rows[30] = answered(rows[30], "blue")
    found = check_labels(replace(given, examples=tuple(rows)))
    assert found is not None
    assert [str(each.origin) for each in found.findings] == ["rows.jsonl line 31"]
    assert "'blue', but the question looks like 'red'" in found.findings[0].reason


def test_right_answers_are_not_suspected():
    found = check_labels(embedded(90, num_all=5000))
    assert found is not None
    assert (found.findings, found.num_checked, found.num_rows) == ((), 90, 5000)


def test_free_texts_have_no_label_errors():
    given = embedded(30)
    rows = tuple(answered(row, f"answer {n}") for n, row in enumerate(given.examples))
    assert check_labels(replace(given, examples=rows)) is None


def test_a_question_unlike_all_others_is_an_outlier():
    given = embedded(90)
    assert check_outliers(given) == Outliers(90, 90, ())
    vectors = given.vectors.copy()
    vectors[12] = -vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))
    found = check_outliers(replace(given, vectors=vectors))
    assert found is not None
    assert [str(each.origin) for each in found.findings] == ["rows.jsonl line 13"]


def test_few_rows_have_no_outliers():
    assert check_outliers(embedded(20)) is None


@pytest.mark.slow
def test_the_packaged_model_embeds_what_is_alike_alike():
    rows = [example(text) for text in ("Where is my parcel?", "My package did not arrive", "Prime numbers", "unused")]
    found = embed_questions(rows, max_rows=3)
    assert [row.question for row in found.examples] == ["Where is my parcel?", "Prime numbers", "unused"]
    vectors = embed_questions(rows[:3]).vectors
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
