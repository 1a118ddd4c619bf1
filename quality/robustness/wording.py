"""Paraphrases by lists of synonyms: general English words that any domain may use, and the domain's own."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from random import Random

from quality.robustness.words import kept_words, outside_code

BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "according to": ("as stated by", "in line with"),
    "allowed": ("permitted",),
    "and": ("as well as", "along with"),
    "answer": ("reply",),
    "anybody": ("any person",),
    "assist": ("help",),
    "because of": ("due to", "owing to"),
    "begin": ("start",),
    "big": ("large",),
    "buy": ("purchase",),
    "can't": ("cannot",),
    "children": ("kids",),
    "choose": ("select", "pick"),
    "clients": ("customers",),
    "concerning": ("about", "regarding"),
    "correct": ("accurate",),
    "customer": ("client",),
    "customers": ("clients",),
    "delete": ("remove",),
    "describe": ("characterise",),
    "disease": ("illness",),
    "diseases": ("illnesses",),
    "doctor": ("physician",),
    "due to": ("because of", "caused by"),
    "entire": ("whole",),
    "error": ("mistake",),
    "errors": ("mistakes",),
    "especially": ("in particular",),
    "explain": ("make clear",),
    "find": ("locate",),
    "for example": ("for instance",),
    "free of charge": ("at no cost",),
    "frequent": ("common",),
    "get": ("obtain",),
    "goods": ("merchandise", "wares"),
    "granted": ("given",),
    "happen": ("occur",),
    "help": ("assist",),
    "hereby": ("herewith",),
    "how do i": ("how can I",),
    "i'd like to": ("I want to",),
    "illness": ("disease",),
    "improve": ("make better",),
    "incorrect": ("wrong",),
    "journey": ("trip",),
    "keep": ("retain",),
    "large": ("big",),
    "licensed under": ("made available under",),
    "many": ("a large number of",),
    "medicine": ("drug",),
    "merchandise": ("goods",),
    "mistake": ("error",),
    "must": ("has to", "is required to"),
    "no longer": ("not any more",),
    "obtain": ("get",),
    "occur": ("happen",),
    "other": ("further", "different"),
    "owing to": ("because of",),
    "permitted": ("allowed",),
    "physician": ("doctor",),
    "please": ("kindly",),
    "problem": ("difficulty",),
    "problems": ("difficulties",),
    "provided that": ("on condition that",),
    "purchased": ("bought",),
    "quantity": ("amount",),
    "quickly": ("rapidly",),
    "regarding": ("about", "concerning"),
    "remove": ("take away",),
    "reply": ("answer",),
    "select": ("choose",),
    "send": ("dispatch",),
    "several": ("various",),
    "shops": ("stores",),
    "should": ("ought to",),
    "start": ("begin",),
    "stores": ("shops",),
    "various": ("several", "diverse"),
    "under the terms of": ("according to the terms of",),
    "unspecified": ("not specified",),
    "with": ("together with",),
    "without": ("with no", "lacking"),
    "wrong": ("incorrect",),
}
"""What may stand for a word or phrase. One way only: not every use of the other word allows this one."""


def with_synonyms(text: str, kept: frozenset[str], own: Mapping[str, Sequence[str]], draw: Random) -> str:
    """Every listed word replaced by a synonym, but for those in `kept` and inside addresses and program text.

    Args:
        own: The domain's words and what may stand for them; they go before the built-in ones.
    """
    synonyms = {**BUILT_IN, **{word.strip().casefold(): tuple(others) for word, others in own.items()}}

    def replaced(found: re.Match[str]) -> str:
        word = found.group()
        others = synonyms.get(word.casefold())
        if others is None or kept_words(word) & kept:
            return word
        other = draw.choice(others)
        return other[:1].upper() + other[1:] if word[:1].isupper() else other

    pattern = _pattern(tuple(sorted(synonyms)))
    return outside_code(text, lambda part: pattern.sub(replaced, part))


@cache
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the words, longest first; whole words in scripts that have case, as those write spaces between words."""
    ordered = sorted(words, key=len, reverse=True)
    parts = (f"{_edge(word[0], '(?<!')}{re.escape(word)}{_edge(word[-1], '(?!')}" for word in ordered)
    return re.compile("|".join(parts), re.IGNORECASE)


def _edge(char: str, look: str) -> str:
    return rf"{look}[\w-])" if char.lower() != char.upper() else ""
