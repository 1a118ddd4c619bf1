"""User-defined regular expressions, matched in linear time so that no pattern or answer can stall the server.

They use the syntax of Python's `re` and are matched by RE2, which supports neither lookaround nor backreferences.
"""

import re
from functools import lru_cache

import re2

_MAX_MEM_BYTES = 2 << 20  # of a compiled pattern: what it costs a character grows with that

_SPACES = ((0x09, 0x0D), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A),
           (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000))  # fmt: skip
_ENDS = (*zip((0, *(last + 1 for _, last in _SPACES)), (*(first - 1 for first, _ in _SPACES), 0x10FFFF), strict=True),)


def _ranges(pairs: tuple[tuple[int, int], ...]) -> str:
    return "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in pairs)


# To RE2, `\w`, `\d` and `\s` are ASCII; these are Python's, for use in brackets.
_CLASSES = {
    "w": r"\p{L}\p{N}_",
    "W": r"\p{M}\p{Pd}\p{Ps}\p{Pe}\p{Pi}\p{Pf}\p{Po}\p{S}\p{Z}\p{Cc}\p{Cf}\p{Co}"
    r"\x{203f}\x{2040}\x{2054}\x{fe33}\x{fe34}\x{fe4d}-\x{fe4f}\x{ff3f}",
    "d": r"\p{Nd}",
    "D": r"\P{Nd}",
    "s": _ranges(_SPACES),
    "S": _ranges(_ENDS),
}
_TOKEN = re.compile(r"\\(?:u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)|\{,\d+\}|.", re.DOTALL)


class LinearPattern:
    """A compiled regular expression.

    Raises:
        re.error: It is invalid, or cannot be matched in linear time.
    """

    def __init__(self, pattern: str) -> None:
        self._compiled = _compiled(pattern)

    def is_whole(self, text: str) -> bool:
        """Whether it matches all of a text."""
        return self._compiled.fullmatch(_encodable(text)) is not None

    def is_in(self, text: str) -> bool:
        """Whether it matches somewhere in a text."""
        return self._compiled.search(_encodable(text)) is not None


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> "re2._Regexp":
    try:
        re.compile(pattern)
    except (RecursionError, OverflowError) as error:
        raise re.error(str(error)) from None
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEM_BYTES
    try:
        return re2.compile(_in_re2(pattern), options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error, re2.error) else error
        raise re.error(f"it cannot be matched in linear time ({reason}): write it without (?=…), (?!…), \\1") from None


def _in_re2(pattern: str) -> str:
    """The same expression in RE2's syntax, where that differs; `\\b` stays, though it sees ASCII letters only."""
    tokens, is_class, is_first = [], False, False
    for token in _TOKEN.findall(pattern):
        was_first, is_first = is_first, False
        if not is_class and token == "[":
            is_class = is_first = True
        elif is_class and token == "^" and was_first:
            is_first = True
        elif is_class and token == "]" and not was_first:
            is_class = False
        is_literal = is_class and token == "[" and not is_first
        tokens.append(r"\[" if is_literal else _token(token, is_class))  # `[[:alpha:]]` means less to Python
    return "".join(tokens)


def _token(token: str, is_class: bool) -> str:
    escaped = token[1:] if token[0] == "\\" else ""
    if escaped[:1] in ("u", "U") and len(escaped) > 1:
        return rf"\x{{{escaped[1:]}}}"
    if escaped == "Z":
        return r"\z"
    if escaped in _CLASSES:
        return _CLASSES[escaped] if is_class else f"[{_CLASSES[escaped]}]"
    if token.startswith("{,") and not is_class:
        return "{0" + token[1:]
    return token


def _encodable(text: str) -> str:
    """Encode as UTF-8 for RE2; unpaired surrogates become question marks."""
    return text.encode(errors="replace").decode()
