"""Keys, tokens and passwords in text, by the forms that their issuers give them."""

import math
import re
from collections import Counter
from collections.abc import Iterator

_ISSUED = re.compile(
    r"(?<![\w-])(?:"
    r"sk-(?:ant-|proj-|svcacct-|or-v1-)?[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic, OpenRouter
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}|glpat-[\w-]{20,}"
    r"|xox[abeprs]-[0-9A-Za-z-]{10,}"  # Slack
    r"|AIza[0-9A-Za-z_-]{35}|ya29\.[0-9A-Za-z_-]{20,}"  # Google
    r"|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}"
    r"|[spr]k_(?:live|test)_[0-9A-Za-z]{16,}"  # Stripe
    r"|SG\.[\w-]{22}\.[\w-]{43}"  # SendGrid
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"  # JSON web token
    r")(?![\w-])"
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z0-9 ]*PRIVATE KEY-----)?")
_NAMES = ("key", "token", "secret", "passw", "bearer")
_ASSIGNED = re.compile(
    r"(?:api|access|secret|auth|private)[_-]?(?:key|token)|client[_-]?secret|passw(?:or)?d|bearer", re.IGNORECASE
)
_VALUE = re.compile(r"[\"']?\s*(?::=|=>|[:=]|(?<=[Bb]earer)\s)\s*[\"']?(?P<value>[A-Za-z0-9+/_.~!@#$%^&*-]{12,})")
_IN_URL = re.compile(r"://[^\s/:@\"'<>]+:(?P<value>[^\s/:@\"'<>{}$]{6,})@[\w.-]+")

_MARKERS = (
    *("sk-", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "AIza", "ya29."),
    *("hf_", "npm_", "pypi-", "k_live_", "k_test_", "SG.", "eyJ"),
)
_MIN_ENTROPY_BITS = 3.0
_PLACEHOLDER = re.compile(r"your|example|placeholder|changeme|xxxx|\*\*\*|\.\.\.|<|dummy|redacted", re.IGNORECASE)


def find_secrets(text: str) -> Iterator[tuple[int, int]]:
    """Places of secrets, which may overlap."""
    if any(marker in text for marker in _MARKERS):
        yield from (match.span() for match in _ISSUED.finditer(text) if _is_random(match[0]))
    if "PRIVATE KEY-----" in text:
        yield from (match.span() for match in _PRIVATE_KEY.finditer(text))
    if "://" in text:
        yield from (match.span("value") for match in _IN_URL.finditer(text))
    lower = text.lower()
    for name in _ASSIGNED.finditer(text) if any(name in lower for name in _NAMES) else ():
        match = _VALUE.match(text, name.end())
        if match and _is_random(match["value"]) and not _PLACEHOLDER.search(match["value"]):
            yield match.span("value")


def _is_random(text: str) -> bool:
    """Whether it has digits and letters, as varied as drawn ones: names of settings and placeholders are not."""
    has_both = any(char.isdigit() for char in text) and any(char.isalpha() for char in text)
    return has_both and _entropy_bits(text) >= _MIN_ENTROPY_BITS


def _entropy_bits(text: str) -> float:
    """Entropy of a character, in bits, by the text's own frequencies."""
    return -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values())
