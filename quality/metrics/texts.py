"""Metrics of free text beside the expected text: ROUGE, BLEU, chrF, and similarity of embeddings."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np
import numpy.typing as npt
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from quality.metrics.answers import ByItem
from quality.metrics.item import Item, Kind, LeftOut

_WORD = re.compile(r"\w+")


def rouge_n(n: int) -> ByItem:
    """F-measure of common n-grams of words, as ROUGE-N (https://aclanthology.org/W04-1013).

    Words are runs of letters and digits of any script, without case or stemming.
    """

    def score(item: Item) -> float:
        found, wanted = _ngrams(item.answer, n), _ngrams(item.expected, n)
        common = sum((found & wanted).values())
        if not found and not wanted:  # shorter than n words
            return float(_words(item.answer) == _words(item.expected))
        return _f_measure(common, sum(found.values()), sum(wanted.values()))

    return ByItem(f"rouge_{n}", score, "mean")


def rouge_l() -> ByItem:
    """F-measure of the longest common subsequence of words, as ROUGE-L; the whole text is one sequence."""

    def score(item: Item) -> float:
        found, wanted = _words(item.answer), _words(item.expected)
        if not found and not wanted:
            return 1.0
        return _f_measure(_longest_common(found, wanted), len(found), len(wanted))

    return ByItem("rouge_l", score, "mean")


@dataclass(frozen=True)
class Corpus:
    """A metric of sacrebleu, 0 to 100; an item's score is its sentence score, and the figure is that of the corpus."""

    name: str
    of_corpus: Callable[[list[str], list[str]], float]
    of_sentence: Callable[[str, str], float]
    kind: Kind = "corpus"
    higher_is_better: bool = True
    bounds: tuple[float, float] | None = (0.0, 100.0)

    def scores(self, items: Sequence[Item]) -> list[float | LeftOut]:
        return [self.of_sentence(item.answer, item.expected) for item in items]

    def value(self, items: Sequence[Item], scores: Sequence[float]) -> float:
        return self.of_corpus([item.answer for item in items], [item.expected for item in items])


def bleu() -> Corpus:
    """BLEU with sacrebleu's defaults (13a tokens, https://aclanthology.org/W18-6319)."""
    of_corpus, of_sentence = BLEU(), BLEU(effective_order=True)  # each remembers the tokens of a text
    return Corpus(
        "bleu",
        lambda answers, expected: float(of_corpus.corpus_score(answers, [expected]).score),
        lambda answer, expected: float(of_sentence.sentence_score(answer, [expected]).score),
    )


def chrf() -> Corpus:
    """chrF2 with sacrebleu's defaults (https://aclanthology.org/W15-3049)."""
    return Corpus(
        "chrf",
        lambda answers, expected: float(CHRF().corpus_score(answers, [expected]).score),
        lambda answer, expected: float(CHRF().sentence_score(answer, [expected]).score),
    )


Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]
"""Texts to (N, D) vectors of length 1."""


@dataclass(frozen=True)
class Similarity:
    """Cosine similarity of the embeddings of answer and expected answer, -1 to 1."""

    embed: Embed
    name: str = "similarity"
    kind: Literal["mean"] = "mean"
    higher_is_better: bool = True
    bounds: tuple[float, float] | None = (-1.0, 1.0)

    def scores(self, items: Sequence[Item]) -> list[float | LeftOut]:
        if not items:
            return []
        answers = self.embed([item.answer for item in items])
        expected = self.embed([item.expected for item in items])
        return [float(score) for score in np.sum(answers * expected, axis=1)]

    def value(self, items: Sequence[Item], scores: Sequence[float]) -> float:
        return fmean(scores)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = _words(text)
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def _f_measure(common: int, num_found: int, num_wanted: int) -> float:
    return 2 * common / (num_found + num_wanted) if common else 0.0


def _longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    lengths = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for place, other in enumerate(right, 1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]
