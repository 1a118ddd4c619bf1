"""Mirror a remote store's histories into the local store, which `StoreWatcher` watches."""

import asyncio
import logging

from adapters.errors import AdapterError
from adapters.remote.remote import RemoteStore
from serve.background import Failures

logger = logging.getLogger(__name__)


class RemoteMirror:
    """Mirrors a remote store's histories until cancelled; the store's watcher sees what changed."""

    def __init__(self, remote: RemoteStore, interval_s: float, failures: Failures | None = None) -> None:
        self._remote = remote
        self._interval_s = interval_s
        self._failures = failures or Failures()

    async def run(self) -> None:
        """Poll until cancelled. While the remote store is unreachable, local versions are still served."""
        was_away = False
        while True:
            try:
                await asyncio.to_thread(self._remote.sync)
                was_away = False
            except AdapterError as error:
                if not was_away:
                    logger.warning("Cannot mirror the remote store: %s", error)
                was_away = True
            except Exception as error:  # boundary of a loop: the next look comes all the same
                self._failures.note("remote_mirror", error, "Mirroring the remote store failed")
            await asyncio.sleep(self._interval_s)
