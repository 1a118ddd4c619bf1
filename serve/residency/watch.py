"""Watch the store: publications, promotions, pins and removals of other processes take effect within seconds."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from watchfiles import Change, awatch

from adapters.errors import AdapterError
from adapters.reference import DEFAULT_ALIAS, Target, is_adapter_name
from adapters.release.traffic import CANARY_ALIAS
from adapters.store.history import HISTORY_FILE, removed_versions
from adapters.store.quarantine import QUARANTINE_FILE
from adapters.store.store import AdapterStore
from serve.background import Backoff, Failures
from serve.errors import NotReadyError, ServeError
from serve.residency.residency import Residency

logger = logging.getLogger(__name__)

_DEBOUNCE_MS = 200
_STOP_MS = 500  # a shutdown waits no longer than this for the watching thread


@dataclass
class _Behind:
    """An adapter that could not be followed, and when that is tried again."""

    again_s: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)


class StoreWatcher:
    """Keeps the resident versions as the store wants them. Which version a name means is read at each request."""

    def __init__(
        self,
        store: AdapterStore,
        residency: Residency,
        retired: Callable[[Target], None],
        failures: Failures | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._residency = residency
        self._retired = retired
        self._failures = failures or Failures()
        self._clock = clock
        self._behind: dict[str, _Behind] = {}
        self._is_begun = False

    async def run(self) -> None:
        """Follow until cancelled; the kernel tells of changed files. What failed is tried again."""
        while True:
            await self._watch()
            logger.warning("The folder %s was replaced; watching the new one.", self._store.root)

    async def _watch(self) -> None:
        """Follow until the store's folder is replaced: nothing would tell of changes in the new one."""
        root = self._store.root
        root.mkdir(parents=True, exist_ok=True)
        watched = root.stat()
        is_again, self._is_begun = self._is_begun, True
        changing = awatch(
            root, watch_filter=_is_followed, debounce=_DEBOUNCE_MS, rust_timeout=_STOP_MS, yield_on_timeout=True
        )
        async with aclosing(changing):
            async for changes in changing:
                changed = {Path(path).parent.name for _, path in changes}
                if is_again:  # nobody saw what changed since the watch before this one ended
                    changed |= set(await asyncio.to_thread(self._store.names))
                    is_again = False
                for name in sorted(changed | self._due()):
                    await self.follow(name)
                if not (root.exists() and os.path.samestat(root.stat(), watched)):
                    return

    async def follow_all(self) -> None:
        """Pin what the store says is pinned."""
        for name in await asyncio.to_thread(self._store.names):
            await self.follow(name)

    async def follow(self, name: str) -> None:
        """Bring one adapter's residents in line with its history; failures are logged, and retried where that helps."""
        try:
            self._residency.quarantine.follow(name)
            await self._unload_removed(name)
            await self._follow_pins(name)
            await self._prefetch(name)
        except NotReadyError as error:
            logger.warning("Cannot apply changes of %s: %s", name, error)
            self._follow_later(name)
        except (AdapterError, ServeError) as error:
            logger.warning("Cannot apply changes of %s: %s", name, error)
        except Exception as error:  # boundary: the other adapters must be followed all the same
            self._failures.note("store_watcher", error, f"Applying changes of {name} failed")
            self._follow_later(name)
        else:
            self._behind.pop(name, None)

    def _follow_later(self, name: str) -> None:
        behind = self._behind.setdefault(name, _Behind())
        behind.again_s = self._clock() + behind.backoff.next_s()

    def _due(self) -> set[str]:
        return {name for name, behind in self._behind.items() if behind.again_s <= self._clock()}

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


def _is_followed(_: Change, path: str) -> bool:
    file = Path(path)
    return file.name in (HISTORY_FILE, QUARANTINE_FILE) and is_adapter_name(file.parent.name)
