from typing import get_args

import pytest

from quality.grading.names import SimilarityMetric
from quality.grading.similarity import similarity

COMPUTED = [name for name in get_args(SimilarityMetric) if name != "cosine"]


@pytest.mark.parametrize("metric", COMPUTED)
def test_equal_texts_are_1_and_others_0(metric: SimilarityMetric) -> None:
    text = "the quick brown fox jumps over the dog"
    assert similarity(metric, text, text) == pytest.approx(1.0)
    assert similarity(metric, "zzz", "qqq www") == 0.0
    assert 0.0 < similarity(metric, "the quick brown fox jumps over a cat", text) < 1.0


@pytest.mark.parametrize("metric", COMPUTED)
def test_an_empty_answer_is_not_similar(metric: SimilarityMetric) -> None:
    assert similarity(metric, "", "some words") == 0.0


def test_fuzzy_match_counts_characters_in_common() -> None:
    assert similarity("fuzzy_match", "abcd", "abxd") == pytest.approx(0.75)


def test_gleu_is_the_lower_of_precision_and_recall() -> None:
    assert similarity("gleu", "a b", "a b c d") == pytest.approx(3 / 10)
