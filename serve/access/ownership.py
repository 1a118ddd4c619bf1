"""Which models a key may use: those of its patterns, and those that its tenant's jobs have made; never another's."""

from collections.abc import Callable

from serve.access.keys import ANONYMOUS, KeyRecord, may_use

OwnerOf = Callable[[str], str | None]
"""The tenant whose jobs publish under an adapter's name; None if no job does."""


def _no_owner(_: str) -> str | None:
    return None


class ModelAccess:
    """Decides by keys and by owners. Models made without keys belong to everybody."""

    def __init__(self, owner_of: OwnerOf = _no_owner) -> None:
        self._owner_of = owner_of

    def may_use(self, key: KeyRecord, name: str) -> bool:
        """Whether a key allows an adapter, with or without version or alias, or the base by its served name."""
        owner = self._owner_of(name.partition("@")[0])
        if owner is None or owner == ANONYMOUS.tenant:
            return may_use(key, name)
        return owner == key.tenant
