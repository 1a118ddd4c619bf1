"""Texts of users as they can be shown (control characters, which could command a terminal, as escapes), and counts."""

from config.terminal import shown_text as shown_text


def one_line(text: str) -> str:
    return shown_text(text).replace("\n", "⏎ ").replace("\t", " ")


def num_rows(number: int) -> str:
    return f"{number:,} row" if number == 1 else f"{number:,} rows"
