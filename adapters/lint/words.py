"""Wording of findings: a problem with a few examples."""

from collections.abc import Sequence

from adapters.lint.config import LintFinding

_MAX_EXAMPLES = 3
_MAX_NAME_CHARS = 300


def broken(code: str, problem: str, names: Sequence[str]) -> LintFinding:
    return LintFinding(
        "error", code, f"{problem}: {examples(names)}.", "Save it again, or give the base that it was trained on."
    )


def examples(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_EXAMPLES} more" if len(names) > _MAX_EXAMPLES else ""
    return ", ".join(map(_printable, names[:_MAX_EXAMPLES])) + more


def _printable(name: str) -> str:
    """A name from a file, escaped for the terminal."""
    short = name[:_MAX_NAME_CHARS]
    return short if short.isprintable() else repr(short)
