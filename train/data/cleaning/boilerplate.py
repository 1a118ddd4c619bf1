"""What many rows have in common: an instruction that is repeated in each question says nothing about copies."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice

MAX_ROWS = 10
"""A text in more rows than this is common, as n-grams in more documents are in Brown et al. (2020), appendix C."""

_SAMPLE = 1000
_MIN_SAMPLE = 4
_MIN_SHARE = 0.5


class Boilerplate:
    """Lines found in more than ten texts, or in more than half; words with which more than half begin or end."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = Counter(line for text in texts if "\n" in text for line in set(text.split("\n")))
        most = min(MAX_ROWS, max(len(texts) * _MIN_SHARE, _MIN_SAMPLE - 1))
        self._lines = {line for line, count in counts.items() if count > most}
        step = max(len(texts) // _SAMPLE, 1)
        sample = [self._without_lines(text).split() for text in islice(texts, 0, None, step)]
        self._prefix = _common_prefix(sample)
        self._suffix = _common_prefix([words[::-1] for words in sample])[::-1]

    def strip(self, text: str) -> str:
        """The text without what is common; "" if nothing else is there."""
        rest = self._without_lines(text)
        if not (self._prefix or self._suffix):
            return rest
        words = rest.split()
        if self._prefix and words[: len(self._prefix)] == self._prefix:
            words = words[len(self._prefix) :]
        if self._suffix and words[-len(self._suffix) :] == self._suffix:
            words = words[: -len(self._suffix)]
        return " ".join(words)

    def _without_lines(self, text: str) -> str:
        if not self._lines:
            return text
        return "\n".join(line for line in text.split("\n") if line not in self._lines)


def _common_prefix(sample: Sequence[list[str]]) -> list[str]:
    prefix: list[str] = []
    if len(sample) < _MIN_SAMPLE:
        return prefix
    matching = list(sample)
    while True:
        position = len(prefix)
        counts = Counter(words[position] for words in matching if len(words) > position)
        word, count = counts.most_common(1)[0] if counts else ("", 0)
        if count <= _MIN_SHARE * len(sample):
            return prefix
        matching = [words for words in matching if len(words) > position and words[position] == word]
        prefix.append(word)
