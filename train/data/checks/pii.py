"""Personal data and secrets in texts: report, redact or drop.

Precise rather than complete: codes of diagnoses, versions, prices and article numbers must not be found.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from train.data.checks.account_numbers import is_card_number, is_iban
from train.data.checks.phones import find_phones, has_phonenumbers
from train.data.checks.secrets import find_secrets
from train.data.checks.texts import texts_of, with_texts
from train.data.examples import Example
from train.data.steps import PERSONAL_DATA, Finding, Step, StepResult, finding
from train.errors import DataError

PiiKind = Literal["EMAIL", "PHONE", "CARD", "IBAN", "IP_ADDRESS", "SECRET"]

_INSTALL = "Install it (pip install 'lorikeet[pii]')"

_EMAIL = re.compile(r"(?<![\w.+%@-])[\w.+%-]{1,64}@(?:[\w-]+\.)+(?P<tld>[^\W\d_]{2,}|xn--[\w-]+)(?![\w@]|[:/]\w)")
# Countries have two letters. Of the rest, those in use for mail: `logo@2x.png` and `x@self.weight` are not addresses.
_TOP_LEVEL = """
com org net edu gov mil int info biz name pro aero coop museum jobs mobi travel tel post asia app dev cloud
online site store shop tech xyz top club blog email mail live life news media agency company group team work
works world space website digital solutions services consulting design art health care bank finance legal law
academy school university foundation ngo charity africa berlin hamburg koeln wien paris london amsterdam nyc
tokyo swiss bayern example test invalid localhost ventures partners global international systems software
network page link one москва рф
"""
_TOP_LEVEL_DOMAINS = frozenset(_TOP_LEVEL.split())
_NOT_PEOPLE = frozenset({"git"})

_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){3,7}(?![\w:])")
_NUMBERED = re.compile(
    r"(?:\bv|\bver\.?|versions?|releases?|builds?|sections?|chapters?|clauses?|articles?|tables?|figures?|paragraphs?|"
    r"steps?|rules?|\bno\.|§|[=<>~^]=?)[\"':=\s(]*$",
    re.IGNORECASE,
)
_ADDRESS_BEFORE = re.compile(r"\b(?:ips?|ipv4|address(?:es)?|hosts?|servers?|from)\b\W*(?:is\W+)?$", re.IGNORECASE)

_CARD = re.compile(r"(?<![\w.,-])\d(?:[ -]?\d){13,18}(?![\w-]|[.,]\d)")
_IBAN = re.compile(r"(?<![\w-])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?!\w)")
# Without a look behind, these search a text many times faster; the exact patterns read only what they find.
_MAY_BE_CARD = re.compile(r"\d(?:[ -]?\d){13}")
_MAY_BE_IBAN = re.compile(r"[A-Z]{2}\d\d[ A-Z0-9]{11}")
_MAY_BE_IPV4 = re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d")
_MAY_BE_IPV6 = re.compile(r"[0-9A-Fa-f]:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:")


@dataclass(frozen=True, slots=True)
class PersonalData:
    """One place in a text: characters `start` to `end`."""

    kind: PiiKind
    start: int
    end: int


def clean_pii(
    examples: Sequence[Example],
    action: Literal["report", "redact", "drop"],
    advance: Callable[[], None] = lambda: None,
) -> StepResult:
    """Find personal data in all texts; `redact` writes `[EMAIL]` and the like in its place, `drop` drops the row.

    Args:
        advance: Called for each example.

    Raises:
        DataError: Rows are to be redacted or dropped, but phone numbers cannot be found (extra `pii`).
    """
    _need_phonenumbers(action)
    kept, findings = [], []
    for example in examples:
        advance()
        reason = _reason(example)
        if reason is None:
            kept.append(example)
            continue
        findings.append(_finding(example, reason))
        if action == "redact":
            kept.append(with_texts(example, redact))
        elif action == "report":
            kept.append(example)
    num_changed = len(findings) if action == "redact" else 0
    return StepResult(tuple(kept), Step(PERSONAL_DATA, len(examples), len(kept), num_changed, tuple(findings)))


def find_pii(text: str) -> list[PersonalData]:
    """Personal data in a text, in its order; where two kinds overlap, the first of `_FINDERS`."""
    found: list[PersonalData] = []
    for kind, find in _FINDERS.items():
        for start, end in find(text):
            if all(end <= other.start or start >= other.end for other in found):
                found.append(PersonalData(kind, start, end))
    return sorted(found, key=lambda place: place.start)


def redact(text: str) -> str:
    """The text with a placeholder such as `[EMAIL]` for each place."""
    for place in reversed(find_pii(text)):
        text = f"{text[: place.start]}[{place.kind}]{text[place.end :]}"
    return text


def unchecked_phones() -> tuple[str, ...]:
    """A note for a data set where not all phone numbers can be found."""
    if has_phonenumbers():
        return ()
    return (f"Only North American phone numbers are found: phonenumbers is not installed. {_INSTALL}.",)


def _need_phonenumbers(action: str) -> None:
    if action != "report" and not has_phonenumbers():
        raise DataError(
            f"cleaning.pii is {action!r}, but phonenumbers, which finds phone numbers, is not installed. {_INSTALL}, "
            "or set cleaning.pii: report."
        )


def _reason(example: Example) -> str | None:
    """The places of a row as `EMAIL jo…om, CARD 41…11`; None if it has no personal data. A report must not leak it."""
    places = [(text, place) for text in texts_of(example) for place in find_pii(text)]
    shown = dict.fromkeys(f"{place.kind} {_masked(text[place.start : place.end])}" for text, place in places)
    return ", ".join(shown) or None


def _finding(example: Example, reason: str) -> Finding:
    return finding(example, reason, text=redact(example.question or example.text))


def _masked(value: str) -> str:
    return f"{value[:2]}…{value[-2:]}"


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        tld = match["tld"].lower()
        is_domain = tld in _TOP_LEVEL_DOMAINS or len(tld) == 2 or tld.startswith("xn--")
        if is_domain and match[0].partition("@")[0] not in _NOT_PEOPLE:
            yield match.span()


def _cards(text: str) -> Iterator[tuple[int, int]]:
    if not _MAY_BE_CARD.search(text):
        return
    for match in _CARD.finditer(text):
        if is_card_number(re.sub(r"\D", "", match[0])):
            yield match.span()


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text) if _MAY_BE_IBAN.search(text) else ():
        end = _iban_end(match)
        if end is not None:
            yield match.start(), end


def _iban_end(match: re.Match[str]) -> int | None:
    """End of the IBAN at the beginning of a match, which may run on into the next word."""
    for length in range(len(match[0]), 14, -1):
        candidate = match[0][:length]
        is_whole = length == len(match[0]) or match[0][length] == " "
        if is_whole and is_iban(candidate.replace(" ", "")):
            return match.start() + length
    return None


def _ip_addresses(text: str) -> Iterator[tuple[int, int]]:
    if _MAY_BE_IPV4.search(text):
        yield from (match.span() for match in _IPV4.finditer(text) if _is_ipv4(text, match))
    if _MAY_BE_IPV6.search(text):
        yield from (match.span() for match in _IPV6.finditer(text) if _is_address(match[0]))


def _is_ipv4(text: str, match: re.Match[str]) -> bool:
    """Whether four numbers are an address: not a version, nor a section such as `1.2.3.4`."""
    before = text[max(0, match.start() - 24) : match.start()]
    if _NUMBERED.search(before) or not _is_address(match[0]):
        return False
    return any(int(part) > 9 for part in match[0].split(".")) or _ADDRESS_BEFORE.search(before) is not None


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or address.is_multicast or text.startswith("255."))


_FINDERS: dict[PiiKind, Callable[[str], Iterator[tuple[int, int]]]] = {
    "SECRET": find_secrets,
    "EMAIL": _emails,
    "IBAN": _ibans,
    "CARD": _cards,
    "IP_ADDRESS": _ip_addresses,
    "PHONE": find_phones,
}
