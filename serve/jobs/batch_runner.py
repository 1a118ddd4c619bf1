"""The background loop that claims and runs batches, and releases them when the server stops."""

import asyncio
import logging
import os
import secrets
import socket

from adapters.jobs.errors import ClaimLostError, UnknownIdError
from adapters.jobs.queue import STALE_AFTER_S
from adapters.jobs.records import Batch
from serve.background import Failures, is_told_to_end
from serve.jobs.batch_run import BatchContext, BatchRun

logger = logging.getLogger(__name__)

MAX_BATCHES = 8
"""Maximum number of concurrent batches, one per tenant; they share the free sequences."""

_LOOK_EVERY_S = 2.0
_PAUSE_AFTER_FAILURE_S = 10.0


class BatchRunner:
    """Runs the batches of one server; several servers may share the database.

    Args:
        stale_after_s: Take over batches of a server whose last heartbeat is older.
    """

    def __init__(self, context: BatchContext, failures: Failures, *, stale_after_s: float = STALE_AFTER_S) -> None:
        self.context = context
        self._failures = failures
        self._stale_after_s = stale_after_s
        self._worker = f"server-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._running: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Notify the runner of a new batch."""
        self._woken.set()

    async def run(self) -> None:
        """Run batches until cancelled."""
        await asyncio.to_thread(self._remove_old_results)
        try:
            while True:
                self._woken.clear()
                await asyncio.to_thread(self.context.queue.release_lost, stale_after_s=self._stale_after_s)
                await self._claim_all()
                try:
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._woken.wait()
                except TimeoutError:
                    pass
        finally:
            await self._stop()

    async def _claim_all(self) -> None:
        queue, base = self.context.queue, self.context.base
        while len(self._running) < MAX_BATCHES:
            batch = await asyncio.to_thread(queue.claim, self._worker, base=base, not_of=frozenset(self._running))
            if batch is None:
                return
            logger.info("Batch %s of %s requests starts or continues", batch.id, batch.num_total or "unchecked")
            self._running[batch.owner] = asyncio.create_task(self._run(batch))

    async def _run(self, batch: Batch) -> None:
        try:
            await BatchRun(batch, self._worker, self.context).run()
            logger.info("Batch %s has ended", batch.id)
        except ClaimLostError as error:
            logger.warning("Stopped work on batch %s: %s", batch.id, error)
        except BaseException as error:  # boundary of a task: the batch is retried
            await asyncio.to_thread(self.context.queue.release, batch.id, self._worker)
            if is_told_to_end(error):
                raise
            self._failures.note("batch_runner", error, f"Batch {batch.id} was interrupted and will be retried")
            await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)
        finally:
            self._running.pop(batch.owner, None)
            self.wake()

    def _remove_old_results(self) -> None:
        """Remove results of ended batches that a killed server left."""
        for path in self.context.results.glob("*.jsonl"):
            try:
                has_ended = self.context.queue.get(None, path.name.partition(".")[0]).has_ended
            except UnknownIdError:
                has_ended = True
            if has_ended:
                path.unlink(missing_ok=True)

    async def _stop(self) -> None:
        tasks = tuple(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
