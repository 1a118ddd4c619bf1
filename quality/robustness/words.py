"""Words and letters of texts in any script, without those that must stay."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import groupby

_CHUNK = re.compile(r"\S+")
_IS_CODE = re.compile(r"[\d@/\\_<>=(){}\[\]#$%^*+|~`]|\w[.:]\w")
"""Addresses, paths, numbers and program text: a change there would make it another question."""
_DIGITS = re.compile(r"\d+")
_JOINERS = "\u200c\u200d"


def is_letter(char: str) -> bool:
    """A letter, or a mark or joiner that belongs to one."""
    return char.isalpha() or char in _JOINERS or unicodedata.category(char)[0] == "M"


def letters_of(word: str) -> list[str]:
    """A word's letters, each with its marks."""
    letters: list[str] = []
    for char in word:
        is_mark = char in _JOINERS or unicodedata.category(char)[0] == "M"
        if letters and (is_mark or letters[-1][-1] == "\u200d"):
            letters[-1] += char
        else:
            letters.append(char)
    return letters


def words_of(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each run of letters."""
    for is_word, run in groupby(enumerate(text), lambda numbered: is_letter(numbered[1])):
        if is_word:
            positions = [position for position, _ in run]
            yield positions[0], positions[-1] + 1


def kept_words(expected: str) -> frozenset[str]:
    """Words and numbers of the expected answer: it may have to repeat them from the question as they stand."""
    words = {expected[start:end].casefold() for start, end in words_of(expected)}
    return frozenset(words | set(_DIGITS.findall(expected)))


def plain_words(text: str, kept: frozenset[str]) -> Iterator[tuple[int, int]]:
    """(start, end) of each word that may be changed."""
    for chunk in _CHUNK.finditer(text):
        if not _IS_CODE.search(chunk.group()):
            for start, end in words_of(chunk.group()):
                if chunk.group()[start:end].casefold() not in kept:
                    yield chunk.start() + start, chunk.start() + end


def with_words(text: str, kept: frozenset[str], change: Callable[[str], str]) -> str:
    """The text with each word that may be changed replaced."""
    parts, position = [], 0
    for start, end in plain_words(text, kept):
        parts += [text[position:start], change(text[start:end])]
        position = end
    return "".join([*parts, text[position:]])


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with what stands between addresses, numbers and program text changed."""
    parts, position = [], 0
    for chunk in _CHUNK.finditer(text):
        if _IS_CODE.search(chunk.group()):
            parts += [change(text[position : chunk.start()]), chunk.group()]
            position = chunk.end()
    return "".join([*parts, change(text[position:])])
