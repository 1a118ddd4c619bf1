"""Texts of users as they can be shown (control characters, which could command a terminal, as escapes), and counts."""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown_text(text: str) -> str:
    """Line breaks and tabs stay; other control characters, changes of direction and half characters are escaped."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def one_line(text: str) -> str:
    return shown_text(text).replace("\n", "⏎ ").replace("\t", " ")


def num_rows(number: int) -> str:
    return f"{number:,} row" if number == 1 else f"{number:,} rows"
