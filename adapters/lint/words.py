"""How findings of a lint are worded: a problem, and a few examples of where it is."""

from collections.abc import Sequence

from adapters.lint.config import Finding

_MAX_EXAMPLES = 3
_MAX_NAME_CHARS = 300


def broken(code: str, problem: str, names: Sequence[str]) -> Finding:
    return Finding("error", code, f"{problem}: {examples(names)}.", "Save it again, or give its own base.")


def examples(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_EXAMPLES} more" if len(names) > _MAX_EXAMPLES else ""
    return ", ".join(map(_printable, names[:_MAX_EXAMPLES])) + more


def _printable(name: str) -> str:
    """A name from a file as one may show it on a terminal."""
    short = name[:_MAX_NAME_CHARS]
    return short if short.isprintable() else repr(short)
