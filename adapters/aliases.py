"""Aliases as pure functions of an adapter's history: where each points, and where a rollback leads."""

from collections.abc import Iterable

from adapters.history import Event


def current_aliases(history: Iterable[Event]) -> dict[str, int]:
    """Version that each alias points to, by alias."""
    return {event.alias: event.version for event in history if event.alias is not None}


def rollback_version(history: Iterable[Event], alias: str) -> int | None:
    """Version that a rollback of the alias leads to, or None.

    A promotion stacks a version on the alias and a rollback takes it off again, so that rolling back twice
    never returns to the version which was rolled back first. Removed versions are left out.
    """
    stack: list[int] = []
    for event in history:
        if event.kind == "removed":
            stack = [version for version in stack if version != event.version]
        elif event.alias == alias:
            if event.kind == "rolled_back":
                stack = stack[: _last_index(stack, event.version)]
            if stack[-1:] != [event.version]:
                stack.append(event.version)
    earlier = [version for version in stack if version != stack[-1]]
    return earlier[-1] if earlier else None


def _last_index(stack: list[int], version: int) -> int:
    """Where the version was last stacked, or 0 when it is gone."""
    return max((index for index, stacked in enumerate(stack) if stacked == version), default=0)
