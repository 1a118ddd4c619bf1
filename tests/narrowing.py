"""Types that a test knows more of than its subject promises."""

from typing import TypeVar

Value = TypeVar("Value")


def not_none(value: Value | None) -> Value:
    """The value; fails where there is none."""
    assert value is not None
    return value
