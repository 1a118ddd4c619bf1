"""Follows the store: what another process publishes, promotes, pins or removes takes effect here within seconds."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from watchfiles import Change, awatch

from adapters.errors import AdapterError
from adapters.history import HISTORY_FILE, removed_versions
from adapters.reference import DEFAULT_ALIAS, Target, is_adapter_name
from adapters.store import AdapterStore
from adapters.traffic import CANARY_ALIAS
from serve.errors import ServeError
from serve.residency import Residency

logger = logging.getLogger(__name__)

_DEBOUNCE_MS = 200
_STOP_MS = 500  # a shutdown waits no longer than this for the watching thread


class StoreWatcher:
    """Keeps the resident versions as the store wants them. Which version a name means is read at each request."""

    def __init__(self, store: AdapterStore, residency: Residency, retired: Callable[[Target], None]) -> None:
        self._store = store
        self._residency = residency
        self._retired = retired

    async def run(self) -> None:
        """Follow until cancelled; the kernel tells of changed files, nothing is polled."""
        self._store.root.mkdir(parents=True, exist_ok=True)
        async for changes in awatch(
            self._store.root, watch_filter=_is_history, debounce=_DEBOUNCE_MS, rust_timeout=_STOP_MS
        ):
            for name in sorted({Path(path).parent.name for _, path in changes}):
                await self.follow(name)

    async def follow_all(self) -> None:
        """Pin what the store says is pinned."""
        for name in await asyncio.to_thread(self._store.names):
            await self.follow(name)

    async def follow(self, name: str) -> None:
        """Bring one adapter's residents in line with its history; what cannot be done is logged."""
        try:
            await self._unload_removed(name)
            await self._follow_pins(name)
            await self._prefetch(name)
        except (AdapterError, ServeError) as error:
            logger.warning("Following %s: %s", name, error)

    async def _unload_removed(self, name: str) -> None:
        for version in sorted(removed_versions(self._store.history(name))):
            target = Target(name, version)
            await self._residency.unpin(target)
            await self._residency.unload(target)
            self._retired(target)

    async def _follow_pins(self, name: str) -> None:
        pinned = self._store.pins(name)
        for target in self._residents_of(name):
            if target.version not in pinned:
                await self._residency.unpin(target)
        for version in sorted(pinned):
            await self._residency.pin(Target(name, version))

    async def _prefetch(self, name: str) -> None:
        """Load what is in traffic of an adapter that is in use, so that a promotion costs no request a cold start."""
        if self._residents_of(name):
            aliases = self._store.aliases(name)
            for alias in (DEFAULT_ALIAS, CANARY_ALIAS):
                if alias in aliases:
                    await self._residency.load(Target(name, aliases[alias]))

    def _residents_of(self, name: str) -> list[Target]:
        return [target for target in self._residency.residents if target.name == name]


def _is_history(_: Change, path: str) -> bool:
    file = Path(path)
    return file.name == HISTORY_FILE and is_adapter_name(file.parent.name)
