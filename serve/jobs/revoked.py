"""Cancels unfinished fine-tuning jobs of API keys that have been revoked. A batch looks after its own key."""

import asyncio
from collections.abc import Callable

from adapters.jobs.records import JobFailure
from serve.access.keys import ANONYMOUS, KeyRecord
from serve.jobs.services import JobServices

_LOOK_EVERY_S = 2.0
_REASON = JobFailure(code="invalid_api_key", message="The API key that created the job is no longer valid.")


class RevokedKeys:
    """Checks the keys of unfinished jobs, as long as the server runs; a worker needs no key file.

    Args:
        find_key: The key with this id, if it is valid.
    """

    def __init__(self, services: JobServices, find_key: Callable[[str], KeyRecord | None]) -> None:
        self._services = services
        self._find_key = find_key

    async def run(self) -> None:
        """Check every two seconds, until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def check(self) -> None:
        """Cancel the jobs of each key that is not valid. Jobs made on a server without keys stay."""
        services = self._services
        for key_id in await services.run(services.queue.unfinished_keys):
            if key_id == ANONYMOUS.id or self._find_key(key_id) is not None:
                continue
            for job in await services.run(services.queue.revoke, key_id, _REASON):
                await services.run(services.audit.record, "job.cancel", job.id, tenant=job.owner, key_id=key_id)
