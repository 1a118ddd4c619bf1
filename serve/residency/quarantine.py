"""Quarantine of versions that computed non-finite values, until an operator lifts it."""

import asyncio
import logging

from adapters.errors import AdapterError
from adapters.reference import Target, parse_reference
from adapters.store.quarantine import Quarantined
from adapters.store.store import AdapterStore
from serve.errors import QuarantinedError
from serve.observe.metrics import ServeMetrics
from serve.records import GenerationRecord, Source

logger = logging.getLogger(__name__)

NOT_FINITE = "it computed values that are not finite (NaN or infinity)"


class Quarantine:
    """The quarantined versions; an observer of generations.

    The store remembers, for other servers and for the next start. What it cannot remember, this process does.
    """

    def __init__(self, store: AdapterStore, metrics: ServeMetrics) -> None:
        self._store = store
        self._metrics = metrics
        self._unsaved: dict[Target, str] = {}
        self._saving: set[asyncio.Task[None]] = set()
        self._shown: set[Target] = set()

    def check(self, target: Target) -> None:
        """Check that a version is not quarantined.

        Raises:
            QuarantinedError: It may not.
        """
        if reason := self.reason(target):
            raise QuarantinedError(
                f"{str(target)!r} is quarantined: {reason}. Use another version; an operator can lift the quarantine "
                f"with POST /admin/adapters/{target}/unquarantine."
            )

    def reason(self, target: Target) -> str | None:
        """Why a version is out of service; None where it is not."""
        found = self._of(target.name).get(target.version)
        return self._unsaved.get(target) if found is None else f"{found.reason}, since {found.since}"

    def export(self) -> None:
        """Show in the metrics what the store remembers."""
        for name in self._store.names():
            self.follow(name)

    def follow(self, name: str) -> None:
        """Show in the metrics what the store remembers of one adapter; another server may have written it."""
        out = {Target(name, version) for version in self._of(name)}
        out |= {target for target in self._unsaved if target.name == name}
        for target in out | {target for target in self._shown if target.name == name}:
            self._metrics.adapter_quarantined(target, is_out=target in out)
        self._shown = out | {target for target in self._shown if target.name != name}

    def add(self, target: Target, reason: str = NOT_FINITE) -> None:
        """Take a version out of service at once; the store is told in the background."""
        self._shown.add(target)
        self._metrics.adapter_quarantined(target, is_out=True)
        if self.reason(target) is not None:
            return
        logger.error("%s is quarantined: %s. Requests for it get a 422.", target, reason)
        self._unsaved[target] = reason
        task = asyncio.get_running_loop().create_task(self._save(target, reason))
        self._saving.add(task)
        task.add_done_callback(self._saving.discard)

    async def saved(self) -> None:
        """Returns when the store has been told of all."""
        await asyncio.gather(*self._saving)

    async def lift(self, target: Target) -> None:
        """Put a version back into service.

        Raises:
            AdapterError: The store cannot be written.
        """
        await self.saved()
        await asyncio.to_thread(self._store.lift_quarantine, target)
        self._unsaved.pop(target, None)
        self._metrics.adapter_quarantined(target, is_out=False)
        logger.warning("%s is no longer quarantined: an operator lifted it.", target)

    def generation_started(self, lora_name: str | None, source: Source) -> None:
        """No action is needed."""

    def generation_finished(self, record: GenerationRecord) -> None:
        if record.is_finite or record.lora_name is None:
            return
        reference = parse_reference(record.lora_name)
        if reference.version is not None:
            self.add(Target(reference.name, reference.version))

    def _of(self, name: str) -> dict[int, Quarantined]:
        try:
            return self._store.quarantined(name)
        except AdapterError as error:  # a damaged file takes nothing out of service
            logger.error("Cannot read the quarantine of %s: %s", name, error)
            return {}

    async def _save(self, target: Target, reason: str) -> None:
        try:
            await asyncio.to_thread(self._store.quarantine, target, reason)
        except Exception as error:  # boundary of a task that nobody waits for
            logger.error("Cannot store the quarantine of %s, so it ends with this process: %s", target, error)
        else:
            self._unsaved.pop(target, None)
