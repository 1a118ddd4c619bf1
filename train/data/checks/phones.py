"""Phone numbers in text: international, North American by their form, others after a word such as `Tel.`."""

import importlib.util
import re
from collections.abc import Iterator
from functools import cache

Span = tuple[int, int]

_RUN = re.compile(r"\d[\d ()./\u00a0-]{5,}\d")  # begins with what it looks for, so that a text is searched fast
_MIN_DIGITS = 7
_DATE = re.compile(r"(?:\d{4}-\d\d-\d\d|\d\d?[./]\d\d?[./]\d{4})(?: \d\d?)?")
_HAS_PLUS = re.compile(r"[+＋]\(?\d[\d ()./\u00a0-]{5,}")
_NUMBER = re.compile(r"(?<![\w.,+/-])\(?\d(?:[ ()./\u00a0-]{0,2}\d){6,13}(?![\w@]|[-./]\d)")
_NORTH_AMERICAN = re.compile(
    r"(?<![\w.+/-])(?:\+?1[-. ]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-.])\d{3}[-.]\d{4}(?![\w@]|[-.]\d)"
)
_WORD = re.compile(
    r"(?:\b(?:tele)?phones?\b|\btel\b|\bcall (?:me|us|him|her|them)\b|\bmobile\b|\bcell\b|\bfax\b|whatsapp|"
    r"\b(?:text|reach|ring) (?:me|us|him|her|them)\b|telefo\w*|"
    r"\bhandy(?:nummer)?\b|\bmobil(?:nummer)?\b|\bruf(?:en|nummer)?\b|erreichbar|"
    r"t[ée]l[ée]phon\w*|\btél\b|\bportable\b|\bappele[rz]\b|tel[ée]fon\w*|"
    r"\bm[óo]vil\b|\bcelular\b|\bll[áa]m(?:a|e|ar|adme|ame|eme)\b|cellulare|"
    r"telem[óo]vel|телефон\w*|电话|手机|電話|फ़ोन)[^\d\n+]{0,16}$",
    re.IGNORECASE,
)
_WORD_CHARS = 32
_REGIONS = """
US GB DE FR ES IT NL BE AT CH PL PT SE NO DK FI IE IN CN JP KR BR MX AU NZ ZA TR RU UA CZ GR AR
"""


@cache
def has_phonenumbers() -> bool:
    """Whether the package that knows the countries' numbers is installed (extra `pii`)."""
    return importlib.util.find_spec("phonenumbers") is not None


def find_phones(text: str) -> Iterator[Span]:
    """Places of phone numbers, which may overlap. Without the extra `pii`, only those of North American form."""
    for run in _RUN.finditer(text):
        if sum(map(str.isdigit, run[0])) >= _MIN_DIGITS and not _DATE.fullmatch(run[0]):
            start = max(0, run.start() - _WORD_CHARS)
            yield from ((start + first, start + last) for first, last in _find_in(text[start : run.end() + 2]))
    if has_phonenumbers() and _HAS_PLUS.search(text):
        yield from _international(text)


def _find_in(text: str) -> Iterator[Span]:
    yield from (match.span() for match in _NORTH_AMERICAN.finditer(text))
    for match in _NUMBER.finditer(text) if has_phonenumbers() else ():
        number = match[0]
        if number.startswith("00") and not number.isdigit():
            yield from [match.span()] if _is_valid(f"+{number[2:]}", None) else ()
        elif _WORD.search(text, 0, match.start()) and _is_national(number):
            yield match.span()


def _international(text: str) -> Iterator[Span]:
    from phonenumbers import Leniency, PhoneNumberMatcher

    for found in PhoneNumberMatcher(text, None, leniency=Leniency.VALID):
        yield found.start, found.end


def _is_national(number: str) -> bool:
    """Whether a number without a country code is one in any of the larger countries."""
    return any(_is_valid(number, region) for region in _REGIONS.split())


def _is_valid(number: str, region: str | None) -> bool:
    from phonenumbers import NumberParseException, is_valid_number, parse

    try:
        return is_valid_number(parse(number, region))
    except NumberParseException:
        return False
