"""Account, card and telephone numbers in running text."""

import re
from collections.abc import Iterator, Sequence

# Two letters of each country, and how long its IBANs are (ISO 13616, SWIFT's registry).
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO EG GT HN HU LB NI PL SV",
        29: "BR PS QA UA YE",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[ \u00a0\u202f-]?\d")
_IBAN_CHAR = re.compile(r"[ \u00a0\u202f-]?([A-Za-z0-9])")

_GAP = r"[ \t\u00a0\u2009\u202f().\-\u2010\u2011\u2013/]"
_DATE = re.compile(
    r"(?<!\d)(?<!\d[-/.])(?:\d{4}([-/.])(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0?[1-9]|[12]\d|3[01])([-/.])(?:0?[1-9]|[12]\d|3[01])\2\d{4})(?![-/.]?\d)(?:[T ]\d{1,2}$)?"
)
_RUN = re.compile(rf"(?:(?<!\w)\+{_GAP}{{0,2}}|(?<![\w+])\(?|(?<=[A-Za-z_]))\d(?:{_GAP}{{0,3}}\d)*")
_DIGIT, _DIGITS = re.compile(r"\d"), re.compile(r"\d+")

_CARD_DIGITS = range(13, 20)
_PHONE_DIGITS = range(9, 16)
_INTERNATIONAL_DIGITS = range(7, 16)  # of one with a country code (ITU-T E.164)


def find_iban(text: str, placeholder: str) -> str:
    """Replace every IBAN with the length of its country and valid check digits."""
    pieces, end = [], 0
    for start in _IBAN_START.finditer(text):
        if start.start() >= end and (stop := _iban_end(text, start.start())) is not None:
            pieces += [text[end : start.start()], placeholder]
            end = stop
    return "".join([*pieces, text[end:]])


def redact_numbers(text: str) -> str:
    """The text with `[CARD]`, `[PHONE]` and `[NUMBER]` (what is longer than both) instead; dates stay."""
    return _RUN.sub(_run, text)


def is_luhn(digits: str) -> bool:
    """The check digit of card numbers (ISO/IEC 7812-1)."""
    doubled = (int(digit) * 2 for digit in digits[-2::-2])
    return (sum(int(digit) for digit in digits[-1::-2]) + sum(n - 9 if n > 9 else n for n in doubled)) % 10 == 0


def is_iban(compact: str) -> bool:
    """Check digits of an IBAN without gaps (ISO 7064, modulo 97)."""
    return int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4])) % 97 == 1


def _iban_end(text: str, start: int) -> int | None:
    length = _IBAN_LENGTHS.get(text[start : start + 2].upper())
    if length is None:
        return None
    compact, end = "", start
    while len(compact) < length:
        char = _IBAN_CHAR.match(text, end)
        if char is None:
            return None
        compact, end = compact + char[1], char.end()
    follows = text[end : end + 1]
    return end if is_iban(compact) and not (follows.isascii() and follows.isalnum()) else None


def _run(found: re.Match[str]) -> str:
    """Mask a run of digits with gaps: card numbers, and the parts between them."""
    run, pieces, end = found[0], [], 0
    for start, stop in _cards(run):
        pieces += [_RUN.sub(_phone, run[end:start]), "[CARD]"]
        end = stop
    return "".join([*pieces, _RUN.sub(_phone, run[end:])])


def _phone(found: re.Match[str]) -> str:
    """Mask a run without cards: one telephone number, or the parts between dates."""
    run = found[0]
    if run.startswith(("+", "00")) and len(_DIGIT.findall(run)) in _INTERNATIONAL_DIGITS:
        return "[PHONE]"
    pieces, end = [], 0
    for date in _DATE.finditer(run):
        pieces += [_RUN.sub(_number, run[end : date.start()]), date[0]]
        end = date.end()
    return "".join([*pieces, _RUN.sub(_number, run[end:])])


def _number(found: re.Match[str]) -> str:
    groups = _DIGITS.findall(found[0])
    num_digits = sum(map(len, groups))
    # Single digits in a row are a list; a telephone number has one of them at most.
    if num_digits < _PHONE_DIGITS.start or sum(len(group) == 1 for group in groups) > 1:
        return found[0]
    return "[PHONE]" if num_digits in _PHONE_DIGITS else "[NUMBER]"


def _cards(run: str) -> Iterator[tuple[int, int]]:
    """Where whole groups of digits are a card number; they do not overlap."""
    groups, first = list(_DIGITS.finditer(run)), 0
    while first < len(groups):
        last = _last_of_card(groups, first)
        if last is not None:
            yield groups[first].start(), groups[last].end()
        first = first + 1 if last is None else last + 1


def _last_of_card(groups: Sequence[re.Match[str]], first: int) -> int | None:
    """The last group of the longest card number that begins with a group."""
    digits, last = "", None
    for number in range(first, len(groups)):
        digits += groups[number][0]
        if len(groups[number][0]) == 1 or len(digits) >= _CARD_DIGITS.stop:
            break
        if len(digits) in _CARD_DIGITS and is_luhn(digits):
            last = number
    return last
