"""Lines of a JSON Lines file."""

from collections.abc import Iterator


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not blank, with their numbers from 1.

    Only a line feed ends a line, as jsonlines.org has it. `str.splitlines` also ends one at U+2028, U+2029 and U+0085,
    which JSON allows unescaped in a string.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line
