"""Aliases as pure functions of an adapter's history: current targets, moves and rollbacks."""

from collections.abc import Iterable, Mapping, Sequence

from adapters.reference import DEFAULT_ALIAS
from adapters.store.history import Event


def current_aliases(history: Iterable[Event]) -> dict[str, int]:
    """The version of each alias, by alias. An alias ends with the version that it points to."""
    found: dict[str, int] = {}
    for event in history:
        if event.kind == "removed":
            found = {alias: version for alias, version in found.items() if version != event.version}
        elif event.alias is not None and event.version is not None:
            found[event.alias] = event.version
    return found


def plan_removal(history: Sequence[Event], version: int, *, at: str, reason: str) -> list[Event]:
    """The events that remove a version; each of its aliases goes back to the version before, or ends with it."""
    events = []
    for alias in sorted(alias for alias, target in current_aliases(history).items() if target == version):
        earlier = rollback_version(history, alias)
        if earlier is not None:
            back = Event(kind="rolled_back", at=at, version=earlier, alias=alias, previous=version, reason=reason)
            events.append(back)
    return [*events, Event(kind="removed", at=at, version=version, reason=reason)]


def plan_moves(history: Sequence[Event], moves: Mapping[str, int], *, at: str, reason: str) -> list[Event]:
    """The events that move each alias to its version; none for an alias that already points there.

    `stable` moves first: if it takes the canary's version while a new canary is set, the old canary's traffic split
    ends and does not apply to the new one.
    """
    before = current_aliases(history)
    ordered = sorted(moves.items(), key=lambda move: (move[0] != DEFAULT_ALIAS, move[0]))
    return [
        Event(kind="promoted", at=at, version=version, alias=alias, previous=before.get(alias), reason=reason)
        for alias, version in ordered
        if before.get(alias) != version
    ]


def rollback_version(history: Iterable[Event], alias: str) -> int | None:
    """The version that a rollback of the alias restores, or None.

    A promotion stacks a version on the alias and a rollback takes it off again, so that rolling back twice
    never returns to the version which was rolled back first. Removed versions are left out.
    """
    stack: list[int] = []
    for event in history:
        if event.version is None:
            continue
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
    """Position where the version was last pushed on the stack, or 0 if it was removed."""
    return max((index for index, stacked in enumerate(stack) if stacked == version), default=0)
