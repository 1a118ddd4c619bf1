"""How texts are compared for near copies: by words, numbers, symbols and indentation.

Case and the punctuation of sentences do not count. `3 + 4` and `3 - 4`, `C++` and `C#`, `-5` and `5` are different, as
are vowel signs and emoji.
"""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby

SHINGLE_CHARS = 5

_SENTENCE = ".,;:!?…\"'“”„‘’«»。、，！？：；¿¡®™©"
_CONNECTORS = "-–—‐‑/&·•()"
_DECORATION = "/*#>|%~\\"
_MIN_DECORATED_WORDS = 10
"""In a text of so many words, comment marks, bullets and quoting between words are decoration; in a shorter one,
operators."""
_JOINERS = "\u200c\u200d"  # inside words of Persian, Hindi and others
_VARIATIONS = "\ufe0e\ufe0f"  # colour of an emoji
_WITHOUT_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_LONG_RUN = re.compile(r"(\S)\1{3,}")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Number of words of a text, and its numbers and symbols, each with the word before it.

    Attributes:
        decoration: The symbols that stand alone between ordinary words and are usual in comments and lists.
    """

    num_words: int
    marks: Counter[tuple[str, str]]
    decoration: Counter[tuple[str, str]]

    @property
    def meant(self) -> Counter[tuple[str, str]]:
        return self.marks if self.num_words >= _MIN_DECORATED_WORDS else self.marks + self.decoration


def shingles(text: str) -> frozenset[str]:
    """All substrings of 5 characters of the words and numbers; a shorter text is its own shingle."""
    plain = normalize(text)
    last = max(len(plain) - SHINGLE_CHARS, 0)
    return frozenset([plain[start : start + SHINGLE_CHARS] for start in range(last + 1)])


def similarity(left: frozenset[str], right: frozenset[str]) -> float:
    """Jaccard similarity: shared shingles divided by all shingles."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def normalize(text: str) -> str:
    """Words and numbers in lower case with one space between them; combining marks belong to their word."""
    return _between_words(text).sub(" ", unicodedata.normalize("NFC", text).casefold()).strip()


def words(text: str) -> list[str]:
    """Words and numbers in order; of scripts without spaces, each character."""
    plain = normalize(text)
    return plain.split() if plain.isascii() else _no_spaces().sub(r" \g<0> ", plain).split()


@lru_cache(maxsize=2048)
def tokens(text: str) -> Tokens:
    folded = unicodedata.normalize("NFC", text).casefold()
    pieces = _separator(folded).split(folded)  # word, separator, word, …
    marks: Counter[tuple[str, str]] = Counter()
    decoration: Counter[tuple[str, str]] = Counter()
    num_words, before = 0, ""
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            if piece.isnumeric():
                marks[before, piece] += 1
            num_words += bool(piece) and not piece.isnumeric()
            before = piece
        elif not piece.isspace():
            after = pieces[number + 1]
            is_plain = _is_plain(before) and _is_plain(after)
            for symbol in _meant(piece, before[-1:], after[:1], is_plain):
                counts = decoration if is_plain and _stands_alone(symbol, piece) else marks
                counts[before, symbol] += 1
    return Tokens(num_words, marks, decoration)


def symbols_agree(left: str, right: str, least: float) -> bool:
    """Whether few enough numbers and symbols differ, in proportion to all words, numbers and symbols."""
    one, two = tokens(left), tokens(right)
    num_words = max(one.num_words, two.num_words)
    shared = (one.meant & two.meant).total()
    every = (one.meant | two.meant).total()
    return num_words + shared >= least * (num_words + every)


def differ_in_indentation_only(left: str, right: str) -> bool:
    """Whether the lines are equal but are nested differently, as in two programs."""
    one, two = _lines(left), _lines(right)
    if len(one) < 2 or [line.strip() for line in one] != [line.strip() for line in two]:
        return False
    return _levels(one) != _levels(two)


@lru_cache(maxsize=4096)
def _meant(separator: str, before: str, after: str, is_plain: bool) -> tuple[str, ...]:
    """The symbols between two words that change the meaning.

    Args:
        before: Last character of the word before; "" at the beginning of the text.
        after: First character of the word after.
        is_plain: Whether both are words of at least two letters.
    """
    found = []
    chunks = separator.split()
    for number, chunk in enumerate(chunks):
        touches_left = number == 0 and bool(before) and not separator[0].isspace()
        touches_right = number == len(chunks) - 1 and bool(after) and not separator[-1].isspace()
        if not chunk.strip(_SENTENCE):
            joins_digits = touches_left and touches_right and before.isnumeric() and after.isnumeric()
            is_prefix = touches_right and not touches_left and chunk[-1] in ".!"
            found += [chunk] if joins_digits or is_prefix else []
        elif not (is_plain and _is_prose(chunk, touches_left and touches_right)):
            found.append(_LONG_RUN.sub(r"\1\1\1", chunk.rstrip(_SENTENCE) or chunk))
    return tuple(found)


def _is_prose(chunk: str, is_inside: bool) -> bool:
    """Whether it is punctuation between ordinary words, as `and/or` or ` (acute) `; `f(x)` is not."""
    return not chunk.strip(_SENTENCE + _CONNECTORS) and not (is_inside and "(" in chunk)


def _stands_alone(symbol: str, separator: str) -> bool:
    """Whether it is a comment mark or a bullet with white space around it."""
    first, last = not separator[0].isspace(), None if separator[-1].isspace() else -1
    return not symbol.strip(_DECORATION) and symbol in separator.split()[first:last]


def _is_plain(word: str) -> bool:
    return not word or (len(word) > 1 and not any(map(str.isnumeric, word)))


def _lines(text: str) -> list[str]:
    return [line.expandtabs(4) for line in text.split("\n") if line.strip()]


def _levels(lines: list[str]) -> list[int]:
    """Depth of each line, as its rank among all indentations: two and four spaces a level are the same."""
    widths = [len(line) - len(line.lstrip()) for line in lines]
    ranks = {width: rank for rank, width in enumerate(sorted(set(widths)))}
    return [ranks[width] for width in widths]


_ASCII_GAPS = re.compile(r"[\W_]+")
_ASCII_SEPARATORS = re.compile(r"([\W_]+)")


def _between_words(text: str) -> re.Pattern[str]:
    return _ASCII_GAPS if text.isascii() else _any_gaps()


def _separator(text: str) -> re.Pattern[str]:
    return _ASCII_SEPARATORS if text.isascii() else _any_separators()


@cache
def _any_gaps() -> re.Pattern[str]:
    return re.compile(f"(?:[^\\w{_marks()}]|_)+")


@cache
def _any_separators() -> re.Pattern[str]:
    return re.compile(f"((?:[^\\w{_marks()}]|_)+)")


@cache
def _no_spaces() -> re.Pattern[str]:
    return re.compile(f"[{_WITHOUT_SPACES}]")


@cache
def _marks() -> str:
    """Ranges of a character class: combining marks, which `\\w` lacks, and joiners."""
    points = (c for c in range(0x300, sys.maxunicode + 1) if unicodedata.category(chr(c))[0] == "M")
    return "".join(_ranges(c for c in points if chr(c) not in _VARIATIONS)) + _JOINERS


def _ranges(points: Iterator[int]) -> Iterator[str]:
    for _, group in groupby(enumerate(points), key=lambda pair: pair[1] - pair[0]):
        run = [point for _, point in group]
        yield f"{chr(run[0])}-{chr(run[-1])}"
