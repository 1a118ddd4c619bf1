"""Values of ROUGE are those of rouge-score 0.1.2 without stemming; BLEU and chrF come from sacrebleu itself."""

import numpy as np
import pytest

from quality.metrics import texts
from quality.metrics.item import Item

PAIRS = [
    ("the cat sat on the mat", "the cat is on the mat"),
    ("a quick brown dog", "the quick brown fox jumps over the lazy dog"),
    ("", "something"),
    ("Police killed the gunman", "the gunman kill police"),
]


def item(answer: str, expected: str) -> Item:
    return Item(id="1", question="?", expected=expected, answer=answer)


@pytest.mark.parametrize(
    ("pair", "rouge_1", "rouge_2", "rouge_l"),
    [(0, 5 / 6, 3 / 5, 5 / 6), (1, 6 / 13, 2 / 11, 6 / 13), (2, 0, 0, 0), (3, 3 / 4, 1 / 3, 1 / 2)],
)
def test_rouge_of_known_pairs(pair: int, rouge_1: float, rouge_2: float, rouge_l: float) -> None:
    asked = item(*PAIRS[pair])
    assert texts.rouge_n(1).of(asked) == pytest.approx(rouge_1)
    assert texts.rouge_n(2).of(asked) == pytest.approx(rouge_2)
    assert texts.rouge_l().of(asked) == pytest.approx(rouge_l)


def test_rouge_knows_words_of_any_script() -> None:
    assert texts.rouge_n(1).of(item("черная кошка", "белая кошка")) == pytest.approx(0.5)


def test_the_corpus_figure_is_not_the_mean_of_sentences() -> None:
    items = [item(*pair) for pair in PAIRS]
    bleu, chrf = texts.bleu(), texts.chrf()
    scores = bleu.scores(items)
    assert bleu.value(items, []) != pytest.approx(np.mean([s for s in scores if isinstance(s, float)]))
    assert bleu.value([item("a b c d e", "a b c d e")], []) == pytest.approx(100)
    assert 0 < chrf.value(items, []) < 100


def test_similarity_is_the_cosine_of_the_embeddings() -> None:
    vectors = {"up": [1.0, 0.0], "right": [0.0, 1.0]}
    metric = texts.Similarity(lambda found: np.array([vectors[text] for text in found], dtype=np.float32))
    assert metric.scores([item("up", "up"), item("up", "right")]) == [1, 0]
