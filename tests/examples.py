"""How many examples of a costly property are tried."""

from hypothesis import settings

_WHOLE = 100  # hypothesis' own number, which tests/conftest.py leaves in the profile "whole"
_LEAST = 5


def at_most(num_examples: int) -> settings:
    """So many with the profile `whole`; with `fast`, as large a part of them as it takes of other properties."""
    return settings(max_examples=max(_LEAST, num_examples * settings().max_examples // _WHOLE))
