"""`text_similarity` of OpenAI's graders: two texts, 0 to 1."""

from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher

from quality.embedding import embed, missing_packages
from quality.errors import MetricError
from quality.grading.names import SimilarityMetric
from quality.metrics import texts
from quality.metrics.answers import ByItem
from quality.metrics.item import Item


def check_available(name: SimilarityMetric) -> None:
    """Raises:
    MetricError: A package is missing.
    """
    if name == "cosine" and (missing := missing_packages()):
        raise MetricError(f"`cosine` needs {' and '.join(missing)}: pip install 'lorikeet[embeddings]'")


def similarity(metric: SimilarityMetric, text: str, reference: str) -> float:
    """0: nothing in common; 1: equal, but for what the metric ignores."""
    return max(0.0, min(1.0, _METRICS[metric](text, reference)))


def _fuzzy(text: str, reference: str) -> float:
    """Characters in common, twice, over all characters."""
    return SequenceMatcher(None, text, reference, autojunk=False).ratio()


def _bleu(text: str, reference: str) -> float:
    return texts.bleu().of_sentence(text, reference) / 100


def _gleu(text: str, reference: str) -> float:
    """The lower of precision and recall of all 1- to 4-grams of words (https://arxiv.org/abs/1609.08144)."""
    found, wanted = (_ngrams(one.split()) for one in (text, reference))
    common = sum((found & wanted).values())
    return common / max(found.total(), wanted.total(), 1)


def _ngrams(words: list[str]) -> "Counter[tuple[str, ...]]":
    return Counter(tuple(words[start : start + n]) for n in range(1, 5) for start in range(len(words) - n + 1))


def _cosine(text: str, reference: str) -> float:
    one, other = embed([text, reference])
    return float(one @ other)


def _rouge(metric: ByItem) -> Callable[[str, str], float]:
    def score(text: str, reference: str) -> float:
        return float(metric.scores([Item("", "", reference, text)])[0])  # type: ignore[arg-type]  # never left out

    return score


_METRICS: dict[str, Callable[[str, str], float]] = {
    "cosine": _cosine,
    "fuzzy_match": _fuzzy,
    "bleu": _bleu,
    "gleu": _gleu,
    "rouge_l": _rouge(texts.rouge_l()),
    **{f"rouge_{n}": _rouge(texts.rouge_n(n)) for n in range(1, 6)},
}
