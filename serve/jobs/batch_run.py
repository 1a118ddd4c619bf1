"""Run one batch from its input to its output files; after a crash it continues where the results end."""

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from adapters.jobs.batches import BatchQueue
from adapters.jobs.errors import JobsDiskError
from adapters.jobs.files import FileStore
from adapters.jobs.records import Batch, BatchFault, BatchStatus
from serve.access.keys import KeyRecord
from serve.engine.protocol import Endpoint
from serve.jobs.batch_ask import LineAsker
from serve.jobs.batch_lines import BatchLine, check_input, parse_line, read_lines
from serve.jobs.batch_pace import Pacer
from serve.jobs.batch_results import BatchResults, Kind, LineAnswer

logger = logging.getLogger(__name__)

ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": "chat/completions",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
}

_NOT_SENT = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed, because the batch was cancelled."),
}
_LINES_AT_ONCE = 32
_COPY_BYTES = 1 << 20
_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class BatchContext:
    """The parts of the server that a batch uses.

    Attributes:
        results: Folder for results of unfinished batches.
        find_key: The key with this id, if it is valid.
        base: Name of the prepared base that is served; batches for other bases are left to other servers.
        is_model: Whether a `model` exists, is of that base, and the key may use it.
        heartbeat_s: Interval of writing results and of checking for expiry and cancellation.
    """

    queue: BatchQueue
    files: FileStore
    results: Path
    asker: LineAsker
    pacer: Pacer
    find_key: Callable[[str], KeyRecord | None]
    base: str
    is_model: Callable[[KeyRecord, str], bool]
    max_body_bytes: int
    heartbeat_s: float = 1.0
    clock: Callable[[], float] = time.time


class BatchRun:
    """Work on a batch that `worker` has claimed, until the batch ends or the claim is lost."""

    def __init__(self, batch: Batch, worker: str, context: BatchContext) -> None:
        self._batch = batch
        self._worker = worker
        self._context = context
        self._endpoint = ENDPOINTS[batch.endpoint]
        self._results = BatchResults(context.results, batch.id)
        self._answers: list[LineAnswer] = []
        self._end_status: BatchStatus = "cancelled" if batch.status == "cancelling" else "completed"
        self._faults: tuple[BatchFault, ...] = ()

    async def run(self) -> None:
        """Check the input, answer its lines, and write the files.

        Raises:
            ClaimLostError: Another server has the batch.
        """
        try:
            if self._batch.status == "validating" and not await self._check():
                return
            await asyncio.to_thread(self._results.resume)
            if self._batch.status != "finalizing":
                await self._answer_until_end()
            await asyncio.to_thread(self._write_files)
        except OSError as error:
            if error.errno not in _DISK_FULL_ERRNOS and not isinstance(error, JobsDiskError):
                raise
            logger.error("Batch %s failed: %s", self._batch.id, error)  # its paths are for the operator alone
            await asyncio.to_thread(self._fail, BatchFault(code="disk_full", message="The server's disk is full."))

    async def _check(self) -> bool:
        """Whether the input is valid; if not, the batch fails."""
        key = self._context.find_key(self._batch.key_id)

        def check() -> bool:
            with self._open() as file:
                checked = check_input(
                    file,
                    self._endpoint,
                    self._context.max_body_bytes,
                    lambda model: key is None or self._context.is_model(key, model),
                )
            if checked.faults:
                self._context.queue.finish(self._batch.id, self._worker, "failed", errors=checked.faults)
                return False
            self._batch = self._context.queue.start(self._batch.id, self._worker, checked.num_lines, checked.model)
            return True

        checking = asyncio.create_task(asyncio.to_thread(check))
        while not (await asyncio.wait((checking,), timeout=self._context.heartbeat_s))[0]:
            await asyncio.to_thread(self._context.queue.heartbeat, self._batch.id, self._worker)
        return checking.result()

    async def _answer_until_end(self) -> None:
        """Answer lines until all are done, or the batch expires or is cancelled."""
        await self._heartbeat()
        answering = asyncio.create_task(self._answer_lines())
        try:
            while not answering.done() and self._end_status == "completed":
                if not (await asyncio.wait((answering,), timeout=self._context.heartbeat_s))[0]:
                    await self._heartbeat()
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            await self._save()
        if self._end_status == "completed":
            answering.result()

    async def _heartbeat(self) -> None:
        """Save results, and check whether the batch was cancelled or has expired."""
        await self._save()
        status = await asyncio.to_thread(self._context.queue.heartbeat, self._batch.id, self._worker)
        if status == "cancelling":
            self._end_status = "cancelled"
        elif (
            self._end_status == "completed"
            and self._batch.expires_at is not None
            and self._context.clock() >= self._batch.expires_at
        ):
            self._end_status = "expired"
        elif self._context.find_key(self._batch.key_id) is None:
            message = "The API key that created the batch is no longer valid."
            self._end_status, self._faults = "cancelled", (BatchFault(code="invalid_api_key", message=message),)

    async def _save(self) -> None:
        answers, self._answers = self._answers, []
        if answers:
            await asyncio.to_thread(self._write, answers)

    def _write(self, answers: list[LineAnswer]) -> None:
        self._context.queue.heartbeat(
            self._batch.id, self._worker
        )  # raises if the claim is lost, before anything is written
        self._results.write(answers)
        counts = self._results.counts
        self._context.queue.progress(
            self._batch.id,
            self._worker,
            num_completed=counts.num_completed,
            num_failed=counts.num_failed,
            input_tokens=counts.input_tokens,
            output_tokens=counts.output_tokens,
        )

    async def _answer_lines(self) -> None:
        """Start each line without an answer, once there is room for it."""
        async with asyncio.TaskGroup() as answers:
            with self._open() as file:
                lines = self._unanswered(file)
                while some := await asyncio.to_thread(lambda: list(islice(lines, _LINES_AT_ONCE))):
                    for line in some:
                        wanted = self._context.asker.num_places(self._endpoint, line)
                        await self._context.pacer.take(self._batch.owner, wanted)
                        task = answers.create_task(self._answer(line))
                        task.add_done_callback(partial(self._release, wanted))

    def _release(self, num_sequences: int, _: object) -> None:
        self._context.pacer.give(self._batch.owner, num_sequences)

    async def _answer(self, line: BatchLine) -> None:
        key = self._context.find_key(self._batch.key_id)
        if key is not None:  # else the next heartbeat ends the batch
            answer = await self._context.asker.ask(self._endpoint, line, key)
            self._answers.append(answer)  # read after the await: `_save` may have replaced the list

    def _unanswered(self, file: BinaryIO) -> Iterator[BatchLine]:
        for _, raw in read_lines(file, self._context.max_body_bytes):
            line = parse_line(raw, self._endpoint, self._context.max_body_bytes)
            if not self._results.has(line.custom_id):
                yield line

    def _open(self) -> BinaryIO:
        return self._context.files.held_path(self._batch.id, self._batch.input_file_id).open("rb")

    def _write_files(self) -> None:
        """Write the reason for lines that were not sent, publish the result files, and end the batch."""
        if self._end_status in _NOT_SENT and self._batch.in_progress_at is not None:
            code, message = _NOT_SENT[self._end_status]
            with self._open() as file:
                lines = self._unanswered(file)
                while some := list(islice(lines, _LINES_AT_ONCE)):
                    self._write([LineAnswer(line.custom_id, code=code, message=message) for line in some])
        if self._end_status == "completed":
            self._context.queue.finalize(self._batch.id, self._worker)
        self._context.queue.finish(
            self._batch.id,
            self._worker,
            self._end_status,
            output_file_id=self._publish("output"),
            error_file_id=self._publish("error"),
            errors=self._faults,
        )
        self._results.remove()

    def _publish(self, kind: Kind) -> str | None:
        """Id of the client's result file; reuses the file of a server that was killed before ending the batch."""
        path, filename, context = self._results.path(kind), f"{self._batch.id}_{kind}.jsonl", self._context
        if path is None:
            return None
        for file in context.files.list(self._batch.owner, purpose="batch_output").items:
            if file.filename == filename:
                return file.id
        life_s = self._batch.expires_after_s
        with (
            context.files.begin(
                self._batch.owner, "batch_output", filename, expires_after_s=life_s, is_limited=False
            ) as incoming,
            path.open("rb") as source,
        ):
            while chunk := source.read(_COPY_BYTES):
                incoming.write(chunk)
            return incoming.finish().id

    def _fail(self, fault: BatchFault) -> None:
        self._context.queue.finish(self._batch.id, self._worker, "failed", errors=(fault,))
        with suppress(OSError):
            self._results.remove()
