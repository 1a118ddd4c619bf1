"""Privacy modes of samples: store nothing, numbers only, redacted text, or full text.

Patterns and checksums find what has a form: e-mail addresses, telephone numbers, IBANs, card numbers, IP addresses,
keys and passwords. They do not find names, street addresses or illnesses; nothing here can. In doubt, a long number
goes: a number too many costs a sample little.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Literal

from quality.numbers import find_iban, redact_numbers

Privacy = Literal["none", "features", "redacted", "full"]

_HASH_CHARS = 16
_ID_HASH_CHARS = 32

_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.S
)
# What follows a word for a secret and a colon or an equals sign; `Bearer` needs neither.
_NAMED_SECRET = re.compile(
    r"(?P<name>\b(?:api[ _-]?key|access[ _-]?key|client[ _-]?secret|auth[ _-]?token|token|secret|password|passwd|pwd)"
    r"\b[\"']?\s{0,3}[:=]\s{0,3}|\bbearer\s{1,3})(?P<secret>\"[^\"\n]{4,200}\"|'[^'\n]{4,200}'|[^\s\"'\[\]]{6,500})",
    re.IGNORECASE,
)
# Begins as the keys of well-known services do, or is long and mixes letters and digits as no word does.
_KEY = re.compile(
    r"(?<![\w-])(?:"
    r"(?:sk|pk|rk|gh[opsur]|github_pat|glpat|xox[abeoprs]|hf|npm|pypi|lk)[-_][\w-]{12,500}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{6,2000}\.[\w-]{6,4000}(?:\.[\w-]{0,2000})?"
    r"|(?=[\w+=-]{0,200}?\d[\w+=-]{0,200}?\d[\w+=-]{0,200}?\d)(?=[\w+=-]{0,200}?[A-Za-z])[\w+=-]{28,2000}"
    r")(?![\w-])"
)
_PART = r"[^\s@<>()\[\]\",:;]"
_EMAIL = re.compile(rf"(?<!{_PART}){_PART}+@{_PART}+")  # begins at a border only: each character is looked at once
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f.]{0,15}:)[0-9A-Fa-f:.]{2,45}(?:%\w{1,16})?(?!\w)")


def kept_text(text: str, privacy: Privacy) -> str | None:
    """The text as this privacy mode may store it."""
    if privacy == "full":
        return text
    return redact(text) if privacy == "redacted" else None


def tenant_hash(key: bytes, tenant: str) -> str:
    """A keyed hash of a tenant's name, always the same."""
    return hmac.new(key, tenant.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:_HASH_CHARS]


def user_hash(key: bytes, user: str) -> str:
    """A keyed hash of a user in a trial; it cannot be joined with tenants' hashes."""
    return tenant_hash(key, f"user\0{user}")


def id_hash(key: bytes, tenant: str, given_id: str) -> str:
    """A keyed hash of the id of a request or of an answer, which another tenant's same id does not have."""
    text = f"id\0{tenant}\0{given_id}".encode(errors="surrogatepass")
    return hmac.new(key, text, hashlib.sha256).hexdigest()[:_ID_HASH_CHARS]


def redact(text: str) -> str:
    """The text with personal data replaced by `[EMAIL]`, `[PHONE]`, `[IBAN]`, `[CARD]`, `[NUMBER]`, `[IP]`, …"""
    text = _PRIVATE_KEY.sub("[KEY]", text)
    text = _NAMED_SECRET.sub(r"\g<name>[SECRET]", text)
    text = _EMAIL.sub(_email, text)
    text = find_iban(text, "[IBAN]")
    text = _KEY.sub("[KEY]", text)
    text = _IPV6.sub(_address(IPv6Address), text)
    text = _IPV4.sub(_address(IPv4Address), text)
    return redact_numbers(text)


def _email(found: re.Match[str]) -> str:
    """A full stop after it belongs to the sentence."""
    return "[EMAIL]" + "." * (len(found[0]) - len(found[0].rstrip(".")))


def _address(kind: type[IPv4Address] | type[IPv6Address]) -> Callable[[re.Match[str]], str]:
    def replaced(found: re.Match[str]) -> str:
        address = found[0].rstrip(".")
        try:
            kind(address)
        except AddressValueError:
            return found[0]
        is_told = any(char.isalnum() for char in address)  # "::" is an address that tells nothing
        return "[IP]" + found[0][len(address) :] if is_told else found[0]

    return replaced
