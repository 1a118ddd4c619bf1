"""Traffic between `stable` and `canary`, and pins, as pure functions of an adapter's history."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from adapters.errors import InvalidSplitError
from adapters.reference import DEFAULT_ALIAS
from adapters.release.aliases import current_aliases
from adapters.store.history import Event

CANARY_ALIAS = "canary"

_HASH_BYTES = 6  # 48 bits, which a float holds exactly: the share stays below 1


@dataclass(frozen=True)
class Split:
    """How requests for a bare name are split between `stable` and `canary`."""

    canary_weight: float = 0.0
    """Share of sticky keys routed to the canary, 0 to 1."""
    is_shadow: bool = False
    """The canary gets a copy of the requests, but `stable` answers all of them, whatever the weight."""

    def __str__(self) -> str:
        return "shadow" if self.is_shadow else f"{self.canary_weight:.4g}"


def current_split(history: Iterable[Event]) -> Split:
    """The current split. It is reset when `stable` and `canary` point to the same version."""
    aliases: dict[str, int] = {}
    split = Split()
    for event in history:
        if event.kind == "split":
            split = Split(event.canary_weight or 0.0, bool(event.is_shadow))
        elif event.alias in (DEFAULT_ALIAS, CANARY_ALIAS) and event.version is not None:
            aliases[event.alias] = event.version
            if aliases.get(DEFAULT_ALIAS) == aliases.get(CANARY_ALIAS):
                split = Split()
    return split


def pinned_versions(history: Iterable[Event]) -> frozenset[int]:
    """Versions that stay resident; removing a version also removes its pin."""
    pinned: set[int] = set()
    for event in history:
        if event.kind == "pinned" and event.version is not None:
            pinned.add(event.version)
        elif event.kind in ("unpinned", "removed") and event.version is not None:
            pinned.discard(event.version)
    return frozenset(pinned)


def choose(split: Split, aliases: Mapping[str, int], sticky_key: str, salt: str) -> str:
    """The alias that answers a bare reference: "stable" or "canary".

    The same key always gets the same alias, and raising the weight only moves keys from stable to canary.

    Args:
        sticky_key: Identifies a client that should stay with one version: a user, a session, an API key.
        salt: Makes the draw independent for each adapter, e.g. the adapter's name.
    """
    if split.is_shadow or CANARY_ALIAS not in aliases:
        return DEFAULT_ALIAS
    return CANARY_ALIAS if key_share(sticky_key, salt) < split.canary_weight else DEFAULT_ALIAS


def key_share(sticky_key: str, salt: str) -> float:
    """Map a key uniformly to [0, 1)."""
    # A client may send text that is no Unicode; it must not crash the server.
    text = f"{salt}\0{sticky_key}".encode(errors="surrogatepass")
    return float(int.from_bytes(sha256(text).digest()[:_HASH_BYTES])) / float(1 << 8 * _HASH_BYTES)


def plan_split(
    history: Sequence[Event], canary_weight: float | None, is_shadow: bool | None, *, at: str, reason: str
) -> list[Event]:
    """The event that changes the split; none if nothing changes. An argument of None keeps the current value.

    Raises:
        InvalidSplitError: The weight is not 0 to 1, or there is no canary to send traffic to.
    """
    current = current_split(history)
    wanted = Split(
        current.canary_weight if canary_weight is None else canary_weight,
        current.is_shadow if is_shadow is None else is_shadow,
    )
    if wanted == current:
        return []
    _check_split(wanted, current_aliases(history))
    return [Event(kind="split", at=at, canary_weight=wanted.canary_weight, is_shadow=wanted.is_shadow, reason=reason)]


def _check_split(split: Split, aliases: Mapping[str, int]) -> None:
    if not 0.0 <= split.canary_weight <= 1.0:
        raise InvalidSplitError(f"canary_weight must be 0 to 1; got {split.canary_weight!r}.")
    if (split.canary_weight > 0 or split.is_shadow) and CANARY_ALIAS not in aliases:
        raise InvalidSplitError(
            f"Cannot split traffic without a canary; the aliases are {dict(aliases)!r}. "
            "Promote one first: `lorikeet adapters promote NAME@VERSION --alias canary`."
        )
