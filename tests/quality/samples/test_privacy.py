"""What has a form is found wherever it stands; what has none stays as it was."""

import re
import string
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.monitor import Privacy as ConfiguredPrivacy
from quality.numbers import _IBAN_LENGTHS, is_iban, is_luhn
from quality.samples.privacy import Privacy, kept_text, redact, tenant_hash

GAPS = st.sampled_from(["", " ", "-", "\u00a0"])
WORDS = st.text(alphabet=string.ascii_letters + "äöß éñ'!?\n", max_size=40)
DIGITS = string.digits


@st.composite
def cards(draw: st.DrawFn) -> str:
    """With a right check digit, in groups of four."""
    digits = draw(st.text(DIGITS, min_size=12, max_size=18))
    number = next(digits + check for check in DIGITS if is_luhn(digits + check))
    return draw(GAPS).join(re.findall(".{2,4}(?!.$)|.{2,5}$", number))


@st.composite
def ibans(draw: st.DrawFn) -> str:
    country = draw(st.sampled_from(sorted(_IBAN_LENGTHS)))
    length = _IBAN_LENGTHS[country] - 4
    account = draw(st.text(DIGITS + string.ascii_uppercase, min_size=length, max_size=length))
    checks = (f"{number:02d}" for number in range(2, 99))
    number = next(country + check + account for check in checks if is_iban(country + check + account))
    return draw(GAPS).join(re.findall(".{1,4}", number))


@st.composite
def international_phones(draw: st.DrawFn) -> str:
    groups = draw(st.lists(st.text(DIGITS, min_size=2, max_size=4), min_size=3, max_size=3))
    prefix = draw(st.sampled_from(["+44", "+1 ", "0049 ", "+ 7"]))
    return prefix + draw(st.sampled_from(["", " ", "-", ".", ") "])).join(groups)


KEYS = st.one_of(
    st.from_regex(r"(sk|ghp|glpat|hf|lk)[-_][A-Za-z0-9]{24,40}", fullmatch=True),
    st.from_regex(r"AKIA[0-9A-Z]{16}", fullmatch=True),
    st.from_regex(r"eyJ[A-Za-z0-9]{20}\.eyJ[A-Za-z0-9]{20}\.[A-Za-z0-9_-]{20}[A-Za-z0-9]", fullmatch=True),
    st.from_regex(r"[a-f]{4}[0-9]{4}[a-f0-9]{32}", fullmatch=True),
)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Mail bob.o'neil+x@mail.example.com. Now.", "Mail [EMAIL]. Now."),
        ("<a@b.de>, or (c@d.fr)", "<[EMAIL]>, or ([EMAIL])"),
        ("+44 20 7946 0958 or (555) 123-4567", "[PHONE] or [PHONE]"),
        ("Ruf 0221/123 45 67 an: 06 12 34 56 78", "Ruf [PHONE] an: [PHONE]"),
        ("IBAN DE89 3704 0044 0532 0130 00 by Friday", "IBAN [IBAN] by Friday"),
        ("gb29nwbk60161331926819.", "[IBAN]."),
        ("card 4111 1111 1111 1111 12/27, code 123", "card [CARD] 12/27, code 123"),
        ("4111111111111111 5500 0000 0000 0004", "[CARD] [CARD]"),
        ("from 10.0.0.1. To http://[2001:db8::1]:80/x", "from [IP]. To http://[[IP]]:80/x"),
        ("OPENAI_API_KEY=sk-proj-abcdefghijkl", "OPENAI_API_KEY=[KEY]"),
        ("my password: hunter22, ok", "my password: [SECRET] ok"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [SECRET]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- x", "[KEY] x"),
        ("order 12345678901234567890", "order [NUMBER]"),
        ("call 555-123-4567 on 2026-11-22 12:30", "call [PHONE] on 2026-11-22 12:30"),
        ("4111 1111 1111 1111 2026-11-22", "[CARD] 2026-11-22"),
    ],
)
def test_what_has_a_form_is_replaced_by_what_it_was(text: str, redacted: str) -> None:
    assert redact(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "On 2026-11-22 12:30, and 22.11.2026, and 11/22/2026.",
        "Code I20.9, MCC 5812, 2019-2020, 3.14159, 1 2 3 4 5 6 7 8 9 10, 12:30:45.",
        "std::vector, @bob, a token of love, secret agents, password?",
        "Angela Merkel lives at 4 Main Street.",  # names and streets have no form
    ],
)
def test_what_has_no_such_form_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.slow
@given(WORDS, st.emails(), WORDS)
def test_no_email_address_is_kept(before: str, address: str, after: str) -> None:
    assert redact(f"{before} {address} {after}") == f"{before} [EMAIL] {after}"


@given(WORDS, cards(), WORDS)
def test_no_card_number_is_kept(before: str, card: str, after: str) -> None:
    redacted = redact(f"{before} {card} {after}")
    assert not set(DIGITS) & set(redacted)


@given(WORDS, ibans(), WORDS)
def test_no_iban_is_kept(before: str, iban: str, after: str) -> None:
    assert redact(f"{before} {iban}. {after}").count("[IBAN]") == 1
    assert not set(DIGITS) & set(redact(f"{before} {iban}. {after}"))


@given(WORDS, st.ip_addresses().map(str).filter(lambda address: address != "::"), WORDS)
def test_no_ip_address_is_kept(before: str, address: str, after: str) -> None:
    assert redact(f"{before} {address} {after}") == f"{before} [IP] {after}"


@given(WORDS, international_phones(), WORDS)
def test_no_international_telephone_number_is_kept(before: str, phone: str, after: str) -> None:
    assert not set(DIGITS) & set(redact(f"{before} {phone} {after}"))


@pytest.mark.slow
@given(WORDS, KEYS, WORDS)
def test_no_key_is_kept(before: str, key: str, after: str) -> None:
    assert redact(f"{before} {key} {after}") == f"{before} [KEY] {after}"


@given(st.text())
def test_to_redact_twice_is_to_redact_once(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@given(WORDS)
def test_words_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece",
    ["1", "1 ", "4111 1111 1111 1111 ", "a@", "a:", "x" * 7, "eyJ."]
    + [pytest.param(piece, marks=pytest.mark.slow) for piece in ("a1-", "DE89 ")],
)
def test_a_hostile_text_takes_no_time_that_grows_with_its_square(piece: str) -> None:
    hostile = piece * (200_000 // len(piece))  # its square would be hours
    assert redact(f"{hostile} from 10.0.0.1").endswith(" from [IP]")


def test_a_mode_keeps_what_it_says() -> None:
    modes: tuple[Privacy, ...] = get_args(Privacy)
    assert {mode: kept_text("ask bob@example.com", mode) for mode in modes} == {
        "none": None,
        "features": None,
        "redacted": "ask [EMAIL]",
        "full": "ask bob@example.com",
    }


def test_the_configuration_has_the_same_modes() -> None:
    assert get_args(ConfiguredPrivacy) == get_args(Privacy)


def test_a_tenant_is_told_by_its_hash_only_with_the_key() -> None:
    hashed = tenant_hash(b"key", "acme")
    assert hashed == tenant_hash(b"key", "acme")
    assert len({hashed, tenant_hash(b"key", "umbrella"), tenant_hash(b"other", "acme")}) == 3
    assert re.fullmatch("[0-9a-f]{16}", hashed)
